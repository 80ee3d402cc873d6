"""What a backbone is, and the one that a configuration names."""

import dataclasses
import difflib
import functools
import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpa_jax import errors, extensions

NAMES = ("vgg19", "resnet50")  # the modules here that define BACKBONE

# The arrays of each layer or other part, by name: `{"c11": {"kernel": ..., ...}, ...}`.
Weights = Mapping[str, Mapping[str, Any]]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_inputs(images: jax.Array) -> jax.Array:
    """Turns images in [-1, 1] into what networks trained on ImageNet take.

    Args:
      images: float `[B, H, W, C]`, C 1 or 3, in [-1, 1]; grey is repeated.

    Returns:
      `[B, H, W, 3]`, float32 or wider, less ImageNet's mean and over its standard
      deviation (section 2 of the paper).
    """
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    images = images.astype(dtype) * 0.5 + 0.5
    images = jnp.broadcast_to(images, (*images.shape[:-1], 3))
    mean, std = (jnp.asarray(v, dtype) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A frozen network as functions of its weights; static and hashable.

    Attributes:
      name: as a configuration gives it.
      layers: the names of its layers, in the order of computation.
      load: `(location, layers) -> weights`: reads what the layers need from
        `perceptual.weights`, as NumPy arrays.
      apply: `(weights, inputs, layers, backend) -> {layer: [B, h, w, channels]}`:
        computes some layers and nothing deeper, in the dtype of the weights; the
        backend is that of `Compute`.
      preprocess: images float `[B, H, W, C]` in [-1, 1] to the inputs.
      prepare: `(weights, backend) -> weights`: adds what `apply` is faster with on a
        backend, once and not within a step.
    """

    name: str
    layers: tuple[str, ...]
    load: Callable[[str, Collection[str]], Weights]
    apply: Callable[[Weights, jax.Array, Collection[str], str], dict[str, jax.Array]]
    preprocess: Callable[[jax.Array], jax.Array] = imagenet_inputs
    prepare: Callable[[Weights, str], Weights] = lambda weights, backend: weights

    def features(
        self, weights: Weights, images: jax.Array, layers: Collection[str], backend: str
    ) -> dict[str, jax.Array]:
        """Computes some layers of images in [-1, 1]."""
        return self.apply(weights, self.preprocess(images), layers, backend)

    def check_layers(self, layers: Collection[str], field: str) -> None:
        """Raises a UsageError that names `field` if it lacks one of the layers."""
        for layer in layers:
            if layer not in self.layers:
                near = difflib.get_close_matches(layer, self.layers, 1)
                raise errors.UsageError(
                    f"{field}: {self.name} has no layer {layer!r}"
                    + (f"; did you mean {near[0]}?" if near else "")
                )

    def feature_shapes(
        self, weights: Weights, layers: Collection[str], resolution: int
    ) -> dict[str, tuple[int, ...]]:
        """Returns `(h, w, channels)` of the layers of a square image, by name.

        Raises:
          UsageError: an image of that resolution is too small for a layer.
        """
        x = jax.ShapeDtypeStruct((1, resolution, resolution, 1), jnp.float32)
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), weights
        )
        run = functools.partial(self.features, layers=tuple(layers), backend="")
        try:
            found = jax.eval_shape(run, shapes, x)
        except (TypeError, ValueError) as error:
            raise errors.UsageError(
                f"perceptual.layers: {self.name} cannot take images of {resolution} "
                f"pixels to {', '.join(layers)}: {str(error).splitlines()[0]}"
            ) from error
        for layer, value in found.items():
            if 0 in value.shape:
                raise errors.UsageError(
                    f"perceptual.layers: {layer} of {self.name} has no pixel left of a "
                    f"{resolution} pixel image"
                )
        return {layer: value.shape[1:] for layer, value in found.items()}


@functools.cache
def named(name: str) -> Backbone:
    """Returns a backbone by its name in `perceptual.backbone`.

    Args:
      name: one of `NAMES`, or `module:function` of a function that takes nothing and
        returns a `Backbone`.

    Raises:
      UsageError: there is none.
    """
    field = "perceptual.backbone"
    if extensions.is_extension(name):
        found = extensions.load(name, field)()
        if not isinstance(found, Backbone):
            raise errors.UsageError(
                f"{field} is {name}, which returns {type(found).__name__} and not a "
                "dpa_jax.backbones.base.Backbone"
            )
        return found
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise errors.UsageError(
            f"{field} is {name!r}; it may be {', '.join(NAMES)} or "
            f"module:function{hint}"
        )
    return importlib.import_module(f"dpa_jax.backbones.{name}").BACKBONE
