"""Max pooling whose gradient needs only its argument and its result.

`reduce_window`'s gradient (select_and_scatter) is slow on every backend; that of
compares and selects keeps the compares from the forward pass, or makes them by another
pass over the argument.
"""

import functools
import operator

import jax
import jax.numpy as jnp


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
