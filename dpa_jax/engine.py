"""What turns a stage into a program: how many steps a dispatch, what is cached.

On GPU and TPU a chunk of steps is one program (`step.chunk`). On CPU it is a loop over
one compiled step, whose dispatch costs little there: convolutions within a loop of a
program are several times slower unless they are written for it (`cpu_convolution`).
"""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpa_jax import losses, parallel, step, vgg
from dpa_jax.state import TrainState

# Orders of magnitude that fix how many steps make about a second, so that a run's
# chunks are the same each time: arithmetic in FLOP/s, and what a step costs besides, s.
_RATES = {
    "cpu": {"bfloat16": 1e11, "tensorfloat32": 2e11, "float32": 2e11},
    "gpu": {"bfloat16": 3e14, "tensorfloat32": 1e14, "float32": 3e13},
    "tpu": {"bfloat16": 1e14, "tensorfloat32": 3e13, "float32": 2e13},
}
_OVERHEAD = {"cpu": 5e-3, "gpu": 5e-4, "tpu": 5e-4}

# The share of a device's memory that the images, and the cached targets, may take.
IMAGE_SHARE = 0.4
TARGET_SHARE = 0.3


def precision(wanted: str) -> str:
    """Resolves `auto`: bfloat16 on GPU and TPU, float32 on CPU."""
    if wanted != "auto":
        return wanted
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def xla_options() -> dict[str, Any] | None:
    """Returns the compiler options that programs here are compiled with.

    On GPU, XLA's usual kinds of command buffers (CUDA graphs) and convolutions, so that
    the hundreds of kernels of a step are launched as a few graphs: at 16 pixels a step
    took 1.95 ms without and 1.09 ms with them (H100, batch 128, JAX 0.11.2). Not if
    compiled programs are kept on disk: one that was loaded from there, and so had run
    no convolution outside of a graph, failed in cuDNN (status 5003) on that machine.

    On CPU, convolutions by Eigen rather than YNNPACK: 0.81 against 0.90 s a step at 64
    pixels (two cores, batch 32, JAX 0.10.2).
    """
    platform = jax.default_backend()
    if platform == "gpu" and not jax.config.values["jax_compilation_cache_dir"]:
        return {
            "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,"
            "DYNAMIC_SLICE_FUSION,CONVOLUTION"
        }
    if platform == "cpu":
        return {"xla_cpu_experimental_ynn_fusion_type": ""}
    return None


def memory_limit() -> int:
    """Returns the bytes of memory of a device; on CPU of the machine."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (device.memory_stats() or {}).get("bytes_limit", 8 << 30)


def flops(spec: step.StepSpec, batch_size: int, cached: bool = False) -> float:
    """Counts the floating-point operations of VGG19 in one step.

    The real images forward, unless their features are cached, the reconstructions
    forward, and the gradient with respect to these; at half the resolution as well in a
    transition with the smooth loss. The real ones' are shared by the members of a
    population. The autoencoder's own are a few percent more.
    """
    total = 0
    for loss, resolution in (
        (spec.loss.full, spec.stage.resolution),
        (spec.loss.half, spec.stage.resolution // 2),
    ):
        if loss is not None and loss.layers:
            layer = vgg.deepest([name for name, _ in loss.layers])
            total += vgg.multiply_adds(layer, resolution)
    passes = 2 * spec.members + (0 if cached else 1)
    return 2.0 * total * passes * batch_size


def parts(resolution: int, batch_size: int) -> int:
    """Chooses in how many equal parts a step takes a batch: one, but on CPU.

    There memory bounds a step. Its activations are to stay in the processor's cache,
    and what it needs in all below 32 MB, above which glibc maps memory anew at each
    call; but the kernels of deep layers are read once for each part.

    Args:
      resolution: of the images in the step, in pixels per side.
      batch_size: of one device.
    """
    if jax.default_backend() != "cpu":
        return 1
    # at 32 pixels 94 ms in one part and 71 in four of 8 images, at 64 pixels 450 and
    # 352; at 16 pixels parts gain nothing (two cores, 32 images, JAX 0.10.2)
    images = max(8, 8192 // resolution**2)
    divisors = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
    return min(divisors, key=lambda n: abs(math.log(batch_size / n / images)))


def steps_per_chunk(
    spec: step.StepSpec, batch_size: int, span: int = 0, seconds: float = 1.0
) -> int:
    """Chooses how many steps make about `seconds` on this class of device.

    Args:
      spec: of a step.
      batch_size: of all devices together.
      span: steps after which a chunk has to end; 0 for those of the stage. It is
        divided evenly, so that its last chunk is hardly shorter.
      seconds: to aim at.
    """
    span = min(span or spec.stage.steps, spec.stage.steps)
    platform = jax.default_backend()
    rates = _RATES.get(platform, _RATES["gpu"])
    arithmetic = flops(spec, batch_size) / jax.device_count() / rates[spec.precision]
    each = arithmetic + _OVERHEAD.get(platform, _OVERHEAD["gpu"])
    most = max(1, round(seconds / each))
    return math.ceil(span / math.ceil(span / most))


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled stage.

    Attributes:
      spec: what it computes.
      steps: per chunk.
      run: `(state, frozen, data, indices) -> (state, scalars)`, such as `loss` of each
        step; does not wait for the devices. The state is donated; `indices` come from
        `place`.
      place: puts int32 `[steps, local part of a batch]`, with a critic `[steps, batches
        of a step, local part]`, on the devices.
    """

    spec: step.StepSpec
    steps: int
    run: Callable[..., tuple[TrainState, dict[str, Any]]]
    place: Callable[[np.ndarray], Any]


def compile_stage(
    spec: step.StepSpec,
    state: Any,
    frozen: Any,
    data: Any,
    batch_size: int,
    steps: int = 0,
) -> Program:
    """Compiles the one executable of a stage.

    Args:
      spec: what it computes.
      state: arrays or `jax.ShapeDtypeStruct`s, as of all that follows.
      frozen: see `step.Frozen`.
      data: see `step.single`.
      batch_size: of all devices together.
      steps: of a chunk; 0 lets `steps_per_chunk` choose.
    """
    steps = steps or steps_per_chunk(spec, batch_size)
    count = parts(spec.stage.resolution, batch_size // jax.device_count())
    spec = dataclasses.replace(spec, parts=count)
    part = batch_size // jax.process_count()
    looped = jax.default_backend() == "cpu"
    make = step.single if looped else step.chunk
    shape = (spec.batches, part) if spec.adversarial else (part,)
    rows = np.zeros((steps, *shape), np.int32)

    if looped:

        def place(indices):
            return [parallel.distribute(row, axis=-1) for row in indices]

        index = place(rows[:1])[0]
    else:

        def place(indices):
            return parallel.distribute(_padded(indices, steps), axis=-1)

        index = place(rows)

    program = parallel.compile_program(
        lambda axis: make(spec, axis),
        (state, frozen, data, index),
        (False, False, False, True),
        xla_options(),
    )

    # Virtual devices share the threads of a few cores: of many steps in flight those
    # that wait for another device leave it none, and XLA ends the process.
    several = jax.local_device_count() > 1

    def run_loop(state, frozen, data, indices):
        scalars = []
        for row in indices:
            state, one = program(state, frozen, data, row)
            if several:
                jax.block_until_ready(one)
            scalars.append(one)
        return state, jax.tree.map(lambda *values: list(values), *scalars)

    return Program(spec, steps, run_loop if looped else program, place)


def _padded(indices: np.ndarray, steps: int) -> np.ndarray:
    """Repeats the last row; the program leaves the state alone at steps beyond."""
    missing = steps - len(indices)
    return np.concatenate([indices, np.repeat(indices[-1:], missing, axis=0)])


def caches_targets(
    spec: step.StepSpec, images: Any, batch_size: int, steps: int, wanted: str
) -> bool:
    """Decides whether the training images' features are computed once and kept.

    They can be where an image looks the same whenever it is drawn: in a stabilization,
    without augmentation. It pays when each is drawn twice or more and they fit.
    """
    possible = not spec.stage.transition and not spec.augments(images.shape[1])
    features = jax.tree.leaves(target_shapes(spec, images))
    if wanted == "never" or not possible or not features:
        return False
    if wanted == "always":
        return True
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in features)
    return (
        steps * batch_size >= 2 * len(images) and size <= TARGET_SHARE * memory_limit()
    )


def target_shapes(spec: step.StepSpec, images: Any) -> Any:
    """Returns shapes and dtypes of all images' features, `[N, ...]`, as structs."""
    resolution = spec.stage.resolution
    loss = spec.loss.full
    if not (loss.relative_perceptual or loss.perceptual):
        return {}, {}
    shapes = {
        name: (resolution // vgg.stride(name),) * 2 + (vgg.LAYERS[name],)
        for name, _ in loss.layers
    }
    found = {
        name: jax.ShapeDtypeStruct((len(images), *shape), spec.dtype)
        for name, shape in shapes.items()
    }
    if loss.image_weight:
        found[losses.IMAGE] = jax.ShapeDtypeStruct(
            (len(images), resolution, resolution, 3), jnp.float32
        )
    return found, {}


def compute_targets(
    spec: step.StepSpec, frozen: step.Frozen, images: jax.Array, block: int = 256
) -> Any:
    """Computes the features of all training images, block by block, on the device."""
    count = len(images)
    block = min(block, count)

    def fill(buffers, frozen, images, start):
        taken = jax.lax.dynamic_slice_in_dim(images, start, block)
        with step.exact(spec.precision):
            x = step.prepare(spec, taken, None, 1.0)
            found = step.targets(spec, frozen, x)
        return jax.tree.map(
            lambda buffer, values: jax.lax.dynamic_update_slice_in_dim(
                buffer, values, start, 0
            ),
            buffers,
            found,
        )

    fill = jax.jit(fill, donate_argnums=0)
    buffers = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), target_shapes(spec, images)
    )
    for start in range(0, count, block):
        # the last block overlaps the one before it rather than be shorter
        buffers = fill(buffers, frozen, images, min(start, count - block))
    return buffers
