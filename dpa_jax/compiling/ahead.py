"""A run's stages compiled as training compiles them, from shapes alone."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from dpa_jax import models, population, stages, state, step
from dpa_jax.backbones import base, frozen
from dpa_jax.compiling import counting
from dpa_jax.compiling.targets import Accelerator
from dpa_jax.config import stored_size, updated
from dpa_jax.devices import parallel
from dpa_jax.devices.platform import Platform
from dpa_jax.ops import compute
from dpa_jax.stages import Stage
from dpa_jax.training import programs
from dpa_jax.training.run import Run
from dpa_jax.training.setup import Problem, Setup


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says about one stage on one device of a machine.

    Attributes:
      stage: compiled.
      seconds: that compiling took here, tracing included.
      program: compiled; None if the compiler refused it for lack of memory.
      cost: of a step, with its share of what a chunk of them does once.
      operations: floating point operations of a step, as they stand in the program
        before it is optimised.
      argument_bytes: of what the program is given: images, weights, state.
      temporary_bytes: of what it needs besides.
      fits: whether all that fits into the device's memory.
      least: seconds of a step, see `Accelerator.least_seconds`; None where the device
        is not known.
      advice: where it does not fit, the changes to the config with which it does.
    """

    stage: Stage
    seconds: float
    program: programs.Program | None
    cost: counting.Cost | None
    operations: float
    argument_bytes: int | None
    temporary_bytes: int | None
    fits: bool
    least: dict[str, float] | None
    advice: dict[str, int] | None


def compile_stages(
    config: ml_collections.ConfigDict,
    platform: Platform,
    accelerator: Accelerator | None,
    chosen: Sequence[Stage],
    images: int,
) -> Iterator[Compiled]:
    """Compiles stages of a run one after the other.

    Args:
      config: validated.
      platform: to compile for.
      accelerator: what is known of its devices.
      chosen: which stages.
      images: that the run trains on.

    Yields:
      What there is to say about each.

    Raises:
      UsageError: the devices cannot share the batch, or there is less than one.
    """
    setup = abstract_setup(config, platform, images)
    share = config.batch_size // len(platform.devices)
    for stage in chosen:
        begun = time.perf_counter()
        program = _compiled(setup, stage)
        seconds = time.perf_counter() - begun
        cost = memory = least = None
        operations = count_operations(setup, stage, share)
        if program is not None:
            memory = program.run.memory_analysis()
            cost = counting.count(program.run.as_text()).times(1 / program.steps)
            if accelerator is not None:
                least = accelerator.least_seconds(cost, operations)
        fits = program is not None and program.planned_bytes <= platform.memory
        yield Compiled(
            stage=stage,
            seconds=seconds,
            program=program,
            cost=cost,
            operations=operations,
            argument_bytes=memory and memory.argument_size_in_bytes,
            temporary_bytes=memory and memory.temp_size_in_bytes,
            fits=fits,
            least=least,
            advice=None if fits else what_fits(config, platform, stage, images),
        )


def abstract_setup(
    config: ml_collections.ConfigDict, platform: Platform, images: int
) -> Setup:
    """Returns what `train` derives from a run, without its images or weights.

    Args:
      config: see `compile_stages`.
      platform: likewise.
      images: likewise.
    """
    parallel.check_batch(config.batch_size, len(platform.devices))
    plan = stages.schedule(config)
    architecture = models.Architecture.from_config(config)
    has_critic = bool(config.loss.adversarial)
    parameters = jax.eval_shape(
        lambda key: state.initialize(key, architecture, plan, has_critic),
        jax.random.key(0),
    )
    side = stored_size(config)
    weights, statistics = _feature_shapes(config, frozen.layers_in_use(config, plan))
    problem = Problem(
        plan=plan,
        images=jax.ShapeDtypeStruct(
            (images, side, side, config.data.channels), np.uint8
        ),
        rows=np.arange(images),
        held_out=np.zeros(0, np.int64),
        weights=weights,
        statistics=statistics,
        precision=compute.resolve(config.precision, platform.backend),
    )
    runs = [Run(one, pathlib.Path(), parameters) for one in population.members(config)]
    return Setup(runs, problem, platform)


def what_fits(
    config: ml_collections.ConfigDict, platform: Platform, stage: Stage, images: int
) -> dict[str, int] | None:
    """Returns with which parts of a batch, or else with which batch, a stage fits.

    Args:
      config: with which it does not.
      platform: see `compile_stages`.
      stage: to fit.
      images: see `compile_stages`.

    Returns:
      `batch_parts`, the fewest; or `batch_size`, the largest below the config's that
      the devices can share; or None if not even an image on each device fits.
    """

    def fitting(**changes: int) -> programs.Program | None:
        changed = updated(config, {"batch_parts": 0, **changes}, "compile")
        program = _compiled(abstract_setup(changed, platform, images), stage)
        if program is None or program.planned_bytes > platform.memory:
            return None
        return program

    if config.batch_parts and (program := fitting()) is not None:
        return {"batch_parts": program.spec.batch_parts}
    devices = len(platform.devices)
    share = largest(
        config.batch_size // devices,
        lambda share: fitting(batch_size=share * devices) is not None,
    )
    return {"batch_size": share * devices} if share else None


def largest(too_many: int, fits: Callable[[int], bool]) -> int:
    """Returns the largest number that fits, if every smaller one does; 0 if none does.

    Args:
      too_many: a number that does not fit.
      fits: asked as seldom as possible.
    """
    if too_many == 1 or not fits(1):
        return 0
    found = 1
    while too_many - found > 1:
        middle = (found + too_many) // 2
        if fits(middle):
            found = middle
        else:
            too_many = middle
    return found


def _compiled(setup: Setup, stage: Stage) -> programs.Program | None:
    try:
        return setup.compiled(stage)
    except programs.OutOfMemoryError:
        return None


def count_operations(setup: Setup, stage: Stage, share: int) -> float:
    """Counts the floating point operations of a step on one device.

    Of the program of a single step: see `counting.operations`.

    Args:
      setup: of the run.
      stage: one of its stages.
      share: images of a batch on one device.
    """
    spec = setup.spec(stage)
    train_state, read, data = setup.shapes(stage)
    if setup.is_streamed:
        data = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), data)
    index = jax.ShapeDtypeStruct(
        (spec.batches, share) if spec.adversarial else (share,), np.int32
    )
    run = step.gathering_step(spec)
    return counting.operations(run, train_state, read, data, index)


def _feature_shapes(
    config: ml_collections.ConfigDict, layers: dict[str, int]
) -> tuple[Any, Any]:
    """Returns shapes of a backbone's weights, and of the statistics of its layers.

    Those of the backbones of this package are had from random weights: the file need
    not be there.
    """
    if not layers:
        return {}, {}
    name = config.perceptual.backbone
    backbone = base.named(name)
    location = "random:0" if name in base.NAMES else config.perceptual.weights
    weights = backbone.load(location, tuple(layers))
    shapes = backbone.feature_shapes(weights, layers, config.data.resolution)

    def array(a: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(a), np.float32)

    statistics = {
        layer: {"mean": array(np.empty(c)), "std": array(np.empty(c))}
        for layer, (*_, c) in shapes.items()
    }
    return jax.tree.map(array, weights), statistics
