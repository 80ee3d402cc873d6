"""3x3 convolutions of few channels as products of matrices, for Triton kernels.

A few pixels of a row are one wide pixel. What such a one sees of a row, its window,
lies side by side in memory, so that a convolution is three products of matrices, one
for each row of the kernel: `[wide pixels, window * c]` by `[window * c, pixels * f]`.
Wide pixels are numbered through all images, row by row.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dpa_jax.ops import triton

_NOWHERE = 2**31 - 1
_ONES = 16  # rows of a product with ones, the fewest there may be


def count(*channels: int) -> int:
    """Returns how many pixels are one wide one: with 16 channels at least."""
    return max(2, 16 // min(channels))


def _window(pixels: int) -> int:
    """Returns how many pixels of a row are read for a wide one; a power of two.

    The first is the one before it. Those beyond the one after it count nothing.
    """
    return triton.power_of_two(pixels + 2)


def shared_out(
    total: int, tile: int, programs: int, **how: int
) -> tuple[int, int, int, dict[str, int]]:
    """Returns the tile, tiles of a program, how many run, and how they are launched."""
    turns = triton.ceil_div(triton.ceil_div(total, tile), programs)
    return tile, turns, triton.ceil_div(total, tile * turns), how


# --- within a kernel


def places(m: jax.Array, exists: jax.Array, channels: int) -> tuple[Any, Any]:
    """Returns where wide pixels lie, and which there are, both `[M, channels]`.

    Args:
      m: their numbers, `[M]`.
      exists: whether there are such, `[M]`.
      channels: of a wide pixel.
    """
    place = (m * channels)[:, None] + triton.numbers(channels, 1)
    return place, jnp.broadcast_to(exists[:, None], place.shape)


def load_windows(
    ref: Any,
    m: jax.Array,
    shape: Sequence[int],
    exists: jax.Array,
    pixels: int,
    where: Callable[[jax.Array], jax.Array] = lambda m: m,
) -> Iterator[jax.Array]:
    """Loads what wide pixels see of the row above, of their own and of that below.

    Each row is loaded when it is asked for.

    Args:
      ref: to the images.
      m: see `places`.
      shape: of the images, `[B, H, W, c]`.
      exists: see `places`.
      pixels: of a wide one.
      where: from the number of a wide pixel to its place in `ref`, in wide pixels.

    Yields:
      `[M, window * c]`, 0 outside their image.
    """
    _, height, width, c = shape
    before, column = triton.split(m, width // pixels)
    _, own_row = triton.split(before, height)
    place = triton.numbers(_window(pixels) * c, 1)
    v, _ = triton.split(place, c)
    x = (column * pixels - 1)[:, None] + v
    is_inside = (x >= 0) & (x < width) & exists[:, None]
    if _window(pixels) > pixels + 2:
        is_inside &= v < pixels + 2
    for row in (-1, 0, 1):
        y = own_row + row
        first = where(m + row * (width // pixels)) * (pixels * c) - c
        is_seen = is_inside & ((y >= 0) & (y < height))[:, None]
        yield triton.load(ref, first[:, None] + place, is_seen)


def load_bands(ref: Any, c: int, f: int) -> list[jax.Array]:
    """Loads the matrices that take windows to wide pixels, one for each row.

    Args:
      ref: to the kernel, `[f, 3, 3, c]`.
      c: channels in.
      f: channels out.

    Returns:
      `[window * c, pixels * f]`, zero where a pixel does not see another.
    """
    pixels = count(c, f)
    v, channel = triton.split(triton.numbers(_window(pixels) * c, 0), c)
    u, feature = triton.split(triton.numbers(pixels * f, 1), f)
    return [
        triton.load(
            ref,
            ((feature * 3 + row) * 3 + v - u) * c + channel,
            (v >= u) & (v < u + 3),
        )
        for row in range(3)
    ]


def load_turned_bands(ref: Any, c: int, f: int) -> list[jax.Array]:
    """Loads the matrices that take windows of a gradient back to wide pixels.

    `[window * f, pixels * c]`, of the kernel turned by half a turn; see `load_bands`.
    """
    pixels = count(c, f)
    v, feature = triton.split(triton.numbers(_window(pixels) * f, 0), f)
    u, channel = triton.split(triton.numbers(pixels * c, 1), c)
    return [
        triton.load(
            ref,
            ((feature * 3 + 2 - row) * 3 + 2 + u - v) * c + channel,
            (v >= u) & (v < u + 3),
        )
        for row in range(3)
    ]


def load_bias(ref: Any, c: int, f: int) -> jax.Array:
    """Loads the bias of wide pixels, `[1, pixels * f]`, float32; see `load_bands`."""
    _, feature = triton.split(triton.numbers(count(c, f) * f), f)
    return triton.load(ref, feature).astype(jnp.float32)[None]


def convolved(
    windows: Iterable[jax.Array], bands: Sequence[jax.Array], bias: jax.Array
) -> jax.Array:
    """Convolves: `[M, pixels * f]`, float32.

    Args:
      windows: what the wide pixels see of the row above, their own, and that below.
      bands: see `load_bands`.
      bias: see `load_bias`.
    """
    return sum(map(triton.dot, windows, bands), bias)


def no_sums(c: int, f: int) -> tuple[jax.Array, ...]:
    """Returns the sums of a kernel's and a bias's gradient, before any pixel."""
    pixels = count(c, f)
    zero = jnp.zeros((_window(pixels) * f, pixels * c), jnp.float32)
    return zero, zero, zero, jnp.zeros((_ONES, _window(pixels) * f), jnp.float32)


def gradients(
    windows: Iterable[jax.Array],
    bands: Sequence[jax.Array],
    active: jax.Array,
    sums: Sequence[jax.Array],
    is_own: jax.Array | None = None,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Computes a convolution's gradients at some wide pixels.

    Args:
      windows: what the wide pixels see of the result's gradient, by row.
      bands: see `load_turned_bands`.
      active: what was convolved, `[M, pixels * c]`.
      sums: see `no_sums`.
      is_own: which pixels are to be added to the sums, `[M]`; None for all.

    Returns:
      The gradient of `active`, float32, and the sums with that of these pixels.
    """
    *by_row, by_bias = sums
    ones = jnp.ones((_ONES, len(active)), active.dtype)
    if is_own is not None:
        active = jnp.where(is_own[:, None], active, jnp.zeros_like(active))
        ones = jnp.where(is_own[None], ones, jnp.zeros_like(ones))
    total = jnp.zeros(active.shape, jnp.float32)
    for row, (seen, band) in enumerate(zip(windows, bands, strict=True)):
        total += triton.dot(seen, band)
        by_row[row] += triton.dot(seen, active, axis=0)
        if row == 1:
            by_bias += triton.dot(ones, seen)
    return total, (*by_row, by_bias)


def sums_size(c: int, f: int) -> int:
    """Returns how many numbers a program stores of its sums."""
    return 9 * c * f + f


def store_sums(
    ref: Any,
    first: jax.Array,
    sums: Sequence[jax.Array],
    c: int,
    f: int,
    interpret: bool,
) -> None:
    """Stores the sums of a program, to be added up with the others'.

    Args:
      ref: to those of all programs.
      first: the place of this one's.
      sums: see `no_sums`.
      c: channels in.
      f: channels out.
      interpret: see `triton.launch`.
    """
    *by_row, by_bias = sums
    pixels = count(c, f)
    # pixel u of a wide one, and v of its window, which begins one before it: the
    # latter saw the former through column u - v + 2 of the kernel
    v, feature = triton.split(triton.numbers(_window(pixels) * f, 0), f)
    u, channel = triton.split(triton.numbers(pixels * c, 1), c)
    column = u - v + 2
    is_seen = (column >= 0) & (column < 3)
    of_window, own = triton.split(triton.numbers(_window(pixels) * f), f)
    by_bias = by_bias.sum(0) / _ONES  # rows are equal
    for pixel in range(pixels):
        if pixel:
            triton.wait(interpret)
        for row in range(3):
            place = first + ((feature * 3 + 2 - row) * 3 + column) * c + channel
            _add(ref, place, by_row[row], is_seen & (u == pixel), pixel > 0)
        place = first + 9 * c * f + own
        _add(ref, place, by_bias, of_window == pixel + 1, pixel > 0)


def _add(ref, place, values, exists, is_begun: bool):
    if is_begun:
        values += triton.load(ref, place, exists)
    # JAX's interpreter stores what there was at places that do not exist
    triton.store(ref, jnp.where(exists, place, _NOWHERE), values, exists)


# --- after it


def added_up(sums: jax.Array, c: int, f: int, dtype: Any) -> list[Any]:
    """Adds up what programs stored, with one reduction.

    Args:
      sums: `[programs, convolutions, sums_size]`.
      c: channels in.
      f: channels out.
      dtype: of the gradients.

    Returns:
      Of each convolution the gradients of kernel `[3, 3, c, f]` and bias `[f]`.
    """
    found = sums.sum(0).astype(dtype)
    return [
        (one[:-f].reshape(f, 3, 3, c).transpose(1, 2, 3, 0), one[-f:]) for one in found
    ]
