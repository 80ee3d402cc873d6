"""What the trials of a study have left in its folder."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from dpa_jax import errors, workdir
from dpa_jax.weights import formats

SCORES = "scores.npz"
_TOLD = ("number", "state", "reason", "parameters", "seconds", "retries")


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """What a model trained without one fold makes of that fold and of the anomalies.

    Attributes:
      normal: float32 `[n]`, the scores of the held-out normal images.
      groups: their `n` groups (patient, slide), None if unknown.
      paths: their `n` names.
      anomalies: float32 `[m]`, the scores of the whole pool, in its order.
      steps: of the last stage, where the held-out loss was lowest.
      loss: the mean loss of the held-out images there.
    """

    normal: np.ndarray
    groups: tuple[str, ...] | None
    paths: tuple[str, ...]
    anomalies: np.ndarray
    steps: int
    loss: float


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One combination of values, as its folder has it.

    Attributes:
      number: of the trial in its study.
      state: complete, pruned or failed.
      reason: why it is not complete, empty if it is.
      parameters: its values by name.
      seconds: that it took.
      retries: how often it was begun anew.
      folder: `STUDY/trials/NNNN`.
      folds: of a complete trial; none of another.
    """

    number: int
    state: str
    reason: str
    parameters: Mapping[str, Any]
    seconds: float
    retries: int
    folder: pathlib.Path
    folds: tuple[Fold, ...] = ()

    @property
    def loss(self) -> float:
        """The held-out loss, the mean over the folds."""
        return float(np.mean([fold.loss for fold in self.folds]))

    def config(self) -> ml_collections.ConfigDict:
        """Reads the configuration of the trial's first fold."""
        return workdir.read_config(self.folder / "fold_0")


def write_fold(path: pathlib.Path, fold: Fold) -> None:
    """Writes a fold's scores.npz, atomically."""
    with formats.replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            normal=np.asarray(fold.normal, np.float32),
            normal_groups=np.array(fold.groups or [""] * len(fold.normal), np.str_),
            normal_paths=np.array(fold.paths, np.str_),
            anomalies=np.asarray(fold.anomalies, np.float32),
            steps=np.int64(fold.steps),
            held_out_loss=np.float64(fold.loss),
        )


def read_fold(path: pathlib.Path) -> Fold:
    """Reads a fold's scores.npz.

    Raises:
      DpaError: it is missing, damaged, or holds a score that is not finite.
    """
    found = formats.read_npz(path, lambda name: True)
    with formats.reading(path):
        groups = tuple(found["normal_groups"].tolist())
        fold = Fold(
            found["normal"],
            groups if any(groups) else None,
            tuple(found["normal_paths"].tolist()),
            found["anomalies"],
            int(found["steps"]),
            float(found["held_out_loss"]),
        )
        if not len(fold.normal) or len(groups) != len(fold.normal):
            raise ValueError("it lacks normal scores, or a group for each")
    if not (np.isfinite(fold.normal).all() and np.isfinite(fold.anomalies).all()):
        raise errors.DpaError(f"{path} holds scores that are not finite")
    return fold


def read_trials(study: str | os.PathLike) -> list[Trial]:
    """Reads the trials of a study that have ended, by number.

    Raises:
      DpaError: a file of a trial is missing or damaged.
    """
    trials = []
    for path in sorted(pathlib.Path(study).glob("trials/*/trial.json")):
        with formats.reading(path):
            found = json.loads(path.read_text(encoding="utf-8"))
            trial = Trial(*(found[name] for name in _TOLD), folder=path.parent)
        if trial.state == "complete":
            places = sorted(
                path.parent.glob("fold_*"), key=lambda p: int(p.name.split("_")[1])
            )
            folds = tuple(read_fold(place / SCORES) for place in places)
            if not folds:
                raise errors.DpaError(f"{path.parent} is complete but has no fold_0")
            trial = dataclasses.replace(trial, folds=folds)
        trials.append(trial)
    return sorted(trials, key=lambda trial: trial.number)


def complete(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials that can be ranked."""
    return [trial for trial in trials if trial.state == "complete"]
