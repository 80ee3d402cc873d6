"""Convolutions whose kernels never change, and may be transformed beforehand."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpa_jax.ops import convolution, first_convolution, winograd
from dpa_jax.ops.activations import relu

# From so many channels in and out a CPU convolves faster by Winograd's algorithm, in
# 0.4 to 0.8 of the time (two cores of an AMD EPYC with AVX-512, JAX 0.10.2); images
# less wide gain less than it takes longer to compile. How many images there are does
# not matter, so that devices that share a batch round as one does.
_TILED_CHANNELS = 64
_TILED_WIDTH = 8


def prepare(
    weights: Mapping[str, Mapping[str, Any]], backend: str
) -> Mapping[str, Mapping[str, Any]]:
    """Adds to layers what convolutions with them are faster with, if anything is.

    On CPU in float32 some layers get their transform for `winograd.convolve`, in eight
    times the memory. It is to be done once, not within a step.

    Args:
      weights: `kernel` and `bias` by layer.
      backend: see `Compute`.
    """
    if backend != "cpu":
        return weights

    def prepared(layer):
        kernel = layer["kernel"]
        is_tiled = (
            kernel.dtype == jnp.float32
            and kernel.shape[:2] == (3, 3)
            and min(kernel.shape[2:]) >= _TILED_CHANNELS
        )
        if not is_tiled:
            return layer
        return {**layer, "tiled": jax.jit(winograd.transform)(kernel)}

    return {name: prepared(layer) for name, layer in weights.items()}


def convolve(
    x: jax.Array, layer: Mapping[str, Any], backend: str, stride: int = 1
) -> jax.Array:
    """Convolves images, padded by half a kernel on each side, and adds the bias.

    Args:
      x: `[B, H, W, c]`.
      layer: `kernel` `[k, k, c, f]`, k odd, and `bias` `[f]`; see `prepare`.
      backend: see `Compute`.
      stride: in pixels.

    Returns:
      `[B, ceil(H / stride), ceil(W / stride), f]`.
    """
    if stride == 1 and "tiled" in layer and x.shape[2] >= _TILED_WIDTH:
        return winograd.convolve(x, layer["tiled"]) + layer["bias"]
    if stride == 1:
        return convolution.convolve(x, layer["kernel"], layer["bias"], backend=backend)
    edge = layer["kernel"].shape[0] // 2
    y = jax.lax.conv_general_dilated(
        x,
        layer["kernel"],
        (stride, stride),
        ((edge, edge), (edge, edge)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + layer["bias"]


def convolve_rectified(
    x: jax.Array, layer: Mapping[str, Any], backend: str
) -> jax.Array:
    """Convolves as `convolve` does, stride 1, and applies ReLU."""
    kernel = layer["kernel"]
    if backend == "cuda" and first_convolution.fits(x.shape, kernel.shape):
        return first_convolution.convolve_rectified(x, kernel, layer["bias"])
    return relu(convolve(x, layer, backend))
