"""A whole training run that notes where its time goes."""

import contextlib
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax

from benchmarks import measure, problem
from dpa_jax import errors, training
from dpa_jax.stages import Stage
from dpa_jax.storage import workdir
from dpa_jax.training import programs, samples
from dpa_jax.training.run import Run
from dpa_jax.training.setup import Setup

# of a stage, in seconds; `wait_s` is the part of `compile_s` that training waits for
PARTS = ("train_s", "targets_s", "wait_s", "compile_s", "checkpoint_s", "samples_s")


class Timing:
    """Notes where the time of each stage goes while a run trains in its `with` block.

    Args:
      plan: the stages of the run.
      window: about how many seconds lie between looks at speed and memory.

    Attributes:
      spent: for each stage's name its seconds by part; see `PARTS`.
      windows: for each stage's name how fast it went and what memory it held; see
        `note`.
      begun: when the first stage began to wait for its program.
      ended: when the last of these parts was done.
    """

    def __init__(self, plan: Sequence[Stage], window: float):
        self.spent = {stage.name: dict.fromkeys(PARTS, 0.0) for stage in plan}
        self.windows: dict[str, list[dict[str, Any]]] = {s.name: [] for s in plan}
        self.begun = self.ended = 0.0
        self._window, self._current = window, plan[0].name
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> "Timing":
        """Puts clocks around the parts of training."""
        for owner, name, part in (
            (Setup, "compile", "compile_s"),
            (Setup, "compiled", "wait_s"),
            (programs, "compute_targets", "targets_s"),
            (Run, "save", "checkpoint_s"),
            (samples, "write", "samples_s"),
        ):
            timed = self.timed(part, getattr(owner, name))
            self._patches.enter_context(mock.patch.object(owner, name, timed))
        fed = self.fed(Setup.feed)
        self._patches.enter_context(mock.patch.object(Setup, "feed", fed))
        return self

    def __exit__(self, *_) -> None:
        """Takes the clocks away."""
        self._patches.close()

    def timed(self, part: str, function):
        """Returns a function that does the same and notes how long it took.

        A checkpoint is handed over in that time; Orbax writes it later.
        """

        def run(*arguments, **options):
            begun, name = time.perf_counter(), self._current
            for stage in arguments:
                if isinstance(stage, Stage):
                    name = stage.name  # another than the current if compiled ahead
            if part == "wait_s":
                self._current, self.begun = name, self.begun or begun
            result = jax.block_until_ready(function(*arguments, **options))
            self.ended = time.perf_counter()
            self.spent[name][part] += self.ended - begun
            return result

        return run

    def fed(self, feed):
        """Returns the same generator of a stage's chunks, its time that of the steps.

        Less what was written in between.
        """

        def run(setup: Setup, stage: Stage, *rest):
            begun, spent = time.perf_counter(), self.spent[stage.name]
            self._mark = begun, stage.start
            for chunk, data, rows in feed(setup, stage, *rest):
                yield chunk, data, rows
                self.note(stage, chunk.end)
            self.ended = time.perf_counter()
            written = spent["checkpoint_s"] + spent["samples_s"]
            spent["train_s"] = self.ended - begun - written

        return run

    def note(self, stage: Stage, end: int) -> None:
        """Notes the window that ends with step `end` of the run, if it is long enough.

        Its `ms_per_step` is of all that happened meanwhile, with what was written.
        """
        (begun, first), now = self._mark, time.perf_counter()
        if now - begun < self._window:
            return
        self._mark = now, end
        self.windows[stage.name].append(
            {
                "step": end,
                "ms_per_step": 1e3 * (now - begun) / (end - first),
                "process_bytes": measure.process_bytes(),
                "device_bytes": measure.device_bytes(),
            }
        )


def whole_run(
    given: problem.Problem, folder: pathlib.Path, window: float
) -> dict[str, Any]:
    """Trains a problem from beginning to end.

    Args:
      given: see `problem.make`.
      folder: an empty one for all that the run reads and writes.
      window: seconds between looks at speed and memory.

    Returns:
      Seconds: `total_s` of all; of it `data_s` (reading the .npz), `prepare_s` (the
      workdir, VGG19's weights, initial parameters, moving images to the device), the
      sums of `PARTS`, `closing_s` (waiting for the last checkpoint) and `other_s` (the
      rest, such as a stage's first state); and `rows`, the same for each stage.
    """
    config = problem.as_run(given, folder)
    run = folder / "run"
    begun = time.perf_counter()
    images = training.training_images(config, visible=False)
    loaded = time.perf_counter()
    with Timing(given.plan, window) as timing:
        (failure,) = training.train_together(
            [config], [run], images=images, visible=False
        )
    ended = time.perf_counter()
    if failure is not None:
        raise errors.DpaError(failure)
    precision = workdir.precision(run)
    rows = [
        stage_row(stage, config.batch_size, precision, timing) for stage in given.plan
    ]
    found = {
        "data_s": loaded - begun,
        "prepare_s": timing.begun - loaded,
        **{part: sum(row[part] for row in rows) for part in PARTS},
    }
    total = ended - begun
    found["closing_s"] = ended - timing.ended
    known = sum(found.values()) - found["compile_s"]
    return {
        "total_s": total,
        **found,
        "other_s": total - known,
        "steps": given.plan[-1].end,
        "rows": rows,
    }


def stage_row(
    stage: Stage, batch: int, precision: str | None, timing: Timing
) -> dict[str, Any]:
    """Returns where the time of a stage went."""
    spent, windows = timing.spent[stage.name], timing.windows[stage.name]
    each = spent["train_s"] / stage.steps
    return {
        "stage": stage.name,
        "implementation": "dpa_jax",
        "precision": precision,
        "batch": batch,
        "steps": stage.steps,
        "ms_per_step": 1e3 * each,
        "images_per_second": batch / each,
        **spent,
        **drift(windows),
        "windows": windows,
    }


def drift(windows: list[dict[str, Any]]) -> dict[str, float]:
    """Compares the last third of a stage with its first.

    Args:
      windows: see `Timing.note`; of less than three nothing is said.

    Returns:
      `slowdown`, medians of the time of a step, as a ratio; and the rise of the
      medians of `process_bytes` and `device_bytes` in MB.
    """
    third = len(windows) // 3
    if not third:
        return {}

    def ends(name: str) -> tuple[float, float]:
        values = [window[name] for window in windows]
        return statistics.median(values[:third]), statistics.median(values[-third:])

    first, last = ends("ms_per_step")
    found = {"slowdown": last / first}
    for name in ("process", "device"):
        if windows[0][f"{name}_bytes"] is not None:  # the system tells
            before, after = ends(f"{name}_bytes")
            found[f"{name}_rise_megabytes"] = (after - before) / 1e6
    return found
