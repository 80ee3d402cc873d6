"""The fastest arrangement of each stage, timed once on each kind of device.

What was found is kept in the workdir, so that a run that is resumed goes on with the
same program, and in a folder for all runs of the same shapes on such a device.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dpa_jax.devices import parallel
from dpa_jax.devices.platform import Platform
from dpa_jax.stages import Stage
from dpa_jax.step import Frozen
from dpa_jax.training import choices, programs
from dpa_jax.training.arrangement import Arrangement
from dpa_jax.training.choices import Choice
from dpa_jax.training.run import Run
from dpa_jax.training.setup import Setup

OFF = "off"
# Stages of fewer steps would be over before all arrangements are compiled.
LEAST_STEPS = 2_000
# An arrangement takes the place of another if it needs less than this share of its
# time: what is nearer is noise.
_WORTH = 0.98
_REPEATS = 4  # of a chunk, after one that is not timed

# Of a setup, a stage as it is arranged there, images and what steps read: seconds of a
# step. Raises what a program raises that cannot be compiled or run.
Timer = Callable[[Setup, Stage, Any, Frozen, Platform], float]


def time_stage(
    setup: Setup, stage: Stage, images: Any, frozen: Frozen, platform: Platform
) -> float:
    """Trains a few chunks of a stage, which is not kept; returns seconds of a step."""
    program = setup.compile(stage)
    with programs.memory_errors(program.spec, setup.batch_size):
        data = {"images": images}
        if setup.caches_targets(stage):
            data["targets"] = setup.targets(program, frozen, images)
        state = parallel.replicate(setup.begin(stage), platform)
        with contextlib.closing(
            setup.feed(stage, stage.start, data, program.steps)
        ) as feed:
            chunk, block, rows = next(feed)
        valid = parallel.replicate(np.int32(chunk.steps), platform)
        taken = []
        for _ in range(1 + _REPEATS):
            begun = time.perf_counter()
            state, scalars = program.run(state, frozen, block, rows, valid)
            jax.block_until_ready(scalars)
            taken.append(time.perf_counter() - begun)
    return min(taken[1:]) / program.steps


def fastest(
    alternatives: Mapping[str, Sequence[Any]], seconds: Callable[[Arrangement], float]
) -> tuple[Arrangement, list[dict[str, Any]]]:
    """Times arrangements, one field after the other, and returns the fastest.

    Args:
      alternatives: see `arrangement.alternatives`.
      seconds: of a step; raises what a program raises that cannot run.

    Returns:
      The arrangement, and `Choice.timings`.

    Raises:
      OutOfMemoryError: of the usual arrangement; none of the others can run either.
      JaxRuntimeError: likewise.
    """
    usual, timings = Arrangement(), []
    failures: list[Exception] = []

    def timed(one: Arrangement) -> float:
        changed = {k: v for k, v in vars(one).items() if v != getattr(usual, k)}
        try:
            timings.append({**changed, "seconds": seconds(one)})
            return timings[-1]["seconds"]
        except (programs.OutOfMemoryError, jax.errors.JaxRuntimeError) as error:
            failures.append(error)
            timings.append({**changed, "failed": str(error).splitlines()[0]})
            return np.inf

    best, least = usual, timed(usual)
    for name, values in alternatives.items():
        for value in values:
            other = dataclasses.replace(best, **{name: value})
            if (found := timed(other)) < _WORTH * least:
                best, least = other, found
    if least == np.inf:
        raise failures[0]
    return best, timings


def choose(
    setup: Setup,
    stage: Stage,
    images: Any,
    frozen: Frozen,
    platform: Platform,
    timer: Timer = time_stage,
) -> Choice:
    """Returns the fastest arrangement of a stage, by the clock of process 0."""

    def seconds(arrangement: Arrangement) -> float:
        setup.arrange(stage, arrangement)
        taken = timer(setup, stage, images, frozen, platform)
        return platform.group.decide(lambda: taken)

    found = fastest(setup.alternatives(stage), seconds)
    setup.settle(stage, found[0])
    return Choice(platform.devices[0].device_kind, *found)


def arrange(
    setup: Setup,
    runs: Sequence[Run],
    left: Sequence[Stage],
    done: int,
    images: Any,
    frozen: Frozen,
    platform: Platform,
    timer: Timer = time_stage,
) -> Iterator[str]:
    """Sets the arrangements of a setup's stages, as they were or are chosen.

    Args:
      setup: of the runs.
      runs: whose workdirs keep what is chosen.
      left: the stages that are not over.
      done: steps that were taken; a stage that was begun stays as it was.
      images: `Setup.resident_images`.
      frozen: `Setup.resident_frozen`.
      platform: the machine; its process 0 reads, writes and decides.
      timer: see `Timer`.

    Yields:
      A line for each stage that was timed.
    """
    group, kind = platform.group, platform.devices[0].device_kind
    folder = group.decide(lambda: runs[0].config.autotune)
    for stage in left if folder != OFF else ():
        if not setup.alternatives(stage):
            continue
        shared = choices.shared_file(folder, setup, stage, platform)

        def before(stage=stage, shared=shared) -> dict[str, Any] | None:
            kept = choices.read(runs[0].folder / choices.FILE).get(stage.name)
            if kept is None or kept.device != kind:
                kept = choices.read(shared).get(stage.name)
            if kept is None and (stage.start < done or stage.steps < LEAST_STEPS):
                kept = Choice(kind, Arrangement(), [])
            return None if kept is None else dataclasses.asdict(kept)

        if (values := group.decide(before)) is not None:
            choice = Choice.from_values(values)
            setup.settle(stage, choice.arrangement)
        else:
            choice = choose(setup, stage, images, frozen, platform, timer)
            if group.is_main:
                choices.write(shared, {stage.name: choice})
            yield choice.describe(stage)
        for run in runs if group.is_main else ():
            choices.write(run.folder / choices.FILE, {stage.name: choice})
