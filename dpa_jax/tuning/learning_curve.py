"""How many anomalies are enough: the choice repeated with fewer or more of them.

Nothing is trained for it: a draw of anomalies only ranks the trained folds anew.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from dpa_jax import errors, workdir
from dpa_jax.tuning import anomalies, plots, results, selection, tested
from dpa_jax.tuning.results import Trial


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a draw of anomalies chooses.

    Attributes:
      count: of the anomalies drawn.
      draw: its number, from 0.
      trial: the number of the trial that is best by them.
      selection_auc: that trial's mean ROC AUC by them, None without anomalies.
      test_auc: its mean ROC AUC on the test set over the models of its folds.
    """

    count: int
    draw: int
    trial: int
    selection_auc: float | None
    test_auc: float


@dataclasses.dataclass(frozen=True)
class Curve:
    """The learning curve of a study.

    Attributes:
      choices: one for each count and draw.
      summary: for each count the mean test AUC over the draws and its standard
        deviation, None of a single draw.
      oracle: the highest test AUC of all trials, None if some were not scored.
      lines: what to tell whoever asked.
    """

    choices: tuple[Choice, ...]
    summary: tuple[tuple[int, float, float | None], ...]
    oracle: float | None
    lines: tuple[str, ...]


def learning_curve(
    study: str | os.PathLike,
    counts: Sequence[int],
    draws: int = 10,
    seed: int = 0,
    *,
    scoring: tested.Scoring = tested.score_run,
    visible: bool = True,
) -> Curve:
    """Repeats the choice of a study by other draws of anomalies, and tests it.

    Only trials that some draw chooses are scored on the test set; the scores are kept
    in `test_scores.npz` of each fold. Writes learning_curve.csv and .png and
    learning_curve_summary.csv.

    Args:
      study: its folder.
      counts: numbers of anomalies, drawn from the whole pool; 0 chooses by the
        held-out loss, once.
      draws: of each number; a larger one of the same draw holds the smaller.
      seed: of the drawing.
      scoring: how a fold's run scores.
      visible: whether to show progress.

    Raises:
      UsageError: there are fewer anomalies, or losses cannot be compared.
      DpaError: there is no complete trial, no test set, or another one than before.
    """
    folder = pathlib.Path(study)
    trials = results.complete(results.read_trials(folder))
    if not trials:
        raise errors.DpaError(f"{folder} has no complete trial yet; tune it first")
    pool = _pool_size(folder, counts, draws)
    chosen = _choose(trials, pool, sorted(set(counts)), draws, seed)
    aucs = tested.aucs(
        trials,
        [trial for _, _, trial, _ in chosen],
        workdir.read_config(folder),
        scoring=scoring,
        visible=visible,
    )
    choices = [Choice(*which, aucs[which[2]]) for which in chosen]
    oracle = max(aucs.values()) if len(aucs) == len(trials) else None
    summary = _summarize(choices)
    _write(folder, choices, summary, oracle)
    return Curve(
        tuple(choices),
        tuple(summary),
        oracle,
        tuple(_words(folder, summary, pool, draws, oracle)),
    )


def _pool_size(folder: pathlib.Path, counts: Sequence[int], draws: int) -> int:
    """Returns how many anomalies there are, refusing counts beyond that."""
    path = folder / "anomalies.npz"
    pool = len(anomalies.read(path).paths) if path.exists() else 0
    if not counts or min(counts) < 0 or draws < 1:
        raise errors.UsageError(
            "a learning curve needs numbers of anomalies from 0 and at least 1 draw"
        )
    if max(counts) > pool:
        raise errors.UsageError(
            f"a learning curve with {max(counts)} anomalies needs as many; "
            f"{folder} has {pool}"
        )
    return pool


def _choose(
    trials: Sequence[Trial], pool: int, counts: Sequence[int], draws: int, seed: int
) -> list[tuple[int, int, int, float | None]]:
    """Returns count, draw, number of the best trial, and its AUC by the drawn."""
    found: list[tuple[int, int, int, float | None]] = []
    alone = np.array([selection.alone(t.folds).mean(axis=0) for t in trials])
    for count in counts:
        if not count:
            best = selection.ranked(trials, np.zeros(0, np.int64))[0]
            found.append((0, 0, best.number, None))
            continue
        for draw in range(draws):
            drawn = anomalies.draw(pool, count, seed, draw)
            aucs = alone[:, drawn].mean(axis=1)
            row = selection.highest(aucs)
            found.append((count, draw, trials[row].number, float(aucs[row])))
    return found


def _summarize(choices: Sequence[Choice]) -> list[tuple[int, float, float | None]]:
    summary: list[tuple[int, float, float | None]] = []
    for count in dict.fromkeys(choice.count for choice in choices):
        aucs = [choice.test_auc for choice in choices if choice.count == count]
        sd = float(np.std(aucs, ddof=1)) if len(aucs) > 1 else None
        summary.append((count, float(np.mean(aucs)), sd))
    return summary


def _words(
    folder: pathlib.Path,
    summary: Sequence[tuple[int, float, float | None]],
    pool: int,
    draws: int,
    oracle: float | None,
) -> list[str]:
    lines = ["test ROC AUC of the trial chosen (the mean of its folds' models):"]
    for count, mean, sd in summary:
        spread = "" if sd is None else f", standard deviation {sd:.4f} of {draws} draws"
        lines.append(f"{count} anomalies: {mean:.4f}{spread}")
    if oracle is not None:
        lines.append(f"the best trial on the test set: {oracle:.4f}")
    if 2 * summary[-1][0] > pool and draws > 1:
        lines.append(
            f"draws of more than half of the {pool} anomalies have most of them in "
            "common, so that they vary less than new anomalies would"
        )
    return [
        *lines,
        f"see {folder}/learning_curve.csv, learning_curve_summary.csv, "
        "learning_curve.png",
    ]


def _write(
    folder: pathlib.Path,
    choices: Sequence[Choice],
    summary: Sequence[tuple[int, float, float | None]],
    oracle: float | None,
) -> None:
    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.6f}"

    workdir.write_csv(
        folder / "learning_curve.csv",
        ("count", "draw", "trial", "selection_auc", "test_auc"),
        [
            (c.count, c.draw, c.trial, text(c.selection_auc), text(c.test_auc))
            for c in choices
        ],
    )
    workdir.write_csv(
        folder / "learning_curve_summary.csv",
        ("count", "draws", "test_auc_mean", "test_auc_sd", "trials_chosen"),
        [
            (
                count,
                sum(c.count == count for c in choices),
                text(mean),
                text(sd),
                len({c.trial for c in choices if c.count == count}),
            )
            for count, mean, sd in summary
        ],
    )
    points = [(choice.count, choice.test_auc) for choice in choices]
    plots.curve(folder / "learning_curve.png", points, summary, oracle)
