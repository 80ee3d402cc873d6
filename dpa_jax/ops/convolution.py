"""The autoencoder's convolution, arranged for the accelerator that runs it.

Tensor cores multiply tiles at least 32 channels wide; the published networks have 4 to
64, so that most of a tile would be padding. In `[B, H, W, C]` neighbouring pixels of a
row lie side by side in memory: read as `[B, H, W/p, p*C]`, at no cost, p of them are
one wider pixel, and the convolution is one of p times the channels with a kernel that
is zero where it should not reach. It does p times the arithmetic on otherwise idle
units and moves the same bytes, which bound it.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dpa_jax.ops import cpu_convolution, fused_convolution
from dpa_jax.ops.activations import SLOPE, leaky_relu
from dpa_jax.ops.compute import Compute

# The channels to fill, by backend: the first is the usual one, measured on an H100 with
# earlier code (benchmarks/results), the others are worth a try on others; CPUs have
# nothing to fill.
_FILLS = {"gpu": (64, 1, 128), "cuda": (64,), "tpu": (1, 128)}

# Kaiming normal by fan-out with the gain of LeakyReLU 0.2
_kernel_init = nn.initializers.variance_scaling(2 / (1 + 0.2**2), "fan_out", "normal")


class Conv(nn.Module):
    """A convolution with bias, initialised as published.

    Attributes:
      features: channels out.
      size: of the kernel, in pixels per side.
      padding: as `lax.conv_general_dilated` takes it.
      compute: how; parameters stay in its wide format.
      is_activated: whether LeakyReLU comes before it.

    The collection `per_image` may hold `bias` `[B, features]`, the parameter once more
    for each image, to be read in its place: its gradient is then that of each image.
    Our own kernels, which add up the gradient themselves, read the parameter.
    """

    features: int
    size: int
    padding: str | tuple[tuple[int, int], ...] = "SAME"
    compute: Compute = Compute()
    is_activated: bool = False

    @nn.compact
    def parameters(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """Returns kernel `[k, k, channels, features]` and bias `[features]`."""
        bound = 1 / math.sqrt(channels * self.size**2)  # as PyTorch draws biases

        def bias_init(key, shape):
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", _kernel_init, shape)
        return kernel, self.param("bias", bias_init, (self.features,))

    def __call__(
        self, x: jax.Array, skip: jax.Array | None = None, *, passes: bool = False
    ) -> Any:
        """Maps `[B, H, W, c]` to `[B, H', W', features]`.

        Args:
          x: images.
          skip: what to add to the result, of its shape, if anything.
          passes: whether to return `x` as well, to be read in its place by whatever
            else does: so their gradients are added in one kernel, where there is one.
        """
        channels = x.shape[-1]
        backend, dtype = self.compute.backend, self.compute.dtype
        kernel, bias = self.parameters(channels)
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        is_padded_3x3 = self.size == 3 and self.padding == "SAME"
        by_kernel = backend == "cuda" and is_padded_3x3
        if by_kernel and fused_convolution.fits(x.shape, self.features):
            slope = SLOPE if self.is_activated else 1.0
            bias = bias.astype(dtype)
            return fused_convolution.convolve(
                x, kernel, bias, skip, slope=slope, passes=passes
            )
        bias = self.get_variable("per_image", "bias", bias).astype(dtype)
        pixels = 1
        if is_padded_3x3:
            fill = self.compute.fill or fills(backend)[0]
            pixels = pixels_together(x.shape[2], channels, self.features, fill)
        y = leaky_relu(x) if self.is_activated else x
        y = convolve(y, kernel, bias, self.padding, pixels=pixels, backend=backend)
        y = y if skip is None else skip + y
        return (y, x) if passes else y


def fills(backend: str) -> tuple[int, ...]:
    """Returns which channels are worth filling: the usual first, 1 for as they are."""
    return _FILLS.get(backend, (1,))


def pixels_together(width: int, channels: int, features: int, fill: int) -> int:
    """Chooses how many pixels of a row to treat as one, a power of two.

    At least four wide ones are left: of fewer XLA computes a kernel's gradient as a
    convolution over images as channels, and transposes both its arguments for it.

    Args:
      width: of the images, in pixels.
      channels: in.
      features: channels out.
      fill: channels that a pixel should have at most.
    """
    pixels = 1
    while 2 * pixels * max(channels, features) <= fill and width % (8 * pixels) == 0:
        pixels *= 2
    return pixels


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    padding: str | tuple[tuple[int, int], ...] = "SAME",
    *,
    pixels: int = 1,
    backend: str,
) -> jax.Array:
    """Convolves images, several pixels of a row at once.

    Args:
      x: `[B, H, W, c]`.
      kernel: `[k, k, c, f]`.
      bias: `[f]`, or `[B, f]`, see `Conv`.
      padding: see `Conv`.
      pixels: how many of a row are treated as one; a divisor of W. More than one needs
        a 3x3 kernel, "SAME" padding and an accelerator's backend. The result does not
        depend on it, but for rounding.
      backend: see `Compute`.

    Returns:
      `[B, H', W', f]`.
    """
    if backend == "cpu":
        y = cpu_convolution.convolve(x, kernel, padding)
    else:
        y = _arranged(x, kernel, padding, pixels)
    if bias.ndim == 1:
        y = y + jnp.tile(bias, pixels)
    else:
        y = _add_rows(y, bias, pixels)
    return y if pixels == 1 else y.reshape(*x.shape[:3], -1)


def _arranged(x, kernel, padding, pixels):
    """Convolves `[B, H, W, c]` to `[B, H', W' / pixels, pixels * f]`."""
    b, h, w, c = x.shape
    size = kernel.shape[:2]
    if pixels > 1:
        x, kernel = x.reshape(b, h, w // pixels, pixels * c), widened(kernel, pixels)
    else:
        kernel = kernel.transpose(3, 0, 1, 2)  # as cuDNN has it
    if padding == "VALID" and size == (h, w):
        # as a convolution, its gradient would turn images into channels
        return (x.reshape(b, -1) @ kernel.reshape(len(kernel), -1).T)[:, None, None]
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "OHWI", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _add_rows(y: jax.Array, rows: jax.Array, pixels: int) -> jax.Array:
    """Adds equal rows `[B, f]` to `[B, H, W, pixels * f]`.

    To read but one of them lets XLA fold them into the convolution, as a bias is.
    """
    return y + jnp.tile(rows[0], pixels)


def _add_rows_forward(y, rows, pixels):
    return _add_rows(y, rows, pixels), None


def _add_rows_backward(pixels, _, gradient):
    b, *_, f = gradient.shape
    return gradient, gradient.reshape(b, -1, f // pixels).sum(1)


_add_rows.defvjp(_add_rows_forward, _add_rows_backward)


def widened(kernel: jax.Array, pixels: int) -> jax.Array:
    """Returns the kernel that acts on `pixels` neighbours of a row as one pixel.

    Args:
      kernel: `[3, 3, c, f]`.
      pixels: p, at least 2.

    Returns:
      `[p*f, 3, 3, p*c]`: of the 3p pixels that three wide ones hold, the u-th pixel of
      the middle one sees those at p+u-1 to p+u+1.
    """
    height, width, c, f = kernel.shape
    p, length = pixels, 3 * pixels * c
    rows = kernel.transpose(3, 0, 1, 2).reshape(f, height, width * c)
    # a row c longer than `length`, again and again, and cut into rows of `length`: each
    # begins c further to the right. Concatenated, each kernel would be a launch of its
    # own; like this XLA makes all of a shape in one.
    rows = jnp.pad(rows, ((0, 0), (0, 0), ((p - 1) * c, (2 * p - 1) * c)))
    rows = jnp.broadcast_to(rows[:, :, None], (f, height, p, length + c))
    rows = rows.reshape(f, height, -1)[:, :, : p * length]
    rows = rows.reshape(f, height, p, length).transpose(2, 0, 1, 3)
    return rows.reshape(p * f, height, 3, p * c)
