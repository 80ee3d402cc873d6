"""A 3x3 convolution of few channels, with all that surrounds it, in one Triton kernel.

cuDNN has to be given convolutions of 4 to 16 channels as wider ones, most of whose
arithmetic is on zeros, and leaves the activation before, the sum after and the
gradients of both to kernels of their own, each of which moves every activation once
more. Here the forward pass is one kernel, and the gradients of images, kernel and bias
are another; bytes bound both, and they move each activation about once
(benchmarks/results).

A few pixels of a row are one wide pixel. What such a one sees of a row, its window,
lies side by side in memory, so that the convolution is three products of matrices, one
for each row of the kernel: `[wide pixels, window * c]` by `[window * c, pixels * f]`.
"""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from dpa_jax.ops import triton
from dpa_jax.ops.activations import leaky_relu

FEWEST = 4  # channels; fewer are filled up
_MOST = 16  # with 32, the sums of a kernel's gradient overflow a thread's registers
_ONES = 16  # rows of a product with ones, the fewest there may be

# Tiles of wide pixels, warps of a program, stages of its loads, and how many programs
# share the tiles: of six that were tried on an H200, with 128 images of 64 pixels and
# 16 channels, each kernel's fastest (benchmarks/results).
_FORWARD = {"tile": 128, "warps": 8, "stages": 2, "programs": 792}
_FORWARD_WIDE = {"tile": 32, "warps": 4, "stages": 3, "programs": 1056}
_GRADIENTS = {"tile": 64, "warps": 4, "stages": 2, "programs": 264}
_WIDE = 128  # channels of a wide pixel, from which on the second is used


@functools.cache
def compiles_for(device: Any) -> bool:
    """Returns whether our kernels compile for a device, at hand or not.

    They are for NVIDIA GPUs that know bfloat16, from Ampere on. If JAX or XLA refuses
    to compile those that take most shared memory, which a GPU may lack, a warning says
    why.
    """
    capability = getattr(device, "compute_capability", None) or ""
    if not capability[:1].isdigit() or float(capability) < 8:  # AMD's have names
        return False

    def run(x, first, second):
        y = convolve(x, first, jnp.zeros(FEWEST, x.dtype))
        return convolve(y, second, jnp.zeros(_MOST, x.dtype)).sum()

    run = jax.grad(run, (0, 1, 2))
    shapes = (1, 4, 4, _MOST), (3, 3, _MOST, FEWEST), (3, 3, FEWEST, _MOST)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    try:
        if not triton.is_available:
            raise NotImplementedError(f"JAX {jax.__version__} has no Triton")
        with jax.default_device(device):
            jax.jit(run).lower(*arguments).compile()
    # JaxRuntimeError and NotImplementedError among them
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"our kernels do not compile for {device.device_kind}, cuDNN convolves in "
            f"their place, which is slower: {reason}",
            stacklevel=2,
        )
        return False
    return True


def fits(shape: tuple[int, ...], features: int) -> bool:
    """Returns whether a kernel takes `[B, H, W, c]` to `[B, H, W, features]`."""
    *_, width, channels = shape
    few, many = sorted(max(FEWEST, n) for n in (channels, features))
    are_powers = all(n == triton.power_of_two(n) for n in (few, many))
    is_addressable = triton.reaches(*shape[:3], many)
    is_whole = width % _pixels(few, many) == 0
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
    b, height, width, c = x.shape
    f = kernel.shape[3]
    pixels = _pixels(c, f)
    how, count = (
        _FORWARD if pixels * f < _WIDE else _FORWARD_WIDE,
        x.size // (c * pixels),
    )
    tile, turns, programs, how = _shared_out(count, **how)

    def body(x_ref, kernel_ref, bias_ref, *rest):
        *skip_refs, y_ref = rest
        first = triton.program() * (tile * turns)
        bands = [_load_band(kernel_ref, row, c, f, pixels) for row in range(3)]
        _, feature = triton.split(triton.numbers(pixels * f), f)
        added = triton.load(bias_ref, feature).astype(jnp.float32)[None]

        def turn(number, _):
            m = first + number * tile + triton.numbers(tile)
            total = jnp.zeros((tile, pixels * f), jnp.float32)
            for row, band in enumerate(bands):
                seen = _load_windows(x_ref, m, count, row - 1, x.shape, pixels)
                total += triton.dot(_activated(seen, slope), band)
            total += added
            place, exists = _places(m, count, pixels * f)
            for ref in skip_refs:
                total += triton.load(ref, place, exists).astype(jnp.float32)
            if rectifies:
                total = jnp.maximum(total, 0)
            triton.store(y_ref, place, total, exists)
            return 0

        jax.lax.fori_loop(0, turns, turn, 0)

    arrays = [x, kernel.transpose(3, 0, 1, 2), bias]
    arrays += [] if skip is None else [skip]
    (y,) = triton.launch(
        body,
        arrays,
        [(b * height * width * f, x.dtype)],
        programs,
        name="convolve",
        interpret=interpret,
        **how,
    )
    return y.reshape(b, height, width, f)


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
    _, height, width, c = x.shape
    f = kernel.shape[3]
    pixels = _pixels(c, f)
    window, count = _window(pixels), x.size // (c * pixels)
    tile, turns, programs, how = _shared_out(count, **_GRADIENTS)
    length = 9 * c * f + f  # of one sum of the gradients of kernel and bias

    def body(x_ref, g_ref, kernel_ref, *rest):
        *beside_refs, by_x_ref, sums_ref = rest
        own_program = triton.program()
        first = own_program * (tile * turns)
        ones = jnp.ones((_ONES, tile), x.dtype)
        bands = [_load_turned_band(kernel_ref, row, c, f, pixels) for row in range(3)]

        def turn(number, sums):
            *by_row, by_bias = sums
            m = first + number * tile + triton.numbers(tile)
            place, exists = _places(m, count, pixels * c)
            own = triton.load(x_ref, place, exists)
            active = _activated(own, slope)
            total = jnp.zeros((tile, pixels * c), jnp.float32)
            for row, band in enumerate(bands):
                seen = _load_windows(g_ref, m, count, row - 1, g.shape, pixels)
                total += triton.dot(seen, band)
                by_row[row] += triton.dot(seen, active, axis=0)
                if row == 1:
                    by_bias += triton.dot(ones, seen)
            total = jnp.where(own > 0, total, slope * total)
            for ref in beside_refs:
                total += triton.load(ref, place, exists).astype(jnp.float32)
            triton.store(by_x_ref, place, total, exists)
            return *by_row, by_bias

        zero = jnp.zeros((window * f, pixels * c), jnp.float32)
        sums = zero, zero, zero, jnp.zeros((_ONES, window * f), jnp.float32)
        *by_row, by_bias = jax.lax.fori_loop(0, turns, turn, sums)
        # pixel u of a wide one, and v of its window, which begins one before it: the
        # latter saw the former through column u - v + 2 of the kernel. Each u has a sum
        v, feature = triton.split(triton.numbers(window * f, 0), f)
        u, channel = triton.split(triton.numbers(pixels * c, 1), c)
        column, start = u - v + 2, (own_program * pixels + u) * length
        for row in range(3):
            place = start + ((feature * 3 + 2 - row) * 3 + column) * c + channel
            exists = (column >= 0) & (column < 3)
            triton.store(sums_ref, place, by_row[row], exists)
        v, feature = triton.split(triton.numbers(window * f), f)
        place = (own_program * pixels + v - 1) * length + 9 * c * f + feature
        by_bias = by_bias.sum(0) / _ONES  # rows are equal
        triton.store(sums_ref, place, by_bias, (v > 0) & (v <= pixels))

    arrays = [x, g, kernel.transpose(3, 0, 1, 2)]
    arrays += [] if beside is None else [beside]
    by_x, sums = triton.launch(
        body,
        arrays,
        [(x.size, x.dtype), (programs * pixels * length, jnp.float32)],
        programs,
        name="gradients",
        interpret=interpret,
        **how,
    )
    sums = sums.reshape(-1, length).sum(0)
    by_kernel = sums[:-f].reshape(f, 3, 3, c).transpose(1, 2, 3, 0)
    return by_x.reshape(x.shape), by_kernel.astype(x.dtype), sums[-f:].astype(x.dtype)


def _shared_out(count: int, tile: int, programs: int, **how: int):
    """Returns the tile, tiles of a program, how many run, and how they are launched."""
    turns = triton.ceil_div(triton.ceil_div(count, tile), programs)
    return tile, turns, triton.ceil_div(count, tile * turns), how


def _activated(x, slope):
    return x if slope == 1 else jnp.maximum(x, jnp.asarray(slope, x.dtype) * x)


def _pixels(*channels: int) -> int:
    """Returns how many pixels are one wide one: with 16 channels at least."""
    return max(2, 16 // min(channels))


def _window(pixels: int) -> int:
    """Returns how many pixels of a row are read for a wide one; a power of two.

    The first is the one before it. Those beyond the one after it count nothing.
    """
    return triton.power_of_two(pixels + 2)


def _places(m, count: int, channels: int):
    """Returns where wide pixels lie, and which there are, both `[M, channels]`."""
    place = (m * channels)[:, None] + triton.numbers(channels, 1)
    return place, jnp.broadcast_to((m < count)[:, None], place.shape)


def _load_windows(ref, m, count: int, row: int, shape, pixels: int):
    """Loads what wide pixels see of a row: `[M, window * c]`, 0 outside their image."""
    _, height, width, c = shape
    before, column = triton.split(m, width // pixels)
    _, own_row = triton.split(before, height)
    place = triton.numbers(_window(pixels) * c, 1)
    v, _ = triton.split(place, c)
    x, y = (column * pixels - 1)[:, None] + v, own_row + row
    exists = (x >= 0) & (x < width) & ((y >= 0) & (y < height) & (m < count))[:, None]
    if _window(pixels) > pixels + 2:
        exists &= v < pixels + 2
    first = m * (pixels * c) + (row * width - 1) * c
    return triton.load(ref, first[:, None] + place, exists)


def _load_band(ref, row: int, c: int, f: int, pixels: int):
    """Loads the matrix that takes a row's windows to wide pixels.

    `[window * c, pixels * f]`, zero where a pixel does not see another.
    """
    v, channel = triton.split(triton.numbers(_window(pixels) * c, 0), c)
    u, feature = triton.split(triton.numbers(pixels * f, 1), f)
    place = ((feature * 3 + row) * 3 + v - u) * c + channel
    return triton.load(ref, place, (v >= u) & (v < u + 3))


def _load_turned_band(ref, row: int, c: int, f: int, pixels: int):
    """Loads the matrix that takes windows of a gradient back to wide pixels.

    `[window * f, pixels * c]`, of the kernel turned by half a turn.
    """
    v, feature = triton.split(triton.numbers(_window(pixels) * f, 0), f)
    u, channel = triton.split(triton.numbers(pixels * c, 1), c)
    place = ((feature * 3 + 2 - row) * 3 + 2 + u - v) * c + channel
    return triton.load(ref, place, (v >= u) & (v < u + 3))
