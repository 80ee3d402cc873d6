"""Makes the folder of a finished study by hand: no training, scores as given."""

import pathlib

import numpy as np
import run_factory

from dpa_jax import config_files, workdir
from dpa_jax.data import ImageSet
from dpa_jax.tuning import anomalies, results

NORMAL = np.arange(10, dtype=np.float32)  # held-out scores 0 to 9 of every fold


def fold(aucs, *, normal=NORMAL, groups=None, steps=6, loss=0.5):
    """A fold in which each anomaly alone has the ROC AUC given, in tenths."""
    return results.Fold(
        normal=np.asarray(normal, np.float32),
        groups=groups,
        paths=tuple(f"{i}.png" for i in range(len(normal))),
        anomalies=np.asarray(aucs, np.float32) * 10 - 0.5,
        steps=steps,
        loss=loss,
    )


def trial(number, *folds, **parameters):
    """A complete trial in memory."""
    where = pathlib.Path("nowhere")
    return results.Trial(number, "complete", "", parameters, 1.0, 0, where, folds)


def write_trial(
    study, number, folds, parameters, *, state="complete", reason="", config=None
):
    """Writes a trial as the study leaves it."""
    folder = pathlib.Path(study) / "trials" / f"{number:04d}"
    told = {
        "number": number,
        "state": state,
        "reason": reason,
        "parameters": parameters,
        "seconds": 12.5,
        "retries": 0,
    }
    workdir.write_json(folder / "trial.json", told)
    for k, each in enumerate(folds):
        results.write_fold(folder / f"fold_{k}" / results.SCORES, each)
        config_files.save(
            config or run_factory.quick_config(), folder / f"fold_{k}" / "config.json"
        )
    return folder


def pool(count=3, drawn=(), *, kinds=None, groups=None):
    """A pool of so many anomalies, of which those are drawn."""
    images = ImageSet(
        run_factory.images(count, 8, seed=5)[..., None],
        [f"anomaly {i}" for i in range(count)],
        groups=groups,
    )
    return anomalies.Pool(
        images, tuple(kinds or [""] * count), np.array(drawn, np.int64)
    )


def write_study(folder, *, space=None, config=None, kept=None, statements=()):
    """Writes what a study begins with; returns its folder."""
    folder = pathlib.Path(folder)
    config_files.save(config or run_factory.quick_config(), folder / "config.json")
    workdir.write_json(folder / "search.json", {"space": space or {}})
    if kept is not None:
        anomalies.keep(folder / "anomalies.npz", kept, statements)
    return folder
