"""Max pooling whose gradient needs only its argument and its result.

`reduce_window`'s gradient (select_and_scatter) is slow on every backend; that of
compares and selects keeps the compares from the forward pass, or makes them by another
pass over the argument.
"""

import functools
import operator

import jax
import jax.numpy as jnp

from dpa_jax.ops import triton
from dpa_jax.ops.activations import relu

_TILE = 4096  # numbers that a program of the kernel takes


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


def _gradient(x, g):
    _, back = jax.vjp(lambda x: relu(max_pool2(x)), x)
    return back(g)[0]


_maxima_rectified.defvjp(
    lambda x: (_maxima_rectified(x), x),
    lambda x, g: (triton.choose(gradient_kernel, _gradient, x, g),),
)


def gradient_kernel(
    x: jax.Array, g: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Computes the gradient of `rectified_max_pool2`, reading each number once.

    Args:
      x: `[B, H, W, c]`, H and W even, c a power of two.
      g: of the result, `[B, H // 2, W // 2, c]`.
      interpret: see `triton.launch`.

    Returns:
      Of `x`.
    """
    _, _, w, c = x.shape
    count, tile = x.size // (4 * c), max(1, _TILE // c)

    def body(x_ref, g_ref, y_ref):
        m = triton.program() * tile + triton.numbers(tile, 0)
        channel = triton.numbers(c, 1)
        place = m * c + channel
        exists = jnp.broadcast_to(m < count, place.shape)
        row, column = triton.split(m, w // 2)
        first = (row * (2 * w) + column * 2) * c + channel
        corners = [first + (i * w + j) * c for i in (0, 1) for j in (0, 1)]
        values = [triton.load(x_ref, corner, exists) for corner in corners]
        most, left = functools.reduce(jnp.maximum, values), jnp.zeros((), g.dtype)
        left = jnp.where(most > 0, triton.load(g_ref, place, exists), left)
        for corner, value in zip(corners, values, strict=True):
            is_first = value == most
            triton.store(y_ref, corner, jnp.where(is_first, left, 0), exists)
            left = jnp.where(is_first, jnp.zeros_like(left), left)

    programs = triton.ceil_div(count, tile)
    results = [(x.size, g.dtype)]
    (y,) = triton.launch(
        body, [x, g], results, programs, name="unpool", interpret=interpret
    )
    return y.reshape(x.shape)
