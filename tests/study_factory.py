"""Makes searches and studies without training: scores as given."""

import numpy as np
import pytest
import run_factory

from dpa_jax.data import ImageSet

optuna = pytest.importorskip("optuna", reason="the extra tune is not installed")

from dpa_jax.tuning import anomalies, queue, selection  # noqa: E402
from dpa_jax.tuning.search import load  # noqa: E402

NORMAL = np.arange(10, dtype=np.float32)  # held-out scores 0 to 9 of every fold

SEARCH = """
def get_options(config):
    return {
        "sampler": "grid",
        "folds": 2,
        "early_stopping": {"every": 2},
        "grid": {"width": (2, 4), "rate": (0.001, 0.02)},
    }

def suggest(trial, config):
    config.optimizer.learning_rate = trial.suggest_float("rate", 1e-3, 2e-2)
    config.model.latent_channels = trial.suggest_categorical("width", (2, 4))
"""


def search(folder, config=None, source=SEARCH, **options):
    """Writes a search file and loads it, with options by their dotted names."""
    path = folder / "search.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    found = load(path, config or run_factory.quick_config())
    for name, value in options.items():
        target = found.options
        *sections, last = name.split("__")
        for section in sections:
            target = target[section]
        target[last] = value
    return found


def fold(aucs=(), *, normal=NORMAL, groups=None, steps=6, loss=0.5):
    """A fold in which each anomaly alone has the ROC AUC given, in tenths."""
    return selection.Fold(
        normal=np.asarray(normal, np.float32),
        groups=np.array(groups or [""] * len(normal)),
        anomalies=np.asarray(aucs, np.float32) * 10 - 0.5,
        steps=steps,
        loss=loss,
    )


def trial(number, *folds, **parameters):
    """A complete trial in memory."""
    return selection.Trial(number, "complete", "", parameters, folds)


def pool(count=3, drawn=(), *, kinds=None, groups=None):
    """A pool of so many anomalies, of which those are drawn."""
    images = ImageSet(
        run_factory.images(count, 8, seed=5)[..., None],
        [f"anomaly {i}" for i in range(count)],
        groups=groups,
    )
    kinds = tuple(kinds or [""] * count)
    return anomalies.Pool(images, kinds, np.array(drawn, np.int64))


def finished(folder, found, known, outcomes):
    """Makes a study whose trials ended with folds, or failed with a reason."""
    folder.mkdir(parents=True, exist_ok=True)
    joined = queue.Queue(folder, "", found, {}, bool(known["drawn"]))
    for name, value in known.items():
        joined.study.set_user_attr(name, value)
    drawn = np.array(known["drawn"], np.int64)
    for number, outcome in enumerate(outcomes):
        taken = joined.take()
        found.config(run_factory.quick_config(), taken)
        if isinstance(outcome, str):
            joined.end(taken, reason=outcome)
            continue
        for k, each in enumerate(outcome):
            selection.write_fold(selection.scores(folder, number, k), each)
        joined.end(taken, float(selection.fold_values(outcome, drawn).mean()))
    return joined.study
