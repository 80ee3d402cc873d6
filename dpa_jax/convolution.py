"""The autoencoder's convolution, arranged for the accelerator that runs it.

Tensor cores multiply tiles at least 32 channels wide; the published networks have 4 to
64, so that most of a tile would be padding. In `[B, H, W, C]` neighbouring pixels of a
row lie side by side in memory: read as `[B, H, W/p, p*C]`, at no cost, p of them are
one wider pixel, and the convolution is one of p times the channels with a kernel that
is zero where it should not reach. It does p times the arithmetic on otherwise idle
units and moves the same bytes, which bound it.

On CPU XLA's convolutions of a few channels, at the image's end of a network, run at a
tenth of the rate of others: a matrix product takes their place.
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp
from flax import linen as nn

# The channels to fill, by platform: measured on an H100 (benchmarks/results); CPUs have
# nothing to fill.
_WIDTH = {"gpu": 64}

# On CPU a convolution with at most so many channels in or out is a matrix product. Two
# cores, AMD EPYC with AVX-512, JAX 0.10.2, 32 images of 64x64, ms before and after:
# 1 to 16 channels 2.1 and 0.7, 16 to 1 2.9 and 0.7; gradient of 3 to 64 13 and 3.5.
_NARROW = 3

# Kaiming normal by fan-out with the gain of LeakyReLU 0.2
_kernel_init = nn.initializers.variance_scaling(2 / (1 + 0.2**2), "fan_out", "normal")


class Conv(nn.Module):
    """A convolution with bias, initialised as published.

    Attributes:
      features: channels out.
      size: of the kernel, in pixels per side.
      padding: as `lax.conv_general_dilated` takes it.
      dtype: what is computed in; parameters are float32.
    """

    features: int
    size: int
    padding: str | tuple[tuple[int, int], ...] = "SAME"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, c]` to `[B, H', W', features]`."""
        channels = x.shape[-1]
        bound = 1 / math.sqrt(channels * self.size**2)  # as PyTorch draws biases

        def bias_init(key, shape):
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", _kernel_init, shape).astype(self.dtype)
        bias = self.param("bias", bias_init, (self.features,)).astype(self.dtype)
        pixels = 1
        if self.size == 3 and self.padding == "SAME":
            pixels = pixels_together(x.shape[2], channels, self.features)
        return convolve(x.astype(self.dtype), kernel, bias, self.padding, pixels)


def pixels_together(width: int, channels: int, features: int) -> int:
    """Chooses how many pixels of a row to treat as one, a power of two."""
    fill = _WIDTH.get(jax.default_backend(), 0)
    pixels = 1
    while 2 * pixels * max(channels, features) <= fill and width % (2 * pixels) == 0:
        pixels *= 2
    return pixels


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    padding: str | tuple[tuple[int, int], ...] = "SAME",
    pixels: int = 1,
) -> jax.Array:
    """Convolves images, several pixels of a row at once.

    Args:
      x: `[B, H, W, c]`.
      kernel: `[k, k, c, f]`.
      bias: `[f]`.
      padding: see `Conv`.
      pixels: how many of a row are treated as one; a divisor of W. More than one needs
        a 3x3 kernel and "SAME" padding. The result does not depend on it, but for
        rounding.

    Returns:
      `[B, H', W', f]`.
    """
    b, h, w, c = x.shape
    if pixels > 1:
        x = x.reshape(b, h, w // pixels, pixels * c)
        kernel, bias = widened(kernel, pixels), jnp.tile(bias, pixels)
    if padding == "SAME" and is_narrow(kernel.shape):
        y = narrow(x, kernel)
    else:
        y = _plain(x, kernel, padding)
    y = y + bias
    return y if pixels == 1 else y.reshape(b, h, w, -1)


def widened(kernel: jax.Array, pixels: int) -> jax.Array:
    """Returns the kernel that acts on `pixels` neighbours of a row as one pixel.

    Args:
      kernel: `[3, 3, c, f]`.
      pixels: p, at least 2.

    Returns:
      `[3, 3, p*c, p*f]`: of the 3p pixels that three wide ones hold, the u-th pixel of
      the middle one sees those at p+u-1 to p+u+1.
    """
    height, _, c, f = kernel.shape
    each = [
        jnp.pad(kernel, ((0, 0), (pixels + u - 1, 2 * pixels - u - 2), (0, 0), (0, 0)))
        for u in range(pixels)
    ]  # p of [3, 3p, c, f]
    return jnp.stack(each, axis=3).reshape(height, 3, pixels * c, pixels * f)


def is_narrow(shape: tuple[int, ...]) -> bool:
    """Says whether `narrow` is faster with a kernel `[k, k, c, f]`."""
    few = shape[0] == 3 and min(shape[2:]) <= _NARROW
    return few and jax.default_backend() == "cpu"


@jax.custom_vjp
def narrow(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves, padded with zeros, by one matrix product.

    Its gradient with respect to `x` is one too, that of the kernel XLA's, which is
    faster than a product of two matrices that are long and narrow.

    Args:
      x: `[B, H, W, c]`, c or f small.
      kernel: `[3, 3, c, f]`.

    Returns:
      `[B, H, W, f]`.
    """
    c, f = kernel.shape[2:]
    if c <= f:
        columns = jnp.concatenate(_neighbours(x), axis=3)  # [B, H, W, 9c]
        return columns @ kernel.reshape(9 * c, f)
    products = x @ kernel.transpose(2, 0, 1, 3).reshape(c, 9 * f)
    each = jnp.split(products, 9, axis=3)
    return functools.reduce(
        operator.add, [_neighbours(product)[i] for i, product in enumerate(each)]
    )


def _forward(x, kernel):
    return narrow(x, kernel), (x, kernel)


def _backward(arguments, gradient):
    x, kernel = arguments
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    _, pull = jax.vjp(lambda kernel: _plain(x, kernel, "SAME"), kernel)
    return narrow(gradient, turned), *pull(gradient)


narrow.defvjp(_forward, _backward)


def _neighbours(x: jax.Array) -> list[jax.Array]:
    """Returns of every pixel its nine neighbours, zero outside: nine like `x`."""
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]


def _plain(x, kernel, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
