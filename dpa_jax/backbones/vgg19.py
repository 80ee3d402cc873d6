"""VGG19 up to a named layer, as a function of its weights.

Simonyan and Zisserman, 2015, configuration E. Layers are named as in the published
code: `cBI` is the I-th convolution of block B, `rBI` the same after its ReLU, `pB` the
block's max pooling.
"""

from collections.abc import Collection, Mapping

import jax
import numpy as np

from dpa_jax.backbones.base import Backbone, Weights
from dpa_jax.ops import frozen_convolution
from dpa_jax.ops.activations import relu
from dpa_jax.ops.pooling import rectified_max_pool2
from dpa_jax.weights import files, formats

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

# torchvision numbers convolutions, ReLUs and poolings through, as `LAYERS` lists them
_TORCHVISION = {name: f"features.{i}" for i, name in enumerate(_ORDER)}


def deepest(layers: Collection[str]) -> str:
    """Returns the layer of `layers` that is computed last."""
    return max(layers, key=_ORDER.index)


def apply(
    weights: Weights,
    inputs: jax.Array,
    layers: Collection[str],
    backend: str = "cpu",
) -> dict[str, jax.Array]:
    """Computes the activations of some layers, and nothing deeper than they.

    Args:
      weights: `{"c11": {"kernel": [3, 3, 3, 64], "bias": [64]}, ...}`, as they are or
        from `frozen_convolution.prepare`; what is computed in follows their dtype.
      inputs: `[B, H, W, 3]` as `base.imagenet_inputs` returns.
      layers: names from `LAYERS`; static.
      backend: see `Compute`; static.

    Returns:
      `{layer: [B, h, w, channels]}` in the dtype of the weights.
    """
    x = inputs.astype(weights["c11"]["kernel"].dtype)
    found: dict[str, jax.Array] = {}
    names, is_rectified = _ORDER[: _ORDER.index(deepest(layers)) + 1], False
    for i, name in enumerate(names):
        next_one, after = (*names[i + 1 : i + 3], "", "")[:2]
        if name[0] == "p":
            x = rectified_max_pool2(x, backend)  # which changes nothing rectified
        elif name[0] == "c":
            # ReLU comes with the convolution, or else with the pooling, where nobody
            # asks for what is between
            waits = after[:1] == "p" and next_one not in layers
            is_rectified = next_one != "" and not waits and name not in layers
            run = frozen_convolution.convolve
            if is_rectified:
                run = frozen_convolution.convolve_rectified
            x = run(x, weights[name], backend)
        elif not is_rectified and (next_one[:1] != "p" or name in layers):
            x = relu(x)
        if name in layers:
            found[name] = x
    return found


def shapes() -> files.Shapes:
    """Returns the shape of each array of the sixteen convolutions."""
    found, channels = {}, 3
    for name in CONVOLUTIONS:
        kernel = (3, 3, channels, LAYERS[name])
        found[name] = {"kernel": kernel, "bias": (LAYERS[name],)}
        channels = LAYERS[name]
    return found


def load(location: str, layers: Collection[str] = _ORDER) -> files.Weights:
    """Loads the convolutions that some layers need, by default all.

    Args:
      location: `imagenet` (the cache), `random:SEED`, or a file: .safetensors or .npz
        with torchvision's names (`features.0.weight`, other layers are ignored) or
        with ours (`c11/kernel`), or .pth or .pt with torchvision's.
      layers: names from `LAYERS`.

    Returns:
      `{"c11": {"kernel": float32 [3, 3, 3, 64], "bias": float32 [64]}, ...}`.

    Raises:
      DpaError: the file is absent or unreadable, or a tensor is missing, of the wrong
        shape or not finite; the message names it.
      UsageError: `random:` is not followed by a number.
    """
    used = _ORDER[: _ORDER.index(deepest(layers)) + 1]
    needed = {name: shape for name, shape in shapes().items() if name in used}
    return files.load("vgg19", location, needed, _from_torchvision, "classifier.")


def _from_torchvision(
    tensors: Mapping[str, np.ndarray], needed: files.Shapes, prefix: str
) -> files.Weights:
    weights = {}
    for layer, arrays in needed.items():
        stem, (*_, fan, width) = _TORCHVISION[layer], arrays["kernel"]
        kernel = formats.checked(tensors, f"{stem}.weight", (width, fan, 3, 3), prefix)
        bias = formats.checked(tensors, f"{stem}.bias", (width,), prefix)
        weights[layer] = {"kernel": files.kernel_from_torch(kernel), "bias": bias}
    return weights


BACKBONE = Backbone(
    name="vgg19",
    layers=_ORDER,
    load=load,
    apply=apply,
    prepare=frozen_convolution.prepare,
)
