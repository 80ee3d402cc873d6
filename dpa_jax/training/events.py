"""What callbacks are told of while a run trains."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Attributes:
      kind: `metrics`, a row of metrics.jsonl was written; `checkpoint`, one was handed
        to the disk, which may still be writing it; or `stage`, a stage is done.
      workdir: of the run; of several that are trained at once each has its own.
      step: of the whole run, after which it happened.
      stage: its name, such as `16_transition`.
      values: of `metrics`: the scalars of the row; else empty.
    """

    kind: Literal["metrics", "checkpoint", "stage"]
    workdir: pathlib.Path
    step: int
    stage: str
    values: Mapping[str, float | str] = dataclasses.field(default_factory=dict)


# Called in the process that owns the workdir, between two chunks; an exception ends
# the run as any error does.
Callback = Callable[[Event], None]
