"""How many anomalies are enough: the choice repeated with fewer or more of them.

Nothing is trained for it: a draw of anomalies only ranks the trained folds anew.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
import optuna

from dpa_jax import console, errors
from dpa_jax.data import folds, test_set
from dpa_jax.scoring import roc
from dpa_jax.storage import workdir
from dpa_jax.tuning import anomalies, queue, report, selection, study, trials
from dpa_jax.tuning.search import check_comparable


def learning_curve(
    folder: str | os.PathLike,
    counts: Sequence[int],
    draws: int = 10,
    *,
    storage: str = "",
    visible: bool = True,
) -> list[tuple[int, int, int, float]]:
    """Repeats the choice of a study by other draws of anomalies, and tests it.

    Draws are from the anomalies that share no patient or slide with images trained on.

    Args:
      folder: of the study.
      counts: numbers of anomalies; 0 chooses by the held-out loss, once.
      draws: of each number; a larger one of the same draw holds the smaller.
      storage: URL of the study's database; empty for the file in its folder.
      visible: whether to show progress.

    Returns:
      For each count and draw both, the number of the trial that is best by them, and
      its mean ROC AUC on the test set over the models of its folds.

    Raises:
      DpaError: the study has not ended, there are fewer anomalies, losses cannot be
        compared, or there is no test set.
    """
    folder = pathlib.Path(folder)
    config, search = study.load(folder)
    with queue.reaching():
        name, database = queue.connect(folder, storage)
        known = optuna.load_study(study_name=name, storage=database)
        left = queue.left(known)
        every = selection.read_trials(known, folder, search.options.folds)
    done = [trial for trial in every if trial.state == "complete"]
    if left or not done:
        raise errors.DpaError(
            f"{folder} has {left} trials left and {len(done)} complete: dpa-jax tune "
            f"--workdir={folder} goes on"
        )
    _, kept, pool = trials.loader(search.options, visible)(config)
    apart = np.zeros(0, np.int64)
    if pool is not None:
        apart = np.flatnonzero(~folds.of_groups(pool.images, kept.groups))
    if max(counts) > len(apart):
        raise errors.UsageError(
            f"{max(counts)} anomalies cannot be drawn: {folder} has {len(apart)} that "
            "share no patient or slide with images trained on"
        )
    if 0 in counts:
        check_comparable([search.config(config, t.parameters) for t in done])

    # --- choose, and test what was chosen ---
    alone = np.array([selection.alone(trial.folds).mean(axis=0) for trial in done])
    losses = np.array([[fold.loss for fold in t.folds] for t in done]).mean(axis=1)
    rows, tests, tested = [], {}, {}
    for count in sorted(set(counts)):
        for draw in range(draws if count else 1):
            drawn = apart[anomalies.draw(len(apart), count, 0, draw)]
            values = alone[:, drawn].mean(axis=1) if count else -losses
            trial = done[selection.best_first(values)[0]]
            if trial.number not in tested:
                own = search.config(config, trial.parameters)
                if (key := str(own.data)) not in tests:
                    tests[key] = test_set.load(own, visible=visible)
                test, aucs = tests[key], []
                if test is None or test.labels is None or np.ptp(test.labels) == 0:
                    raise errors.DpaError(
                        "a learning curve needs a test set of normal and abnormal "
                        "images: data.test, or data.test_normal and data.test_abnormal"
                    )
                for fold in range(search.options.folds):
                    run = selection.scores(folder, trial.number, fold).parent
                    with console.counting(f"testing {run}", "images", visible) as show:
                        found = trials.score_run(run, test.images, show)
                    aucs.append(roc.auc(found, test.labels))
                tested[trial.number] = float(np.mean(aucs))
            rows.append((count, draw, trial.number, tested[trial.number]))
    _write(folder, rows)
    return rows


def _write(folder: pathlib.Path, rows: Sequence[tuple[int, int, int, float]]) -> None:
    header = ("anomalies", "draw", "trial", "test_auc")
    workdir.write_csv(folder / "learning_curve.csv", header, rows)
    counts = list(dict.fromkeys(row[0] for row in rows))
    aucs = [[row[3] for row in rows if row[0] == count] for count in counts]
    with report.figure(folder / "learning_curve.png") as axes:
        places, means = range(len(counts)), [np.mean(each) for each in aucs]
        for place, each in enumerate(aucs):
            axes.plot([place] * len(each), each, ".", c="0.6")
        axes.errorbar(places, means, [np.std(each) for each in aucs], capsize=3)
        axes.set_xticks(places, [str(count) for count in counts])
        axes.set(xlabel="anomalies to choose by", ylabel="test ROC AUC of the choice")
