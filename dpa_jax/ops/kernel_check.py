"""Whether our Triton kernels compile for a device, and are right on it."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpa_jax.ops import (
    first_convolution,
    fused_block,
    fused_convolution,
    pooling,
    triton,
)
from dpa_jax.ops.activations import relu

# Images enough to give a program of a block several tiles
_SHAPE = 40, 64, 64
_SLOPE = 0.5
# Of the largest value. Numbers are small, and whole or of few binary places, so that
# little is rounded: to bfloat16, by 1/256 of itself at most
_TOLERANCE = 0.01


def compiles_for(device: Any) -> bool:
    """Returns whether our kernels compile for a device, at hand or not.

    They are for NVIDIA GPUs that know bfloat16, from Ampere on. If JAX or XLA refuses
    to compile them, for want of shared memory for instance, a warning says why.
    """
    return _compiled(device) is not None


@functools.cache
def run_on(device: Any) -> bool:
    """Returns whether our kernels compile for a device at hand and are right there.

    All of them are run once and compared with JAX's own convolutions. If they differ,
    as they may by an error of a compiler that they were never tried with, a warning
    says so.
    """
    run = _compiled(device)
    if run is None:
        return False
    with jax.default_device(device):
        return agree(run, device.device_kind)


def agree(run: Callable[..., Any], kind: str) -> bool:
    """Returns whether what kernels compute is right but for rounding; warns if not.

    Args:
      run: computes `_results` of operations from `_arrays`.
      kind: of the device that it runs on.
    """
    arrays = _arrays()
    exact = jax.tree.map(lambda a: a.astype(jnp.float32), arrays)
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(functools.partial(_results, _PLAIN))(exact)
    are_right = [
        bool((jnp.abs(a - b) <= _TOLERANCE * jnp.maximum(1, jnp.abs(b).max())).all())
        for a, b in zip(run(arrays), expected, strict=True)
    ]
    if all(are_right):
        return True
    wrong = len(are_right) - sum(are_right)
    _warn(f"are wrong on {kind}", f"{wrong} of {len(are_right)} arrays differ")
    return False


@functools.cache
def _compiled(device: Any) -> Callable[..., Any] | None:
    capability = getattr(device, "compute_capability", None) or ""
    if not capability[:1].isdigit() or float(capability) < 8:  # AMD's have names
        return None
    try:
        if not triton.is_available:
            raise NotImplementedError(f"JAX {jax.__version__} has no Triton")
        with jax.default_device(device):
            shapes = jax.eval_shape(_arrays)
            results = functools.partial(_results, _KERNELS)
            return jax.jit(results).lower(shapes).compile()
    # JaxRuntimeError and NotImplementedError among them
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        _warn(f"do not compile for {device.device_kind}", reason)
        return None


def _warn(what: str, why: str) -> None:
    warnings.warn(
        f"our kernels {what}, cuDNN convolves in their place, which is slower: {why}",
        stacklevel=4,
    )


def _arrays() -> list[list[jax.Array]]:
    """Returns what each operation is given, bfloat16: small whole numbers."""
    most, few = 16, fused_convolution.FEWEST
    shapes = [
        [(*_SHAPE, 3), (3, 3, 3, 64), (64,)],
        [(*_SHAPE, most), *[(3, 3, most, most), (most,)] * 2],
        [(5, 8, 8, few), *[(3, 3, few, few), (few,)] * 2, (5, 8, 8, few)],
        [(*_SHAPE, most), (3, 3, most, few), (few,)],
        [(*_SHAPE, few), (3, 3, few, most), (most,)],
        [(*_SHAPE, most)],
    ]
    rng = np.random.default_rng(0)

    def array(shape):
        numbers = rng.integers(-1, 2, shape)
        if shape[:2] == (3, 3):  # mostly zeros, so that sums stay small
            numbers *= rng.random(shape) < 0.05
        return jnp.asarray(numbers, jnp.bfloat16)

    return [list(map(array, own)) for own in shapes]


def _results(
    operations: Sequence[Callable[..., jax.Array]], arrays: Sequence[Any]
) -> list[jax.Array]:
    """Returns what operations compute, and the gradients of their squares' halves."""
    found = []
    for run, own in zip(operations, arrays, strict=True):
        y, back = jax.vjp(run, *own)
        found += [y, *back(y)]
    return found


def _first(convolve, x, *parameters):
    return convolve(x, *jax.lax.stop_gradient(parameters))  # which never change


def _block(run, x, *parameters):
    *parameters, skip = parameters if len(parameters) == 5 else (*parameters, None)
    return run(x, tuple(parameters[:2]), tuple(parameters[2:]), skip, slope=_SLOPE)


_KERNELS = (
    functools.partial(_first, first_convolution.convolve_rectified),
    *[functools.partial(_block, fused_block.block)] * 2,
    *[functools.partial(fused_convolution.convolve, slope=_SLOPE)] * 2,
    lambda x: pooling.rectified_max_pool2(x, "cuda"),
)
_PLAIN = (
    functools.partial(_first, lambda *own: relu(fused_convolution.plain(*own))),
    *[functools.partial(_block, fused_block.plain)] * 2,
    *[functools.partial(fused_convolution.plain, slope=_SLOPE)] * 2,
    lambda x: relu(pooling.max_pool2(x)),
)
