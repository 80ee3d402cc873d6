"""Convolutions as XLA's CPU backend is fast with them, gradients included.

That backend knows one fast arrangement, `[B, H, W, c]` by `[k, k, c, f]`. Convolutions
in others, as gradients are, it puts into this one, but not within a loop, where they
took 5 to 50 times as long (two cores, JAX 0.10.2). Here gradients are written in it.

With few channels, at the image's end of a network, they run at a tenth of the rate of
others: a matrix product takes their place.
"""

import functools
import operator

import jax
import jax.numpy as jnp

Padding = tuple[tuple[int, int], ...]
_SAME: Padding = ((1, 1), (1, 1))  # of a 3x3 kernel

# With at most so many channels in or out a convolution is a product. Two cores, AMD
# EPYC with AVX-512, JAX 0.10.2, 32 images of 64x64, ms before and after: 1 to 16
# channels 2.1 and 0.7, 16 to 1 2.9 and 0.7; gradient of 3 to 64 13 and 3.5.
_FEW_CHANNELS = 3


def convolve(
    x: jax.Array, kernel: jax.Array, padding: str | Padding = "SAME"
) -> jax.Array:
    """Convolves images, by whatever is fastest for their shapes.

    Args:
      x: `[B, H, W, c]`.
      kernel: `[k, k, c, f]`.
      padding: see `convolution.Conv`.

    Returns:
      `[B, H', W', f]`.
    """
    if padding == "SAME" and is_thin(kernel.shape):
        return product(x, kernel)
    if isinstance(padding, str):
        pairs = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (1, 1), padding)
        padding = tuple((before, after) for before, after in pairs)
    return arranged(x, kernel, padding)


def is_thin(kernel: tuple[int, ...]) -> bool:
    """Returns whether `product` is the faster with a kernel of shape `(k, k, c, f)`."""
    return kernel[:2] == (3, 3) and min(kernel[2:]) <= _FEW_CHANNELS


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def arranged(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Convolves images, and their gradients in the same arrangement.

    Args:
      x: `[B, H, W, c]`.
      kernel: `[k, k, c, f]`.
      padding: before and after, of rows and columns.

    Returns:
      `[B, H', W', f]`.
    """
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _arranged_forward(x, kernel, padding):
    return arranged(x, kernel, padding), (x, kernel)


def _arranged_backward(padding, arguments, gradient):
    x, kernel = arguments
    around = tuple(
        (size - 1 - before, size - 1 - after)
        for size, (before, after) in zip(kernel.shape, padding, strict=False)
    )
    by_x = arranged(gradient, turned(kernel), around)
    return by_x, _by_kernel(x, gradient, padding)


arranged.defvjp(_arranged_forward, _arranged_backward)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves images, padded with zeros, by one product of matrices.

    Its gradient with respect to `x` is one too, that of the kernel a convolution, which
    is faster than a product of two matrices that are long and narrow.

    Args:
      x: `[B, H, W, c]`, c or f small.
      kernel: `[3, 3, c, f]`.

    Returns:
      `[B, H, W, f]`.
    """
    c, f = kernel.shape[2:]
    if c <= f:
        return jnp.concatenate(_neighbours(x), axis=3) @ kernel.reshape(9 * c, f)
    return gathered(x @ kernel.transpose(2, 0, 1, 3).reshape(c, 9 * f))


def gathered(products: jax.Array) -> jax.Array:
    """Adds up what each pixel's neighbours have for it: `[B, H, W, 9 * f]` to f."""
    each = jnp.split(products, 9, axis=3)
    return functools.reduce(
        operator.add, [_neighbours(product)[i] for i, product in enumerate(each)]
    )


def _product_forward(x, kernel):
    return product(x, kernel), (x, kernel)


def _product_backward(arguments, gradient):
    x, kernel = arguments
    return product(gradient, turned(kernel)), _by_kernel(x, gradient, _SAME)


product.defvjp(_product_forward, _product_backward)


def _by_kernel(x: jax.Array, gradient: jax.Array, padding: Padding) -> jax.Array:
    # the channels are the images here, and the images the channels
    found = arranged(x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), padding)
    return found.transpose(1, 2, 0, 3)


def turned(kernel: jax.Array) -> jax.Array:
    """Returns the kernel that takes a gradient back to the images."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _neighbours(x: jax.Array) -> list[jax.Array]:
    """Returns of every pixel its nine neighbours, zero outside: nine like `x`."""
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
