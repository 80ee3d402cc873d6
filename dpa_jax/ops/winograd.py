"""3x3 convolutions with frozen kernels by Winograd's F(4x4, 3x3), for CPUs.

Lavin and Gray, 2016: a tile of 4x4 results takes 36 multiplications instead of 144.
Polynomials are evaluated at 0, 1, -1, 1/2, -2 and infinity (Barabasz et al., 2020): in
float32 results are 2e-6 to 5e-6 of the largest one off, against 6e-6 to 1.5e-5 with 2
and -2 and 5e-7 of a direct convolution (VGG19's layers, random numbers).
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

TILE = 4

# Images are taken in blocks of at most so many pixels, so that what a block needs stays
# in the cache: 128 images of 16x16 with 128 channels took 48 ms at once and 35 so (two
# cores of an AMD EPYC with 32 MB of cache, JAX 0.10.2).
_BLOCK = 8192
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)  # and infinity


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what takes tiles (6x6), kernels (6x3) and products (4x6) across."""

    def values(degree):
        powers = np.vander(_POINTS, degree + 1, increasing=True)
        return np.vstack([powers, np.eye(degree + 1)[-1]])

    inputs, kernels = np.linalg.inv(values(5)).T, values(2)
    inputs[np.abs(inputs) < 1e-9] = 0  # but for rounding
    # a row may move a factor to the kernels: powers of two, so that rows are alike
    factors = 2.0 ** np.round(np.log2(np.abs(inputs).max(axis=1, keepdims=True)))
    return inputs / factors, kernels * factors, values(TILE - 1).T


_INPUTS, _KERNELS, _RESULTS = _matrices()


def transform(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Prepares a kernel, once for all convolutions with it.

    Args:
      kernel: float32 `[3, 3, c, f]`.

    Returns:
      `[36, c, f]` for the convolution and `[36, f, c]` for its gradient, which is the
      convolution with the kernel turned around.
    """

    def one(kernel):
        matrix = jnp.asarray(_KERNELS, kernel.dtype)
        found = jnp.einsum(
            "iy,jx,yxcf->ijcf", matrix, matrix, kernel, precision="highest"
        )
        return found.reshape(-1, *kernel.shape[2:])

    return one(kernel), one(kernel[::-1, ::-1].swapaxes(2, 3))


@jax.custom_vjp
def convolve(x: jax.Array, kernel: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Convolves images, padded with zeros, with a prepared kernel.

    Args:
      x: `[B, H, W, c]`.
      kernel: see `transform`; taken to be constant, no gradient flows into it.

    Returns:
      `[B, H, W, f]`.
    """
    b, h, w, c = x.shape
    if b > 1 and b * h * w > _BLOCK:
        most = max(1, _BLOCK // (h * w))
        block = max(n for n in range(1, most + 1) if b % n == 0)
        blocks = x.reshape(-1, block, h, w, c)
        results = jax.lax.map(lambda x: convolve(x, kernel), blocks)
        return results.reshape(b, h, w, -1)
    rows, columns = -(-h // TILE), -(-w // TILE)
    high, wide = rows * TILE, columns * TILE
    x = jnp.pad(x, ((0, 0), (1, 1 + high - h), (1, 1 + wide - w), (0, 0)))
    # tiles of 6x6 overlap by 2; one axis after the other, the second for all six of the
    # first at once, which compiles three times as fast as each apart
    lines = _combine(_INPUTS, [x[:, :, i : i + wide - 3 : TILE] for i in range(6)])
    tiles = _combine(_INPUTS, [lines[:, :, i : i + high - 3 : TILE] for i in range(6)])
    # [6, 6, B, rows, columns, c]
    products = jnp.einsum("ktc,kcf->ktf", tiles.reshape(36, -1, c), kernel[0])
    products = products.reshape(6, 6, b, rows, columns, -1)
    lines = _combine(_RESULTS, list(products))  # [4, 6, B, rows, columns, f]
    results = _combine(_RESULTS, [lines[:, i] for i in range(6)])
    return results.transpose(2, 3, 1, 4, 0, 5).reshape(b, high, wide, -1)[:, :h, :w]


def _forward(x, kernel):
    return convolve(x, kernel), kernel


def _backward(kernel, gradient):
    return convolve(gradient, kernel[::-1]), jax.tree.map(jnp.zeros_like, kernel)


convolve.defvjp(_forward, _backward)


def _combine(matrix: np.ndarray, terms: list[jax.Array]) -> jax.Array:
    """Stacks the rows of `matrix` times `terms`, without the products that are 0."""
    rows = [
        functools.reduce(
            operator.add,
            [
                term if factor == 1 else term * factor.astype(term.dtype)
                for factor, term in zip(row, terms, strict=True)
                if factor
            ],
        )
        for row in matrix
    ]
    return jnp.stack(rows)
