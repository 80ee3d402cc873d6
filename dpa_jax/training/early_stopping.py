"""Early stopping on the loss of the held-out fold (method, section 6).

In the last stage alone. What was evaluated is kept in each checkpoint, so that a
resumed run decides as an uninterrupted one.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import ml_collections

from dpa_jax.storage import json_files, workdir

FILE = "early_stopping.json"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The held-out loss at a step of the last stage, counted from its beginning."""

    step: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Result:
    """How the last stage of a finished run ended.

    Attributes:
      steps: of the last stage behind the parameters that are the run's result.
      trained: the same as a step of the whole run, which its checkpoint is named after.
      loss: the mean loss of the held-out images there.
      stopped: whether patience ran out before the stage's last step.
    """

    steps: int
    trained: int
    loss: float
    stopped: bool


def best(evaluations: Sequence[Evaluation], min_delta: float) -> Evaluation:
    """Returns the last evaluation that lowered the loss by more than `min_delta`."""
    found = evaluations[0]
    for evaluation in evaluations[1:]:
        if evaluation.loss < found.loss - min_delta:
            found = evaluation
    return found


def is_over(evaluations: Sequence[Evaluation], patience: int, min_delta: float) -> bool:
    """Returns whether more than `patience` in a row have brought no improvement."""
    if not evaluations:
        return False
    found = best(evaluations, min_delta)
    return sum(one.step > found.step for one in evaluations) > patience


def write(
    folder: pathlib.Path,
    config: ml_collections.ConfigDict,
    evaluations: Sequence[Evaluation],
    start: int,
) -> None:
    """Writes how a run ended.

    Args:
      folder: the workdir.
      config: of the run.
      evaluations: all of them, at least one.
      start: the last stage's first step of the whole run.
    """
    options = config.early_stopping
    found = best(evaluations, options.min_delta)
    result = Result(
        found.step,
        start + found.step,
        found.loss,
        is_over(evaluations, options.patience, options.min_delta),
    )
    values = {
        **dataclasses.asdict(result),
        "evaluations": [[one.step, one.loss] for one in evaluations],
    }
    workdir.write_json(folder / FILE, values)


def result(folder: str | os.PathLike) -> Result | None:
    """Returns how a run ended, or None if it goes on or has no early stopping."""
    path = pathlib.Path(folder) / FILE
    if not path.exists():
        return None
    fields = {"steps": int, "trained": int, "loss": float, "stopped": bool}
    values = json_files.read(path, fields, workdir.REWRITTEN)
    return Result(**{name: values[name] for name in fields})
