"""VGG19's convolutions up to a named layer, as a function of their weights.

Simonyan and Zisserman, 2015, configuration E. Layers are named as in the published
code: `cBI` is the I-th convolution of block B, `rBI` the same after its ReLU, `pB` the
block's max pooling.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpa_jax.ops import convolution, winograd
from dpa_jax.ops.activations import relu
from dpa_jax.ops.pooling import max_pool2

# block -> (convolutions, channels)
_BLOCKS = {1: (2, 64), 2: (2, 128), 3: (4, 256), 4: (4, 512), 5: (4, 512)}

# every layer in the order of computation, with its channels
LAYERS: dict[str, int] = {
    name: channels
    for block, (depth, channels) in _BLOCKS.items()
    for name in (
        *(f"{kind}{block}{i + 1}" for i in range(depth) for kind in "cr"),
        f"p{block}",
    )
}
CONVOLUTIONS = tuple(name for name in LAYERS if name[0] == "c")
_ORDER = tuple(LAYERS)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# A layer's arrays; `tiled` is there where `prepare` put it.
Weights = Mapping[str, Mapping[str, Any]]

# From so many channels in and out a CPU convolves faster by Winograd's algorithm, in
# 0.4 to 0.8 of the time (two cores of an AMD EPYC with AVX-512, JAX 0.10.2); images
# less wide gain less than it takes longer to compile. How many images there are does
# not matter, so that devices that share a batch round as one does.
_TILED_CHANNELS = 64
_TILED_WIDTH = 8


def stride(layer: str) -> int:
    """Returns how many image pixels one position of `layer` stands for, per side."""
    return 2 ** (int(layer[1]) - (layer[0] != "p"))


def deepest(layers: Collection[str]) -> str:
    """Returns the layer of `layers` that is computed last."""
    return max(layers, key=_ORDER.index)


def multiply_adds(layer: str, resolution: int) -> int:
    """Counts the multiply-adds of one image's forward pass up to `layer`."""
    total, channels = 0, 3
    for name in _ORDER[: _ORDER.index(layer) + 1]:
        if name[0] == "c":
            total += 9 * channels * LAYERS[name] * (resolution // stride(name)) ** 2
            channels = LAYERS[name]
    return total


def preprocess(images: jax.Array) -> jax.Array:
    """Turns images in [-1, 1] into VGG19's input (section 2 of the paper).

    Args:
      images: float `[B, H, W, C]`, C 1 or 3, in [-1, 1]; grey is repeated.

    Returns:
      `[B, H, W, 3]`, float32 or wider, less ImageNet's mean and over its standard
      deviation.
    """
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    images = images.astype(dtype) * 0.5 + 0.5
    images = jnp.broadcast_to(images, (*images.shape[:-1], 3))
    mean, std = (jnp.asarray(v, dtype) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def prepare(weights: Weights, backend: str) -> Weights:
    """Adds to the weights what convolutions with them are faster with, if anything is.

    On CPU in float32 some layers get their transform for `winograd.convolve`, in eight
    times the memory. It is to be done once, not within a step.

    Args:
      weights: see `features`.
      backend: see `Compute`.
    """
    if backend != "cpu":
        return weights

    def prepared(layer):
        kernel = layer["kernel"]
        few = min(kernel.shape[2:]) < _TILED_CHANNELS
        if kernel.dtype != jnp.float32 or few:
            return layer
        return {**layer, "tiled": jax.jit(winograd.transform)(kernel)}

    return {name: prepared(layer) for name, layer in weights.items()}


def features(
    weights: Weights,
    inputs: jax.Array,
    layers: Collection[str],
    backend: str = "cpu",
) -> dict[str, jax.Array]:
    """Computes the activations of some layers, and nothing deeper than they.

    Args:
      weights: `{"c11": {"kernel": [3, 3, 3, 64], "bias": [64]}, ...}`, as they are or
        from `prepare`; what is computed in follows their dtype.
      inputs: `[B, H, W, 3]` as `preprocess` returns; H and W divisible by the stride
        of the deepest layer.
      layers: names from `LAYERS`; static.
      backend: see `Compute`; static.

    Returns:
      `{layer: [B, h, w, channels]}` in the dtype of the weights.
    """
    x = inputs.astype(weights["c11"]["kernel"].dtype)
    wanted: dict[str, jax.Array] = {}
    for name in _ORDER[: _ORDER.index(deepest(layers)) + 1]:
        if name[0] == "c":
            x = _convolve(x, weights[name], backend)
        elif name[0] == "r":
            x = relu(x)
        else:
            x = max_pool2(x)
        if name in layers:
            wanted[name] = x
    return wanted


def _convolve(x: jax.Array, layer: Mapping[str, Any], backend: str) -> jax.Array:
    if "tiled" in layer and x.shape[2] >= _TILED_WIDTH:
        return winograd.convolve(x, layer["tiled"]) + layer["bias"]
    return convolution.convolve(x, layer["kernel"], layer["bias"], backend=backend)
