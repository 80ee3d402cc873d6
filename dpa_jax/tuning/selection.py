"""What trials have left, and which is best: how sure that is, and how optimistic."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from dpa_jax.scoring import roc
from dpa_jax.tuning import queue
from dpa_jax.weights import formats


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """What a model trained without one fold makes of that fold and of the anomalies.

    Attributes:
      normal: float32 `[n]`, the scores of the held-out normal images.
      groups: str `[n]`, their groups (patient, slide), empty names if unknown.
      anomalies: float32 `[m]`, the scores of the whole pool, in its order.
      steps: of the last stage, where the held-out loss was lowest.
      loss: the mean loss of the held-out images there.
    """

    normal: np.ndarray
    groups: np.ndarray
    anomalies: np.ndarray
    steps: int
    loss: float


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """A trial: waiting, running, complete (with folds), pruned or failed (why)."""

    number: int
    state: str
    reason: str
    parameters: Mapping[str, Any]
    folds: tuple[Fold, ...] = ()


def scores(study: pathlib.Path, trial: int, fold: int) -> pathlib.Path:
    """Returns the file of a fold's scores, in the workdir of its run."""
    return study / "trials" / f"{trial:04d}" / f"fold_{fold}" / "scores.npz"


def write_fold(path: pathlib.Path, fold: Fold) -> None:
    """Writes a fold's scores, atomically."""
    with formats.replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **dataclasses.asdict(fold))


def read_fold(path: pathlib.Path) -> Fold:
    """Reads a fold's scores; a DpaError is raised if they are damaged or not finite."""
    found: dict[str, Any] = formats.read_npz(path, lambda name: True)
    with formats.reading(path):
        found |= {"steps": int(found["steps"]), "loss": float(found["loss"])}
        if not np.isfinite([*found["normal"], *found["anomalies"]]).all():
            raise ValueError("it holds scores that are not finite")
        return Fold(**found)


def read_trials(study: optuna.Study, folder: pathlib.Path, folds: int) -> list[Trial]:
    """Reads the trials of a study by number, and the folds of complete ones."""
    trials = []
    for number, found in sorted(queue.latest(study).items()):
        state, reason = queue.state(found)
        paths = [scores(folder, number, k) for k in range(folds)]
        read = tuple(map(read_fold, paths)) if state == "complete" else ()
        trials.append(Trial(number, state, reason, found.params, read))
    return trials


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """The complete trials of a study, the best first; of equals the first tried.

    Attributes:
      trials: `T` of them.
      folds: float64 `[T, K]`, the ROC AUC of each fold or, without anomalies, its loss.
      values: float64 `[T]`, the means.
      intervals: float64 `[T, 2]`, of the mean ROC AUC in 95% of the resamples of
        anomalies and normal images (the models as they are); None without anomalies.
      bias: by how much the best of a resample has less of all images, the mean over the
        resamples, as Efron estimates a bias; less than in truth where many trials are
        alike (0.075 of 0.11 with 20 equal ones).
    """

    trials: tuple[Trial, ...]
    folds: np.ndarray
    values: np.ndarray
    intervals: np.ndarray | None = None
    bias: float = 0.0


def rank(
    trials: Sequence[Trial],
    drawn: np.ndarray,
    groups: Sequence[str] | None = None,
    resamples: int = 1000,
) -> Ranking:
    """Ranks the complete trials by their mean ROC AUC over the folds.

    Args:
      trials: of a study.
      drawn: int, indices into the pool. With none, trials are ranked by the held-out
        loss instead, which must be comparable (see `check_comparable`).
      groups: of the drawn anomalies (patient, slide), None if unknown.
      resamples: of the bootstrap, which resamples whole groups.
    """
    done = [trial for trial in trials if trial.state == "complete"]
    if not done:
        return Ranking((), np.zeros((0, 0)), np.zeros(0))
    folds = np.array([fold_values(trial.folds, drawn) for trial in done])
    values = folds.mean(axis=1)
    order = best_first(values if len(drawn) else -values)
    done, folds, values = [done[i] for i in order], folds[order], values[order]
    if not len(drawn):
        return Ranking(tuple(done), folds, values)
    found = [
        roc.mean_resamples(
            [fold.normal for fold in trial.folds],
            [fold.anomalies[drawn] for fold in trial.folds],
            [fold.groups if any(fold.groups) else None for fold in trial.folds],
            groups,
            resamples=resamples,
        )
        for trial in done
    ]  # [T, R]: equal resamples for all trials
    less = np.max(found, axis=0) - values[np.argmax(found, axis=0)]
    intervals = np.percentile(found, [2.5, 97.5], axis=1).T
    return Ranking(tuple(done), folds, values, intervals, float(less.mean()))


def best_first(values: np.ndarray) -> np.ndarray:
    """Returns the order of values `[T]`, the highest first, equal ones as given."""
    # to 12 digits, as means may differ by how they were taken
    return np.argsort(-np.round(values, 12), kind="stable")


def fold_values(folds: Sequence[Fold], drawn: np.ndarray) -> np.ndarray:
    """Returns each fold's ROC AUC of the drawn anomalies, or else its loss: `[K]`."""
    if not len(drawn):
        return np.array([fold.loss for fold in folds])
    return alone(folds)[:, drawn].mean(axis=1)


def alone(folds: Sequence[Fold]) -> np.ndarray:
    """Returns each fold's ROC AUC of each anomaly alone, `[K, m]`; others are means."""
    return np.array([roc.wins(f.normal, f.anomalies) / len(f.normal) for f in folds])
