"""The training loop: stage after stage, chunk after chunk of steps."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpa_jax import console, errors, state
from dpa_jax.devices import interruption, parallel
from dpa_jax.devices.platform import Platform
from dpa_jax.scoring.scorer import Scorer
from dpa_jax.stages import Stage
from dpa_jax.storage import metrics
from dpa_jax.training import autotune, forecast, programs, progress, samples
from dpa_jax.training.chunks import Chunk
from dpa_jax.training.compiled import Programs
from dpa_jax.training.run import Run, newest_common
from dpa_jax.training.setup import Problem, Setup

# Called after each stage but the last with the number of a run, the stage, and the run
# as it stands; where it returns False, that run is given up.
AfterStage = Callable[[int, Stage, Scorer], bool]


def train(
    runs: Sequence[Run],
    problem: Problem,
    platform: Platform,
    *,
    after_stage: AfterStage | None = None,
    compiled: Programs | None = None,
    visible: bool = True,
) -> None:
    """Trains runs at once, from their newest checkpoints to the end of the plan.

    Args:
      runs: at least one, of configurations that differ in seed and rate alone.
      problem: what they have in common.
      platform: the machine. Its process 0 alone reads and writes workdirs and takes
        every decision; the others follow.
      after_stage: see `AfterStage`.
      compiled: see `Setup`.
      visible: whether to show progress.

    Raises:
      Interrupted: a signal asked for it; all was saved.
      DpaError: a checkpoint or metrics cannot be written or read, or a device has too
        little memory.
    """
    config, plan, group = runs[0].config, problem.plan, platform.group
    last = plan[-1]
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.callback(run.close)
        setup = Setup(runs, problem, platform, compiled)
        stack.callback(setup.close)

        # --- restore: process 0 reads, the others receive ---
        kept = group.share(lambda: _restore(runs, setup, plan, visible))
        done = int(kept["step"])
        for number, run in enumerate(runs):
            run.parameters = kept["parameters"][str(number)]
        _follow(runs, group.decide(lambda: _active(runs)))

        bar = stack.enter_context(progress.TrainingBar(plan, done, visible))
        stack.enter_context(interruption.deferred(group))
        images, frozen = setup.resident_images(), setup.resident_frozen()

        # --- arrange: of what is right, what is fastest on these devices ---
        bar.describe("choosing arrangements")
        left = [stage for stage in plan if stage.end > done and any(_active(runs))]
        for line in autotune.arrange(setup, runs, left, done, images, frozen, platform):
            bar.print_line(line)
            if signal := group.decide(lambda: group.signal):
                raise _interrupted(done, signal)

        scorer = None
        ahead = forecast.Forecast(plan, platform.backend)
        log = _Log(runs, config.batch_size, ahead, bar)

        for stage in left:
            if not any(_active(runs)):
                break

            # --- begin: the blocks so far, an optimizer fresh or within the stage ---
            begun = time.perf_counter()
            train_state = setup.begin(stage)
            if done > stage.start:
                train_state = _within(train_state, done - stage.start, kept)
            train_state = parallel.replicate(train_state, platform)

            # --- compile ---
            bar.describe("compiling")
            program = setup.compiled(stage)
            data: dict[str, Any] = {"images": images}
            if setup.caches_targets(stage):
                bar.describe("features")
                data["targets"] = setup.targets(program, frozen, images)
            seconds = time.perf_counter() - begun
            what = _description(program, setup, data)
            bar.print_line(f"{bar.name(stage)}: {what}; ready in {seconds:.1f} s")
            log.start(stage, seconds)

            for chunk, block, rows in setup.feed(stage, done, data, program.steps):
                # --- run a chunk of steps: the devices go on by themselves ---
                valid = parallel.replicate(np.int32(chunk.steps), platform)
                with (
                    programs.memory_errors(program.spec, config.batch_size),
                    jax.transfer_guard("disallow"),
                ):
                    train_state, scalars = program.run(
                        train_state, frozen, block, rows, valid
                    )
                    if platform.chunks_in_flight == 1:
                        jax.block_until_ready(scalars)
                is_end = chunk.end == stage.end
                is_evaluated = setup.evaluations(stage).is_due(chunk.end) or (
                    is_end and bool(setup.evaluations(stage).every)
                )
                is_saved = is_end or is_evaluated or setup.saves.is_due(chunk.end)
                is_drawn = setup.grids.is_due(chunk.end) and not is_end
                signal = group.signal if chunk.end < last.end else 0

                # --- log the chunk before; this one too where its end is looked at ---
                if group.is_main:
                    with programs.memory_errors(program.spec, config.batch_size):
                        log.add(chunk, scalars)
                        log.write(wait=bool(is_saved or is_drawn or signal))

                # --- evaluate the held-out loss where due, and save ---
                if is_saved or (group.is_main and signal):
                    for run, one in _on_host(runs, train_state):
                        run.take_over(stage, chunk.end, one)
                        if not group.is_main or not run.is_active:
                            continue
                        if is_evaluated:
                            scorer = scorer or setup.scorer(run, stage)
                            current = scorer.with_parameters(run.parameters, chunk.end)
                            held_out = setup.held_out_loss(current)
                            # before it is saved: a checkpoint knows all evaluations
                            run.evaluate(stage, chunk.end, held_out)
                        run.save(stage, chunk.end, one)
                        if run.is_stopped():
                            run.finish(last)
                if group.is_main and is_drawn:
                    for run, one in _on_host(runs, train_state):
                        _draw(setup, problem, run, state.trained(one), stage, chunk.end)

                # --- process 0 decides who goes on ---
                decision = group.decide(
                    lambda signal=signal: {"active": _active(runs), "signal": signal}
                )
                _follow(runs, decision["active"])
                if decision["signal"]:
                    raise _interrupted(chunk.end, decision["signal"])
                if not any(_active(runs)):
                    break
            done = stage.end
            for run in runs:
                if group.is_main and run.is_active:
                    run.notify("stage", stage, done)

            # --- give up runs that the caller does not want any more ---
            if after_stage is not None and stage is not last:
                _follow(
                    runs,
                    group.decide(
                        lambda stage=stage: _call_after_stage(
                            runs, setup, after_stage, stage
                        )
                    ),
                )

        for run in runs:
            if run.is_active:
                if group.is_main:
                    _draw(setup, problem, run, run.parameters, last, last.end)
                run.finish(last)


def _restore(
    runs: Sequence[Run], setup: Setup, plan: Sequence[Stage], visible: bool
) -> dict[str, Any]:
    """Reads what the runs go on from; returns its step and each run's arrays."""
    for run in runs:
        run.open(plan)
    found, set_aside = newest_common(runs)
    for line in set_aside if visible else ():
        console.print_line(line)
    for number, run in enumerate(runs):
        lost = run.resume(found[number] if found else None, plan[-1])
        if lost and visible:
            console.print_line(lost)
        if run.is_stopped():
            run.finish(plan[-1])
    kept: dict[str, Any] = {"step": np.int64(found[0].step if found else 0)}
    if not found:
        first = {str(i): setup.first_parameters(run) for i, run in enumerate(runs)}
        return {**kept, "parameters": first}
    for name in found[0].arrays:
        kept[name] = {str(i): one.arrays[name] for i, one in enumerate(found)}
    return kept


def _within(
    begun: state.TrainState, steps: int, kept: Mapping[str, Any]
) -> state.TrainState:
    """Returns a stage's state after some steps, with the optimizers as they were."""
    changed: dict[str, Any] = {"step": jnp.int32(steps)}
    for name in ("optimizer", "critic_optimizer"):
        if name in kept:
            members = [kept[name][str(i)] for i in range(len(kept[name]))]
            changed[name] = state.with_optimizer_arrays(getattr(begun, name), members)
    return begun.replace(**changed)


def _active(runs: Sequence[Run]) -> list[bool]:
    return [run.is_active for run in runs]


def _follow(runs: Sequence[Run], active: Sequence[bool]) -> None:
    """Takes over which runs go on, as process 0 decided."""
    for run, is_active in zip(runs, active, strict=True):
        run.is_active = is_active


def _on_host(
    runs: Sequence[Run], train_state: state.TrainState
) -> Iterator[tuple[Run, state.TrainState]]:
    """Yields each run that still trains with its part of the state, on the host."""
    found = jax.device_get(train_state)
    for number, run in enumerate(runs):
        if run.is_active:
            yield run, state.member(found, number)


def _call_after_stage(
    runs: Sequence[Run], setup: Setup, after_stage: AfterStage, stage: Stage
) -> list[bool]:
    """Calls the callback for each run; returns which go on."""
    for number, run in enumerate(runs):
        if run.is_active:
            run.is_active = after_stage(number, stage, setup.scorer(run, stage))
    return _active(runs)


def _draw(
    setup: Setup, problem: Problem, run: Run, parameters: Any, stage: Stage, end: int
) -> None:
    """Writes a grid of training images and a run's reconstructions."""
    samples.write(
        run.folder / "samples" / f"{end:08d}_{stage.name}.png",
        setup.spec(stage),
        parameters,
        problem.images[problem.rows[:8]],
        float(stage.alpha(end - 1 - stage.start)),
    )


def _description(
    program: programs.Program, setup: Setup, data: Mapping[str, Any]
) -> str:
    spec = program.spec
    parts = [
        f"{spec.stage.steps:,} steps, {program.steps:,} at a time",
        spec.compute.precision,
        f"images {'sent to' if setup.is_streamed else 'kept on'} the device",
    ]
    if "targets" in data:
        parts.append("their features computed beforehand")
    if spec.batch_parts > 1:
        parts.append(f"each batch in {spec.batch_parts} parts")
    if spec.members > 1:
        parts.append(f"{spec.members} runs at once")
    return ", ".join(parts)


def _interrupted(step: int, number: int) -> errors.Interrupted:
    name = interruption.name(number)
    return errors.Interrupted(f"stopped by {name} after step {step:,}", number)


class _Log:
    """Writes the scalars of chunks a chunk late, while the devices do the next."""

    def __init__(
        self,
        runs: Sequence[Run],
        batch: int,
        ahead: forecast.Forecast,
        bar: progress.TrainingBar,
    ):
        self._runs, self._batch, self._forecast, self._bar = runs, batch, ahead, bar
        self._watch = metrics.Stopwatch()
        self._waiting: list[tuple[Chunk, Any]] = []

    def start(self, stage: Stage, seconds: float) -> None:
        """Starts a stage that took `seconds` to prepare, and the clock."""
        self._stage = stage
        self._forecast.start(seconds)
        self._bar.describe(self._bar.name(stage).partition(",")[0])
        self._watch.start()

    def add(self, chunk: Chunk, scalars: Any) -> None:
        """Adds a chunk's scalars, which may still be on their way."""
        self._waiting.append((chunk, scalars))

    def write(self, wait: bool) -> None:
        """Writes the chunks that were added, the last only if `wait` is set."""
        while len(self._waiting) > (0 if wait else 1):
            self._write(*self._waiting.pop(0))

    def _write(self, chunk: Chunk, scalars: Any) -> None:
        found = {
            name: np.asarray(values, np.float64)[: chunk.steps]  # [steps, runs]
            for name, values in jax.device_get(scalars).items()
        }
        rate = self._watch.add(chunk.steps * self._batch)
        for number, run in enumerate(self._runs):
            if run.is_active:
                own = {name: values[:, number] for name, values in found.items()}
                run.log(self._stage, chunk.first, own, rate)
        if any(_active(self._runs)):
            means = [run.mean_loss for run in self._runs if run.is_active]
            known = [mean for mean in means if mean is not None]
            loss = float(np.mean(known)) if known else None
            alpha = float(self._stage.alpha(chunk.end - 1 - self._stage.start))
            left = self._forecast.remaining(self._stage, chunk.end, self._batch / rate)
            self._bar.update(self._stage, chunk.end, alpha, loss, rate, left)
