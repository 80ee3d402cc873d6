"""A whole training run that notes where its time goes."""

import pathlib
import statistics
import time
from typing import Any

import jax

from benchmarks import measure, problem
from dpa_jax import checkpoint, data, engine, errors, frozen
from dpa_jax import stages as stages_lib
from dpa_jax.member import Member
from dpa_jax.run import Run

# of a stage, in seconds; `wait_s` is the part of `compile_s` that training waits for
PARTS = ("train_s", "targets_s", "wait_s", "compile_s", "checkpoint_s", "samples_s")


class TimedRun(Run):
    """A run that notes where the time of each stage goes.

    Attributes:
      spent: for each stage's name its seconds by part; see `PARTS`.
      windows: for each stage's name how fast it went and what memory it held, about
        every `window` seconds; see `note`.
    """

    def __init__(self, *args, window: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.spent = {stage.name: dict.fromkeys(PARTS, 0.0) for stage in self.plan}
        self.windows = {stage.name: [] for stage in self.plan}
        self._current, self._window = self.plan[0].name, window

    def add(self, part: str, begun: float, stage: str | None = None) -> None:
        """Adds the seconds since `begun` to a part of a stage."""
        self.spent[stage or self._current][part] += time.perf_counter() - begun

    def compile(self, stage) -> engine.Program:
        """Notes how long the compiler worked, in the background or not."""
        begun = time.perf_counter()
        program = super().compile(stage)
        self.add("compile_s", begun, stage.name)
        return program

    def targets(self, stage):
        """Notes how long computing the targets took; it is done before the stage is."""
        self._current = stage.name
        begun = time.perf_counter()
        found = jax.block_until_ready(super().targets(stage))
        self.add("targets_s", begun)
        return found

    def say(self, stage, program, targets, seconds) -> None:
        """Notes how long training stood still for the program."""
        super().say(stage, program, targets, seconds)
        spent = self.spent[stage.name]
        spent["wait_s"] = seconds - spent["targets_s"]
        self._mark = time.perf_counter(), stage.start

    def stage(self, program, train_state, targets, done) -> None:
        """Notes how long the steps took, less what was written in between."""
        begun = time.perf_counter()
        super().stage(program, train_state, targets, done)
        self.add("train_s", begun)
        spent = self.spent[self._current]
        spent["train_s"] -= spent["checkpoint_s"] + spent["samples_s"]

    def record(self, pending) -> None:
        """Notes a window when one is full."""
        super().record(pending)
        if pending is not None:
            self.note(pending.stage, pending.first + pending.steps)

    def note(self, stage: stages_lib.Stage, end: int) -> None:
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

    def save(self, train_state, stage, end, look) -> None:
        """Notes how long handing over a checkpoint took; Orbax writes it later."""
        begun = time.perf_counter()
        super().save(train_state, stage, end, look)
        self.add("checkpoint_s", begun)

    def samples(self, member, parameters, stage, number) -> None:
        """Notes how long drawing took."""
        begun = time.perf_counter()
        super().samples(member, parameters, stage, number)
        self.add("samples_s", begun)


def whole_run(
    given: problem.Problem, folder: pathlib.Path, window: float
) -> dict[str, Any]:
    """Trains a problem from beginning to end.

    Args:
      given: see `problem.make`.
      folder: an empty one for all that the run reads and writes.
      window: seconds between looks at speed and memory.

    Returns:
      Seconds: `total_s` of all but drawing images and weights; of it `data_s` (reading
      the .npz), `prepare_s` (statistics, moving images to the device), the sums of
      `PARTS`, `closing_s` (waiting for the last checkpoint) and `other_s` (the rest,
      such as initial parameters); and `rows`, the same for each stage.
    """
    config = problem.as_run(given, folder)
    workdir = folder / "run"
    workdir.mkdir()
    begun = time.perf_counter()
    images = data.load(config.data.train, data.Preprocessing.from_config(config)).images
    loaded = time.perf_counter()
    layers, weights = (
        frozen.layers_in_use(config, given.plan),
        jax.device_put(given.weights),
    )
    statistics = frozen.load_or_compute_statistics(
        config, layers, weights, images, workdir, False
    )
    ends = [stage.end for stage in given.plan]
    with checkpoint.Checkpoints(workdir, keep=ends) as checkpoints:
        member = Member(config, workdir, checkpoints)
        run = TimedRun(
            [member],
            given.plan,
            images,
            weights,
            statistics,
            visible=False,
            window=window,
        )
        jax.block_until_ready(run.resident)
        ready = time.perf_counter()
        run.go(0)
        if member.failure is not None:
            raise errors.DpaError(member.failure)
        closing = time.perf_counter()
    ended = time.perf_counter()
    rows = [stage_row(stage, config.batch_size, run) for stage in given.plan]
    found = {
        "data_s": loaded - begun,
        "prepare_s": ready - loaded,
        "closing_s": ended - closing,
        **{part: sum(row[part] for row in rows) for part in PARTS},
    }
    known = sum(found.values()) - found["compile_s"]
    total = ended - begun
    return {
        "total_s": total,
        **found,
        "other_s": total - known,
        "steps": ends[-1],
        "rows": rows,
    }


def stage_row(stage: stages_lib.Stage, batch: int, run: TimedRun) -> dict[str, Any]:
    """Returns where the time of a stage went."""
    spent = run.spent[stage.name]
    each = spent["train_s"] / stage.steps
    return {
        "stage": stage.name,
        "implementation": "dpa_jax",
        "precision": run.precision,
        "batch": batch,
        "steps": stage.steps,
        "ms_per_step": 1e3 * each,
        "images_per_second": batch / each,
        **spent,
        **drift(run.windows[stage.name]),
        "windows": run.windows[stage.name],
    }


def drift(windows: list[dict[str, Any]]) -> dict[str, float]:
    """Compares the last third of a stage with its first.

    Args:
      windows: see `TimedRun.note`; of less than three nothing is said.

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
