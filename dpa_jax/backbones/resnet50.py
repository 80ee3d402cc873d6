"""ResNet-50 up to a named layer, batch normalisation folded into its convolutions.

He et al., 2016, with the stride on the 3x3 convolution as torchvision and timm have it.
Layers are named as there: `relu` and `maxpool` of the stem, then `layer1.0` to
`layer4.2`, each block after its last ReLU.
"""

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dpa_jax import errors
from dpa_jax.backbones.base import Backbone, Weights
from dpa_jax.ops import frozen_convolution
from dpa_jax.ops.activations import relu
from dpa_jax.weights import files, formats

_DEPTHS = {1: 3, 2: 4, 3: 6, 4: 3}  # blocks of each of the four groups
_EPSILON = 1e-5  # of torchvision's batch normalisation
BLOCKS = tuple(
    f"layer{group}.{i}" for group, depth in _DEPTHS.items() for i in range(depth)
)
LAYERS = ("relu", "maxpool", *BLOCKS)

# RadImageNet's published PyTorch file holds the children of torchvision's network by
# their number in a sequence
_RADIMAGENET = {"conv1": "backbone.0", "bn1": "backbone.1"} | {
    f"layer{group}": f"backbone.{group + 3}" for group in _DEPTHS
}


def _stride(block: str) -> int:
    return 2 if block.endswith(".0") and block != "layer1.0" else 1


def apply(
    weights: Weights,
    inputs: jax.Array,
    layers: Collection[str],
    backend: str = "cpu",
) -> dict[str, jax.Array]:
    """Computes the activations of some layers, and nothing deeper than they.

    Args:
      weights: see `load`; what is computed in follows their dtype.
      inputs: `[B, H, W, 3]` as `base.imagenet_inputs` returns.
      layers: names from `LAYERS`; static.
      backend: see `Compute`; static.

    Returns:
      `{layer: [B, h, w, channels]}` in the dtype of the weights.
    """
    last = max(LAYERS.index(name) for name in layers)

    def conv(x, name, stride=1):
        return frozen_convolution.convolve(x, weights[name], backend, stride)

    x = inputs.astype(weights["conv1"]["kernel"].dtype)
    found: dict[str, jax.Array] = {}
    for name in LAYERS[: last + 1]:
        if name == "relu":
            x = relu(conv(x, "conv1", 2))
        elif name == "maxpool":
            x = _max_pool3(x)
        else:
            y = relu(conv(x, f"{name}.conv1"))
            y = relu(conv(y, f"{name}.conv2", _stride(name)))
            y = conv(y, f"{name}.conv3")
            if name.endswith(".0"):
                x = conv(x, f"{name}.downsample", _stride(name))
            x = relu(x + y)
        if name in layers:
            found[name] = x
    return found


def _max_pool3(x: jax.Array) -> jax.Array:
    """Takes the highest of 3x3 pixels, at every second; `x` is not negative."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = (size - 2 for size in x.shape[1:3])
    each = [
        x[:, i : i + rows : 2, j : j + columns : 2]
        for i in (0, 1, 2)
        for j in (0, 1, 2)
    ]
    # compared one with the next, since reduce_window's gradient is slow everywhere
    highest = each[0]
    for other in each[1:]:
        highest = jnp.where(highest >= other, highest, other)
    return highest


def shapes() -> files.Shapes:
    """Returns the shape of each array, batch normalisation folded in."""

    def conv(size: int, fan: int, width: int) -> dict[str, tuple[int, ...]]:
        return {"kernel": (size, size, fan, width), "bias": (width,)}

    found: files.Shapes = {"conv1": conv(7, 3, 64)}
    channels = 64
    for block in BLOCKS:
        width = 64 * 2 ** (int(block[5]) - 1)
        found[f"{block}.conv1"] = conv(1, channels, width)
        found[f"{block}.conv2"] = conv(3, width, width)
        found[f"{block}.conv3"] = conv(1, width, 4 * width)
        if block.endswith(".0"):
            found[f"{block}.downsample"] = conv(1, channels, 4 * width)
        channels = 4 * width
    return found


def load(location: str, layers: Collection[str] = LAYERS) -> files.Weights:
    """Loads the convolutions that some layers need, by default all.

    Args:
      location: `imagenet` (the cache), `random:SEED`, or a file: .safetensors, .npz,
        .pth or .pt with the names of torchvision and timm (`layer1.0.conv1.weight`) or
        of RadImageNet's PyTorch file (`backbone.4.0.conv1.weight`), or .safetensors or
        .npz with ours (`layer1.0.conv1/kernel`).
      layers: names from `LAYERS`.

    Returns:
      `{"conv1": {"kernel": float32 [7, 7, 3, 64], "bias": float32 [64]}, ...}`.

    Raises:
      DpaError: the file is absent or unreadable, or a tensor is missing, of the wrong
        shape or not finite; the message names it.
      UsageError: `random:` is not followed by a number.
    """
    used = LAYERS[: max(LAYERS.index(name) for name in layers) + 1]
    needed = {
        name: arrays
        for name, arrays in shapes().items()
        if name == "conv1" or name.rpartition(".")[0] in used
    }
    return files.load("resnet50", location, needed, _from_torch, "fc.")


def _from_torch(
    tensors: Mapping[str, np.ndarray], needed: files.Shapes, prefix: str
) -> files.Weights:
    is_sequence = "backbone.0.weight" in tensors

    def key(name: str) -> str:
        first, _, rest = name.partition(".")
        stem = _RADIMAGENET[first] if is_sequence else first
        return f"{stem}.{rest}" if rest else stem

    weights = {}
    for name, arrays in needed.items():
        size, _, fan, width = arrays["kernel"]
        block, _, part = name.rpartition(".")
        if part == "downsample":
            conv, norm = f"{name}.0", f"{name}.1"
        else:
            conv, norm = name, f"{block}.{part}".lstrip(".").replace("conv", "bn")
        kernel = formats.checked(
            tensors, f"{key(conv)}.weight", (width, fan, size, size), prefix
        )
        scale, shift, mean, variance = (
            formats.checked(tensors, f"{key(norm)}.{part}", (width,), prefix)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        if (variance < 0).any():
            raise errors.DpaError(f"{prefix}{key(norm)}.running_var is negative")
        factor = scale.astype(np.float64) / np.sqrt(
            variance.astype(np.float64) + _EPSILON
        )
        weights[name] = {
            "kernel": (files.kernel_from_torch(kernel) * factor).astype(np.float32),
            "bias": (shift - mean * factor).astype(np.float32),
        }
    return weights


BACKBONE = Backbone(
    name="resnet50",
    layers=LAYERS,
    load=load,
    apply=apply,
    prepare=frozen_convolution.prepare,
)
