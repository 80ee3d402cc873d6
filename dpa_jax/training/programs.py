"""What turns a stage into a program: its executable, how long a chunk is, its targets.

One kind of program for every machine: a scan over a chunk of steps (`step.chunk`).
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpa_jax import errors, step
from dpa_jax.devices import parallel
from dpa_jax.devices.platform import Platform
from dpa_jax.images import from_tiles
from dpa_jax.training.compiled import Programs

# The share of a device's memory that the cached targets may take.
TARGET_SHARE = 0.3
# Steps of a chunk times pixels per side, by default: at 8 pixels 100 steps, at 64 12.
# Long enough that a dispatch costs nothing beside it (some 50 ms on an H100), short
# enough that a run soon stops where it is asked to (seconds on CPU).
_STEP_PIXELS = 800


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled stage.

    Attributes:
      spec: what it computes.
      steps: that a chunk has at most.
      run: `(state, frozen, data, indices, valid) -> (state, scalars)`, see
        `step.chunk`; does not wait for the devices. The state is donated; indices are
        sharded.
      planned_bytes: that it takes on a device with all that it is given.
    """

    spec: step.StepSpec
    steps: int
    run: Any
    planned_bytes: int


def default_steps(resolution: int) -> int:
    """Returns how many steps a chunk has at a resolution, if nothing says otherwise."""
    return max(1, _STEP_PIXELS // resolution)


def compile_stage(
    spec: step.StepSpec,
    platform: Platform,
    state: Any,
    frozen: Any,
    data: Any,
    batch_size: int,
    steps: int,
    *,
    batch_parts: int = 0,
    is_streamed: bool = False,
) -> Program:
    """Compiles the one executable of a stage, from shapes alone.

    Args:
      spec: what it computes; its `batch_parts` are chosen here.
      platform: to compile for.
      state: arrays or shapes, as of all that follows.
      frozen: see `step.Frozen`.
      data: see `step.gathering_step`; with a leading axis of devices if streamed.
      batch_size: of all devices together.
      steps: of a chunk at most.
      batch_parts: that a device takes its share of a batch in. 0 chooses: on a CPU such
        that a part fits its cache, elsewhere the fewest with which the program fits
        into the device's memory, as the compiler plans it.
      is_streamed: whether data are spread over the devices.

    Raises:
      UsageError: a device's share of a batch cannot be divided so.
      OutOfMemoryError: the compiler knows that the program does not fit.
    """
    share = batch_size // len(platform.devices)
    divisors = [n for n in range(1, share + 1) if share % n == 0]
    if batch_parts and batch_parts not in divisors:
        raise errors.UsageError(
            f"batch_parts is {batch_parts}, which does not divide a device's share of "
            f"a batch, {share} images; it may be {', '.join(map(str, divisors))}"
        )
    first = batch_parts or default_parts(spec.stage.resolution, share, platform.backend)
    candidates = [batch_parts] if batch_parts else [n for n in divisors if n >= first]
    local = len(platform.local_devices)
    shape = (local, steps, *([spec.batches] if spec.adversarial else []), share)
    arguments = (
        parallel.abstract(state, platform),
        parallel.abstract(frozen, platform),
        parallel.abstract(data, platform, sharded=is_streamed),
        parallel.abstract(
            jax.ShapeDtypeStruct(shape, np.int32), platform, sharded=True
        ),
        parallel.abstract(jax.ShapeDtypeStruct((), np.int32), platform),
    )
    for parts in candidates:
        chosen = dataclasses.replace(spec, batch_parts=parts)
        is_last = parts == candidates[-1]
        try:
            with memory_errors(chosen, batch_size):
                run = parallel.compile_program(
                    functools.partial(step.chunk, chosen),
                    platform,
                    arguments,
                    (False, False, is_streamed, True, False),
                )
        except OutOfMemoryError:
            if is_last:
                raise
            continue
        planned = _planned(run)
        if planned <= platform.memory or batch_parts or is_last:
            return Program(chosen, steps, run, planned)
    raise AssertionError("the last candidate returns or raises")


def default_parts(resolution: int, share: int, backend: str) -> int:
    """Chooses in how many equal parts a step takes a batch: one, but on CPU.

    There memory bounds a step. Its activations are to stay in the processor's cache,
    and what it needs in all below 32 MB, above which glibc maps memory anew at each
    call; but the kernels of deep layers are read once for each part.

    Args:
      resolution: of the images in the step, in pixels per side.
      share: images of a batch on one device.
      backend: see `Compute`.
    """
    if backend != "cpu":
        return 1
    # at 32 pixels 94 ms in one part and 71 in four of 8 images, at 64 pixels 450 and
    # 352; at 16 pixels parts gain nothing (two cores, 32 images, JAX 0.10.2)
    images = max(8, 8192 // resolution**2)
    divisors = [n for n in range(1, share + 1) if share % n == 0]
    return min(divisors, key=lambda n: abs(math.log(share / n / images)))


class OutOfMemoryError(errors.DpaError):
    """A device's memory does not hold a stage's program and what it works on."""


@contextlib.contextmanager
def memory_errors(spec: step.StepSpec, batch_size: int) -> Iterator[None]:
    """Turns XLA's error of a lack of memory in the body into one that says what helps.

    Raises:
      OutOfMemoryError: a device had too little memory.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text and "Out of memory" not in text:
            raise
        reason = text.strip().splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        raise OutOfMemoryError(
            f"{spec.stage.name} does not fit into the device's memory ({reason}). "
            f"Take a batch in more parts than {spec.batch_parts}, one after the other: "
            f"--config.batch_parts={2 * spec.batch_parts}; or a batch_size below "
            f"{batch_size}; --config.perceptual.cache_targets=never and "
            "--config.data.residency=stream keep less on the device"
        ) from error


def _planned(compiled: Any) -> int:
    found = compiled.memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )


# --- the features of the training images, kept


def target_shapes(spec: step.StepSpec, frozen: step.Frozen, count: int) -> Any:
    """Returns shapes and dtypes of `count` images' features, `[count, ...]`."""
    side = spec.stage.resolution
    x = jax.ShapeDtypeStruct(
        (count, side, side, spec.architecture.image_channels), spec.compute.wide
    )
    return jax.eval_shape(functools.partial(step.targets, spec), frozen, x)


def caches_targets(
    spec: step.StepSpec,
    shapes: Any,
    *,
    stored_size: int,
    draws_per_image: float,
    memory: int,
    wanted: str,
) -> bool:
    """Decides whether the training images' features are computed once and kept.

    They can be where an image looks the same whenever it is drawn: in a stabilization,
    without augmentation. It pays when each is drawn twice or more and they fit.

    Args:
      spec: of a step.
      shapes: `target_shapes` of all images.
      stored_size: side of the images as they are kept, in pixels.
      draws_per_image: how often the stage draws each.
      memory: of a device, in bytes.
      wanted: `auto`, `always` or `never`.
    """
    features = jax.tree.leaves(shapes)
    possible = not spec.stage.transition and not spec.augments(stored_size)
    if wanted == "never" or not possible or not features:
        return False
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in features)
    return wanted == "always" or (
        draws_per_image >= 2 and size <= TARGET_SHARE * memory
    )


def compute_targets(
    spec: step.StepSpec,
    platform: Platform,
    frozen: step.Frozen,
    images: jax.Array,
    block: int = 256,
    compiled: Programs | None = None,
) -> Any:
    """Computes the features of all training images, each device a part of them.

    Args:
      spec: of a step.
      platform: whose devices compute.
      frozen: on every device.
      images: N as `images.tiles` reshapes them, on every device.
      block: images that a device takes at once.
      compiled: where the program may be already, and is kept.

    Returns:
      `step.targets` of all images, on every device.
    """
    devices, count = len(platform.devices), len(images)
    block = max(1, min(block, count // devices))
    channels = spec.architecture.image_channels

    def make(axis_name):
        def fill(buffers, frozen, images, start, own_start):
            mine = jax.lax.dynamic_slice_in_dim(images, own_start, block)
            with spec.compute.matmul_precision():
                mine = from_tiles(mine, channels)
                found = step.targets(spec, frozen, step.prepare(spec, mine, None, 1.0))
            if axis_name:
                found = jax.tree.map(
                    lambda a: jax.lax.all_gather(a, axis_name, tiled=True), found
                )
            return jax.tree.map(
                lambda buffer, values: jax.lax.dynamic_update_slice_in_dim(
                    buffer, values, start, 0
                ),
                buffers,
                found,
            )

        return fill

    shapes = parallel.abstract(target_shapes(spec, frozen, count), platform)
    empty = jax.jit(
        lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes),
        out_shardings=jax.tree.map(lambda a: a.sharding, shapes),
    )

    def starts(first: int) -> tuple[Any, Any]:
        local = len(platform.local_devices)
        places = platform.group.index * local + np.arange(local)
        own = (first + places * block).astype(np.int32)
        return (
            parallel.replicate(np.int32(first), platform),
            parallel.shard(own, platform),
        )

    def compile():
        arguments = (shapes, frozen, images, *starts(0))
        sharded = (False, False, False, False, True)
        program = parallel.compile_program(make, platform, arguments, sharded)
        return empty.lower().compile(), program

    leaves, tree = jax.tree.flatten((frozen, images))
    key = "targets", spec, block, tree, *((a.shape, a.dtype) for a in leaves)
    begin, program = (compiled or Programs()).get(key, compile)
    buffers = begin()
    together = block * devices
    for first in range(0, count, together):
        # the last block overlaps the one before it rather than be shorter
        begin = min(first, count - together)
        buffers = program(buffers, frozen, images, *starts(begin))
        if platform.chunks_in_flight == 1:
            jax.block_until_ready(buffers)
    return buffers
