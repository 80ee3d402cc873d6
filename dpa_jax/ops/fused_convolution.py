"""A 3x3 convolution of few channels, with all that surrounds it, in one Triton kernel.

cuDNN has to be given convolutions of 4 to 16 channels as wider ones, most of whose
arithmetic is on zeros, and leaves the activation before, the sum after and the
gradients of both to kernels of their own, each of which moves every activation once
more. Here the forward pass is one kernel, and the gradients of images, kernel and bias
are another; bytes bound both, and they move each activation about once
(benchmarks/results). See `wide_pixels` for the arithmetic.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from dpa_jax.ops import triton, wide_pixels
from dpa_jax.ops.activations import leaky_relu

FEWEST = 4  # channels; fewer are filled up
_MOST = 16  # with 32, the sums of a kernel's gradient overflow a thread's registers

# Tiles of wide pixels, warps of a program, stages of its loads, and how many programs
# share the tiles: of six that were tried on an H200, with 128 images of 64 pixels and
# 16 channels, each kernel's fastest (benchmarks/results).
_FORWARD = {"tile": 128, "warps": 8, "stages": 2, "programs": 792}
_FORWARD_WIDE = {"tile": 32, "warps": 4, "stages": 3, "programs": 1056}
_GRADIENTS = {"tile": 64, "warps": 4, "stages": 2, "programs": 264}
_WIDE = 128  # channels of a wide pixel, from which on the second is used


def fits(shape: tuple[int, ...], features: int) -> bool:
    """Returns whether a kernel takes `[B, H, W, c]` to `[B, H, W, features]`."""
    *_, width, channels = shape
    few, many = sorted(max(FEWEST, n) for n in (channels, features))
    are_powers = all(n == triton.power_of_two(n) for n in (few, many))
    is_addressable = triton.reaches(*shape[:3], many)
    is_whole = width % wide_pixels.count(few, many) == 0
    return are_powers and many <= _MOST and is_whole and is_addressable


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    skip: jax.Array | None = None,
    *,
    slope: float = 1.0,
    passes: bool = False,
) -> Any:
    """Applies LeakyReLU, convolves images padded with zeros, and adds bias and skip.

    Has a gradient in reverse mode, of the first order.

    Args:
      x: `[B, H, W, c]`, for which it `fits`.
      kernel: `[3, 3, c, f]`, in the dtype of `x`.
      bias: `[f]`, likewise.
      skip: `[B, H, W, f]`, likewise, or None.
      slope: of the LeakyReLU, from 0 to 1, which is none.
      passes: whether `x` is returned as well. Where a skip connection goes on from it,
        its gradient then joins the convolution's in the kernel.

    Returns:
      `[B, H, W, f]`; with `passes` a pair of that and `x`.
    """
    c, f = kernel.shape[2:]
    if min(c, f) >= FEWEST:
        y, beside = _convolve(x, kernel, bias, skip, slope, passes)
        return (y, beside) if passes else y
    arrays = filled(x, FEWEST), filled(kernel, FEWEST, FEWEST), filled(bias, FEWEST)
    y, _ = _convolve(*arrays, None, slope, False)
    y = y[..., :f] if skip is None else skip + y[..., :f]
    return (y, x) if passes else y


def filled(array: jax.Array, *sizes: int) -> jax.Array:
    """Returns an array whose last axes have at least these sizes, zeros at the end."""
    own = array.shape[-len(sizes) :]
    added = [(0, max(0, size - n)) for size, n in zip(sizes, own, strict=True)]
    return jnp.pad(array, [(0, 0)] * (array.ndim - len(sizes)) + added)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _convolve(x, kernel, bias, skip, slope, passes):
    return _forward(x, kernel, bias, skip, slope, passes)[0]


def _forward(x, kernel, bias, skip, slope, passes):
    run = functools.partial(forward_kernel, slope=slope)
    others = functools.partial(plain, slope=slope)
    y = triton.choose(run, others, x, kernel, bias, skip)
    return (y, x if passes else None), (x, kernel, bias, skip)


def _backward(slope, passes, saved, cotangents):
    x, kernel, bias, skip = saved
    run = functools.partial(gradients_kernel, slope=slope)
    others = functools.partial(_plain_gradients, slope=slope)
    found = triton.choose(run, others, x, kernel, bias, *cotangents)
    return *found, None if skip is None else cotangents[0]


_convolve.defvjp(_forward, _backward)


def plain(x, kernel, bias, skip=None, slope=1.0):
    """Computes what `convolve` does by JAX's own convolution."""
    y = jax.lax.conv_general_dilated(
        leaky_relu(x, slope),
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + bias if skip is None else skip + (y + bias)


def _plain_gradients(x, kernel, bias, g, beside, *, slope):
    run = functools.partial(plain, skip=None, slope=slope)
    _, back = jax.vjp(run, x, kernel, bias)
    by_x, by_kernel, by_bias = back(g)
    return by_x if beside is None else by_x + beside, by_kernel, by_bias


# --- kernels


def forward_kernel(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    skip: jax.Array | None,
    *,
    slope: float,
    rectifies: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """Convolves images as `convolve` does, by the kernel.

    Args:
      x: see `convolve`, as all up to `slope`; more features are fine.
      kernel: see there.
      bias: see there.
      skip: see there.
      slope: see there.
      rectifies: whether to apply ReLU at the end.
      interpret: see `triton.launch`.

    Returns:
      `[B, H, W, f]`.
    """
    c, f = kernel.shape[2:]
    pixels = wide_pixels.count(c, f)
    count = x.size // (c * pixels)
    how = _FORWARD if pixels * f < _WIDE else _FORWARD_WIDE
    tile, turns, programs, how = wide_pixels.shared_out(count, **how)

    def body(x_ref, kernel_ref, bias_ref, *rest):
        *skip_refs, y_ref = rest
        first = triton.program() * (tile * turns)
        bands = wide_pixels.load_bands(kernel_ref, c, f)
        added = wide_pixels.load_bias(bias_ref, c, f)

        def turn(number, _):
            m = first + number * tile + triton.numbers(tile)
            windows = wide_pixels.load_windows(x_ref, m, x.shape, m < count, pixels)
            windows = (activated(seen, slope) for seen in windows)
            total = wide_pixels.convolved(windows, bands, added)
            place, exists = wide_pixels.places(m, m < count, pixels * f)
            for ref in skip_refs:
                total += triton.load(ref, place, exists).astype(jnp.float32)
            if rectifies:
                total = jnp.maximum(total, 0)
            triton.store(y_ref, place, total, exists)
            return 0

        jax.lax.fori_loop(0, turns, turn, 0)

    arrays = [x, kernel.transpose(3, 0, 1, 2), bias]
    arrays += [] if skip is None else [skip]
    shape = (*x.shape[:3], f)
    (y,) = triton.launch(
        body,
        arrays,
        [(math.prod(shape), x.dtype)],
        programs,
        name="convolve",
        interpret=interpret,
        **how,
    )
    return y.reshape(shape)


def gradients_kernel(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    g: jax.Array,
    beside: jax.Array | None,
    *,
    slope: float,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes all gradients of `convolve` by the kernel.

    Each program adds up the kernel's gradient over its own pixels, and what the
    programs found is added up by XLA, in an order that is always the same.

    Args:
      x: see `convolve`, as all up to `bias`.
      kernel: see there.
      bias: see there.
      g: gradient of the result, `[B, H, W, f]`.
      beside: gradient of `x` from elsewhere, `[B, H, W, c]`, or None.
      slope: see `convolve`.
      interpret: see `triton.launch`.

    Returns:
      Gradients of `x`, `beside` included, of the kernel, and of the bias.
    """
    c, f = kernel.shape[2:]
    pixels = wide_pixels.count(c, f)
    count = x.size // (c * pixels)
    tile, turns, programs, how = wide_pixels.shared_out(count, **_GRADIENTS)
    size = wide_pixels.sums_size(c, f)

    def body(x_ref, g_ref, kernel_ref, *rest):
        *beside_refs, by_x_ref, sums_ref = rest
        program = triton.program()
        first = program * (tile * turns)
        bands = wide_pixels.load_turned_bands(kernel_ref, c, f)

        def turn(number, sums):
            m = first + number * tile + triton.numbers(tile)
            place, exists = wide_pixels.places(m, m < count, pixels * c)
            own = triton.load(x_ref, place, exists)
            total, sums = wide_pixels.gradients(
                wide_pixels.load_windows(g_ref, m, g.shape, m < count, pixels),
                bands,
                activated(own, slope),
                sums,
            )
            total = jnp.where(own > 0, total, slope * total)
            for ref in beside_refs:
                total += triton.load(ref, place, exists).astype(jnp.float32)
            triton.store(by_x_ref, place, total, exists)
            return sums

        sums = jax.lax.fori_loop(0, turns, turn, wide_pixels.no_sums(c, f))
        wide_pixels.store_sums(sums_ref, program * size, sums, c, f, interpret)

    arrays = [x, g, kernel.transpose(3, 0, 1, 2)]
    arrays += [] if beside is None else [beside]
    by_x, sums = triton.launch(
        body,
        arrays,
        [(x.size, x.dtype), (programs * size, jnp.float32)],
        programs,
        name="gradients",
        interpret=interpret,
        **how,
    )
    sums = sums.reshape(programs, 1, size)
    ((by_kernel, by_bias),) = wide_pixels.added_up(sums, c, f, x.dtype)
    return by_x.reshape(x.shape), by_kernel, by_bias


def activated(x: jax.Array, slope: float) -> jax.Array:
    """Applies LeakyReLU within a kernel."""
    return x if slope == 1 else jnp.maximum(x, jnp.asarray(slope, x.dtype) * x)
