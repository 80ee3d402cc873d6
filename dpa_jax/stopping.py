"""Early stopping on the loss of the held-out fold (method, section 6).

In the last stage alone. What was seen is read back from a run's `metrics.jsonl`, so
that a resumed run decides as an uninterrupted one.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import ml_collections

from dpa_jax import workdir

FILE = "early_stopping.json"


@dataclasses.dataclass(frozen=True)
class Look:
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


def best(looks: Sequence[Look], min_delta: float) -> Look:
    """Returns the last look that lowered the loss by more than `min_delta`."""
    found = looks[0]
    for look in looks[1:]:
        if look.loss < found.loss - min_delta:
            found = look
    return found


def ended(looks: Sequence[Look], patience: int, min_delta: float) -> bool:
    """Says whether more than `patience` looks in a row have brought no improvement."""
    if not looks:
        return False
    found = best(looks, min_delta)
    return sum(look.step > found.step for look in looks) > patience


def read_looks(folder: pathlib.Path, start: int, done: int) -> list[Look]:
    """Reads what a run has seen up to step `done`, its last stage beginning at `start`.

    Args:
      folder: the workdir.
      start: the last stage's first step of the whole run.
      done: step of the whole run.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # half a line, left by a killed run: beyond its last checkpoint
        if "held_out_loss" in row and start < row["step"] <= done:
            found.append(Look(row["step"] - start, row["held_out_loss"]))
    return found


def write(
    folder: pathlib.Path,
    config: ml_collections.ConfigDict,
    looks: Sequence[Look],
    start: int,
) -> None:
    """Notes how a run ended.

    Args:
      folder: the workdir.
      config: of the run.
      looks: all of them, at least one.
      start: the last stage's first step of the whole run.
    """
    options = config.early_stopping
    found = best(looks, options.min_delta)
    result = Result(
        found.step,
        start + found.step,
        found.loss,
        ended(looks, options.patience, options.min_delta),
    )
    values = {**dataclasses.asdict(result), "looks": [[x.step, x.loss] for x in looks]}
    workdir.write_json(folder / FILE, values)


def result(folder: str | os.PathLike) -> Result | None:
    """Returns how a run ended, or None if it goes on or has no early stopping."""
    path = pathlib.Path(folder) / FILE
    if not path.exists():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["looks"]
    return Result(**values)
