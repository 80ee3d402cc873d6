"""The PyTorch versions of the method as contestants, on the same device as JAX."""

import functools
import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import ml_collections
import numpy as np

from benchmarks import measure
from benchmarks.problem import Problem
from dpa_jax import errors
from dpa_jax.config import perceptual_layers
from dpa_jax.stages import Stage

try:
    import torch
except ImportError:
    raise errors.DpaError(
        "the baselines need PyTorch: pip install 'dpa_jax[torch]', "
        "or leave them out with --baselines=none"
    ) from None

from benchmarks.pytorch import steps

T = TypeVar("T")
NAMES = ("published", "tuned")


def device() -> str:
    """Returns what PyTorch calls the device that JAX uses.

    Raises:
      DpaError: PyTorch cannot use it.
    """
    backend = jax.default_backend()
    if backend == "cpu":
        return "cpu"
    if backend == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise errors.DpaError(
        f"JAX computes on {jax.devices()[0].device_kind}, which this PyTorch "
        f"({torch.__version__}) cannot use; leave the baselines out with "
        "--baselines=none"
    )


def precision(name: str, ours: str) -> str:
    """Returns what a baseline computes in beside `ours`.

    PyTorch's own float32 convolutions are TensorFloat-32 on NVIDIA GPUs.
    """
    if name == "tuned" and ours == "bfloat16":
        return ours
    return "float32" if device() == "cpu" else "tensorfloat32"


def wait() -> None:
    """Waits for PyTorch's device."""
    if device() == "cuda":
        torch.cuda.synchronize()


def forget() -> None:
    """Drops compiled functions and gives memory back, before the next stage."""
    torch.compiler.reset()
    gc.collect()
    if device() == "cuda":
        torch.cuda.empty_cache()


def matrix_product(size: int, wanted: str) -> measure.Run:
    """Returns a function that multiplies square matrices so many times."""
    dtype = torch.bfloat16 if wanted == "bfloat16" else torch.float32
    a, b = torch.randn(2, size, size, device=device()).to(dtype)

    def run(count: int) -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = wanted == "tensorfloat32"
        for _ in range(count):
            torch.matmul(a, b)
        wait()
        torch.backends.cuda.matmul.allow_tf32 = before

    return run


def stage_spec(config: ml_collections.ConfigDict, stage: Stage) -> steps.StageSpec:
    """Describes a stage to the PyTorch versions.

    Raises:
      UsageError: its loss is not theirs.
    """
    loss = config.loss
    if loss.relative_perceptual != 1 or loss.perceptual or loss.l1 or loss.l2:
        raise errors.UsageError(
            "the PyTorch versions know the relative perceptual loss alone; this config "
            "has other terms: measure it with --baselines=none"
        )
    layers = perceptual_layers(config.perceptual.layers)
    return steps.StageSpec(
        resolution=stage.resolution,
        transition=stage.transition,
        layers={resolution: dict(terms) for resolution, terms in layers.items()},
        image_weight=config.perceptual.image_weight,
        smooth=loss.smooth_transition,
    )


def train_step(
    name: str, problem: Problem, stage: Stage, ours: str, checkout: str | None
) -> steps.Step:
    """Makes a train step: `published`, `tuned` or, with a checkout, `reference`."""
    what = (
        stage_spec(problem.config, stage),
        problem.parameters,
        problem.weights,
        problem.statistics,
        problem.config.optimizer.learning_rate,
        device(),
    )
    if name == "published":
        return steps.published(*what)
    if name == "tuned":
        return steps.tuned(*what, precision(name, ours), device() == "cuda")
    from benchmarks.pytorch import reference_checkout

    assert checkout is not None
    return reference_checkout.train_step(
        checkout, *what, problem.config.data.resolution
    )


def scorer(
    name: str, problem: Problem, ours: str
) -> Callable[[np.ndarray], np.ndarray]:
    """Makes a scoring function: uint8 `[N, R, R, C]` to float `[N]`, in batches."""
    what = (
        stage_spec(problem.config, problem.plan[-1]),
        problem.parameters,
        problem.weights,
        problem.statistics,
        device(),
    )
    if name == "published":
        score = steps.published_scorer(*what)
    else:
        score = steps.tuned_scorer(*what, precision(name, ours), True)

    def run(images: np.ndarray, batch: int) -> np.ndarray:
        batches = [
            score(to_device(images[first : first + batch]))
            for first in range(0, len(images), batch)
        ]
        return torch.cat(batches).float().numpy()

    return functools.partial(run, batch=problem.config.batch_size)


def to_device(images: np.ndarray) -> torch.Tensor:
    """Brings uint8 `[B, H, W, C]` to the device as float32 `[B, C, H, W]`."""
    moved = torch.from_numpy(images).to(device())
    return (moved.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def contestant(
    step: steps.Step, batches: Sequence[torch.Tensor], alpha: float
) -> Callable[[int], tuple[float, float]]:
    """Makes a function that takes so many steps, waits, and returns two losses."""

    def run(count: int) -> tuple[float, float]:
        last = first = step(batches[0], alpha)
        for i in range(1, count):
            last = step(batches[i % len(batches)], alpha)
        wait()
        return measure.finite(float(first), float(last))

    return run


def with_peak(work: Callable[[], T]) -> tuple[T, int | None]:
    """Returns what `work` returns, and the GPU memory that it took at most meanwhile.

    None on CPU, where the process's memory is looked at instead.
    """
    if device() == "cpu":
        return work(), None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = work()
    return result, torch.cuda.max_memory_allocated() - before
