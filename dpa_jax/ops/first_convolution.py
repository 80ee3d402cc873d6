"""The first convolution of a frozen backbone and its ReLU, in Triton kernels.

An image has 3 channels: cuDNN fills them up to 8, in passes of their own, and the
gradient, of 64 channels, is masked in another before it is convolved. Here the forward
pass is one kernel. The gradient is one that masks and multiplies, reading the result
and its gradient once, and a sum over nine neighbours of few channels.
"""

import jax
import jax.numpy as jnp

from dpa_jax.ops import cpu_convolution, fused_convolution, triton
from dpa_jax.ops.activations import relu

_TILE = 128  # pixels of a program of the gradient's kernel


def fits(shape: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Returns whether there are kernels for `[B, H, W, c]` and `(k, k, c, f)`."""
    *size, c, f = kernel
    is_thin = size == [3, 3] and c <= fused_convolution.FEWEST and f in (16, 32, 64)
    return is_thin and shape[2] % 4 == 0 and triton.reaches(*shape[:3], f)


@jax.custom_vjp
def convolve_rectified(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Convolves images, padded with zeros, adds the bias and applies ReLU.

    Args:
      x: `[B, H, W, c]`, for which it `fits`.
      kernel: `[3, 3, c, f]`.
      bias: `[f]`.

    Returns:
      `[B, H, W, f]`.
    """
    return triton.choose(forward_kernel, _plain, x, kernel, bias)


def _forward(x, kernel, bias):
    y = convolve_rectified(x, kernel, bias)
    return y, (x, kernel, bias, y)


def _backward(saved, g):
    x, kernel, bias, y = saved
    by_x = triton.choose(gradient_kernel, _plain_gradient, g, y, kernel)
    # not computed unless somebody asks for them
    _, back = jax.vjp(lambda *a: _plain(x, *a), kernel, bias)
    return by_x, *back(g)


convolve_rectified.defvjp(_forward, _backward)


def _plain(x, kernel, bias):
    return relu(fused_convolution.plain(x, kernel, bias))


def _plain_gradient(g, y, kernel):
    return cpu_convolution.product(
        jnp.where(y != 0, g, 0), cpu_convolution.turned(kernel)
    )


def forward_kernel(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Computes `convolve_rectified` by the kernel of `fused_convolution`."""
    fewest = fused_convolution.FEWEST
    return fused_convolution.forward_kernel(
        fused_convolution.filled(x, fewest),
        fused_convolution.filled(kernel, fewest, kernel.shape[3]),
        bias,
        None,
        slope=1.0,
        rectifies=True,
        interpret=interpret,
    )


def gradient_kernel(
    g: jax.Array, y: jax.Array, kernel: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Computes the gradient of the images.

    Args:
      g: gradient of the result, `[B, H, W, f]`.
      y: the result, likewise.
      kernel: `[3, 3, c, f]`.
      interpret: see `triton.launch`.

    Returns:
      `[B, H, W, c]`.
    """
    *leading, f = g.shape
    c = kernel.shape[2]
    count, width = g.size // f, triton.power_of_two(9 * c)
    matrix = cpu_convolution.turned(kernel).transpose(2, 0, 1, 3).reshape(f, 9 * c)
    matrix = fused_convolution.filled(matrix, width)

    def body(g_ref, y_ref, matrix_ref, products_ref):
        m = triton.program() * _TILE + triton.numbers(_TILE, 0)
        place = m * f + triton.numbers(f, 1)
        exists = jnp.broadcast_to(m < count, place.shape)
        own = triton.load(g_ref, place, exists)
        passed = triton.load(y_ref, place, exists) != 0
        own = jnp.where(passed, own, jnp.zeros_like(own))
        column = triton.numbers(width, 1)
        all_of_it = triton.load(matrix_ref, triton.numbers(f, 0) * width + column)
        place = m * width + column
        exists = jnp.broadcast_to(m < count, place.shape)
        triton.store(products_ref, place, triton.dot(own, all_of_it), exists)

    (products,) = triton.launch(
        body,
        [g, y, matrix],
        [(count * width, g.dtype)],
        triton.ceil_div(count, _TILE),
        name="products",
        interpret=interpret,
    )
    products = products.reshape(*leading, width)
    return cpu_convolution.gathered(products[..., : 9 * c])
