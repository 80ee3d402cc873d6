"""Max pooling whose gradient needs its argument and its result alone, or less.

`reduce_window`'s gradient (select_and_scatter) is slow on every backend; that of
compares and selects keeps the compares from the forward pass, or makes them by another
pass over the argument. Kernels for GPUs keep which place of each window won.
"""

import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp

from dpa_jax.ops import triton
from dpa_jax.ops.activations import relu

_TILE = 4096  # maxima that a program of the kernels has
_NONE = 4  # where nothing of a window is positive


@jax.custom_jvp
def max_pool2(x: jax.Array) -> jax.Array:
    """Returns the maxima of windows of 2x2; an odd last row or column is left out.

    Of equal maxima the first in reading order gets the gradient, as in PyTorch.

    Args:
      x: `[B, H, W, c]`.

    Returns:
      `[B, H // 2, W // 2, c]`.
    """
    return functools.reduce(jnp.maximum, _corners(x))


@max_pool2.defjvp
def _max_pool2_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    y = max_pool2(x)
    is_taken, parts = jnp.zeros(y.shape, bool), []
    for value, part in zip(_corners(x), _corners(tangent), strict=True):
        is_first = (value == y) & ~is_taken
        is_taken |= is_first
        parts.append(jnp.where(is_first, part, 0))
    return y, functools.reduce(operator.add, parts)


def _corners(x: jax.Array) -> list[jax.Array]:
    """Returns the four places of every window, in reading order."""
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
    return [x[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


def rectified_max_pool2(x: jax.Array, backend: str) -> jax.Array:
    """Returns the maxima of ReLU.

    They are ReLU of the maxima, as which the kernel's arrangement computes them: there
    fewer numbers are rectified, and masked in the gradient.

    Args:
      x: `[B, H, W, c]`.
      backend: see `Compute`.

    Returns:
      `[B, H // 2, W // 2, c]`.
    """
    _, h, w, c = x.shape
    is_even, is_power = not (h % 2 or w % 2), c == triton.power_of_two(c)
    if backend == "cuda" and is_even and is_power and triton.reaches(*x.shape):
        return _maxima_rectified(x)
    return max_pool2(relu(x))


@jax.custom_vjp
def _maxima_rectified(x):
    return relu(max_pool2(x))


def _forward(x):
    return triton.choose(forward_kernel, _plain, x)


def _backward(taken, g):
    return (triton.choose(gradient_kernel, _plain_gradient, taken, g),)


_maxima_rectified.defvjp(_forward, _backward)


def _plain(x):
    most, taken = _largest(_corners(x))
    return relu(most), taken.astype(jnp.int8)


def _largest(values):
    """Returns the largest of values and which is the first such, if it is positive."""
    *before, most = itertools.accumulate(values, jnp.maximum)
    first = sum(jnp.where(value < most, 1, 0) for value in before)
    return most, jnp.where(most > 0, first, _NONE)


def _plain_gradient(taken, g):
    b, h, w, c = g.shape
    parts = jnp.where(
        taken == jnp.arange(4, dtype=jnp.int8)[:, None, None, None, None], g, 0
    )
    parts = parts.reshape(2, 2, b, h, w, c).transpose(2, 3, 0, 4, 1, 5)
    return parts.reshape(b, 2 * h, 2 * w, c)


# --- kernels


def forward_kernel(
    x: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Computes `rectified_max_pool2`, and what its gradient needs to know.

    Args:
      x: `[B, H, W, c]`, H and W even, c a power of two.
      interpret: see `triton.launch`.

    Returns:
      The maxima, `[B, H // 2, W // 2, c]`, and int8 of that shape: which of each
      window's places, in reading order, gets its gradient, 4 for none.
    """
    b, h, w, c = x.shape
    shape = b, h // 2, w // 2, c

    def body(x_ref, y_ref, taken_ref):
        place, corners, exists = _windows(shape)
        most, taken = _largest(triton.load(x_ref, corner, exists) for corner in corners)
        triton.store(y_ref, place, jnp.maximum(most, 0), exists)
        triton.store(taken_ref, place, taken, exists)

    size = math.prod(shape)
    results = [(size, x.dtype), (size, jnp.int8)]
    y, taken = _launch(body, [x], results, shape, "pool", interpret)
    return y.reshape(shape), taken.reshape(shape)


def gradient_kernel(
    taken: jax.Array, g: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Computes the gradient of `rectified_max_pool2`.

    Args:
      taken: see `forward_kernel`.
      g: gradient of the maxima, `[B, H // 2, W // 2, c]`.
      interpret: see `triton.launch`.

    Returns:
      That of the images, `[B, H, W, c]`.
    """
    b, h, w, c = shape = g.shape

    def body(taken_ref, g_ref, by_x_ref):
        place, corners, exists = _windows(shape)
        own = triton.load(g_ref, place, exists)
        taken = triton.load(taken_ref, place, exists)
        for number, corner in enumerate(corners):
            part = jnp.where(taken == number, own, jnp.zeros_like(own))
            triton.store(by_x_ref, corner, part, exists)

    results = [(4 * g.size, g.dtype)]
    (by_x,) = _launch(body, [taken, g], results, shape, "unpool", interpret)
    return by_x.reshape(b, 2 * h, 2 * w, c)


def _tile(channels: int) -> int:
    return max(1, _TILE // channels)


def _windows(shape):
    """Returns where windows lie among the maxima and their corners among the images.

    And which there are; all `[tile, c]`.
    """
    b, h, w, c = shape
    m = triton.program() * _tile(c) + triton.numbers(_tile(c), 0)
    channel = triton.numbers(c, 1)
    row, column = triton.split(m, w)
    first = (row * (4 * w) + column * 2) * c + channel
    corners = [first + (i * 2 * w + j) * c for i in (0, 1) for j in (0, 1)]
    place = m * c + channel
    return place, corners, jnp.broadcast_to(m < b * h * w, place.shape)


def _launch(body, arrays, results, shape, name, interpret):
    programs = triton.ceil_div(math.prod(shape[:3]), _tile(shape[3]))
    return triton.launch(
        body, arrays, results, programs, name=name, interpret=interpret
    )
