"""Losses and anomaly scores: one value per image (section 3; method 1).

Float32, or float64 where images are.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from dpa_jax import errors, extensions, images
from dpa_jax.backbones import base as backbones
from dpa_jax.config import is_perceptual, perceptual_layers
from dpa_jax.stages import Stage

# a layer's features, or at IMAGE the preprocessed image itself
Features = Mapping[str, jax.Array]
IMAGE = "image"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An image and what the autoencoder made of it, with all that is known of both.

    Attributes:
      image: float `[B, R, R, C]` in [-1, 1].
      reconstruction: likewise, of no bounds.
      latent: `[B, r, r, c]`.
      real: features of the images, `{layer: [B, h, w, channels]}`; at `IMAGE` the
        preprocessed image, if it has a weight.
      fake: features of the reconstructions.
    """

    image: jax.Array
    reconstruction: jax.Array
    latent: jax.Array
    real: Features
    fake: Features


jax.tree_util.register_dataclass(Comparison)

# Returns one value per image, `[B]`: of a loss, lower is better; of a score, higher is
# more abnormal.
Term = Callable[[Comparison], jax.Array]


@dataclasses.dataclass(frozen=True)
class Loss:
    """What a stage minimises, at one resolution; static and hashable.

    Attributes:
      layers: of the backbone, with their weights.
      image_weight: of the same term on the preprocessed image.
      relative_perceptual: weight of the relative perceptual L1 term.
      perceptual: weight of the plain perceptual L2 term.
      normalize: whether the plain perceptual term divides by the statistics.
      l1: weight of the mean absolute error of the pixels.
      l2: weight of their mean squared error.
      extra: a term of the user's own; None for none.
      extra_weight: its weight.
      backbone: whose features are compared.
    """

    layers: tuple[tuple[str, float], ...] = ()
    image_weight: float = 0.0
    relative_perceptual: float = 1.0
    perceptual: float = 0.0
    normalize: bool = True
    l1: float = 0.0
    l2: float = 0.0
    extra: Term | None = None
    extra_weight: float = 1.0
    backbone: backbones.Backbone = dataclasses.field(
        default_factory=lambda: backbones.named("vgg19")
    )

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, resolution: int) -> "Loss":
        """Takes the loss at `resolution` from a validated configuration."""
        layers = perceptual_layers(config.perceptual.layers)
        extra = config.loss.extra
        return cls(
            backbone=backbones.named(config.perceptual.backbone),
            layers=layers[resolution] if is_perceptual(config) else (),
            image_weight=config.perceptual.image_weight,
            relative_perceptual=config.loss.relative_perceptual,
            perceptual=config.loss.perceptual,
            normalize=config.perceptual.normalize,
            l1=config.loss.l1,
            l2=config.loss.l2,
            extra=extensions.load(extra, "loss.extra") if extra else None,
            extra_weight=config.loss.extra_weight,
        )


@dataclasses.dataclass(frozen=True)
class StageLoss:
    """The loss of a stage: at its resolution and, fading in, at half of it.

    Attributes:
      full: at the stage's resolution.
      half: at half of it in a transition with `loss.smooth_transition`, else None.
    """

    full: Loss
    half: Loss | None = None

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, stage: Stage
    ) -> "StageLoss":
        """Takes the loss of `stage` from a validated configuration."""
        smooth = stage.transition and config.loss.smooth_transition
        return cls(
            full=Loss.from_config(config, stage.resolution),
            half=Loss.from_config(config, stage.resolution // 2) if smooth else None,
        )


Statistics = Mapping[str, Mapping[str, jax.Array]]


def extract(
    weights: backbones.Weights, x: jax.Array, loss: Loss, backend: str = "cpu"
) -> Features:
    """Computes what the perceptual terms compare.

    Args:
      weights: of the loss's backbone.
      x: float `[B, R, R, C]` in [-1, 1].
      loss: says which layers.
      backend: see `Compute`.

    Returns:
      `{layer: [B, h, w, channels]}`, with the preprocessed image under `IMAGE` if it
      has a weight; empty if there is no perceptual term.
    """
    if not (loss.relative_perceptual or loss.perceptual or loss.extra):
        return {}
    inputs = loss.backbone.preprocess(x)
    names = tuple(name for name, _ in loss.layers)
    found = loss.backbone.apply(weights, inputs, names, backend) if names else {}
    return {**found, IMAGE: inputs} if loss.image_weight else found


def compare(
    loss: Loss,
    weights: backbones.Weights,
    real: Features,
    x: jax.Array,
    y: jax.Array,
    z: jax.Array,
    backend: str = "cpu",
) -> Comparison:
    """Returns images beside their reconstructions.

    Args:
      loss: says which features.
      weights: of its backbone.
      real: `extract` of the images.
      x: the images, float `[B, R, R, C]` in [-1, 1].
      y: the reconstructions, likewise.
      z: the latents, `[B, r, r, c]`.
      backend: see `Compute`.
    """
    fake = extract(weights, y, loss, backend)
    return Comparison(x, y, z, real, fake)


def per_image(loss: Loss, statistics: Statistics, comparison: Comparison) -> jax.Array:
    """Returns the loss of each image, float32 `[B]`: also its anomaly score.

    Args:
      loss: which terms, with their weights.
      statistics: `{layer: {"mean": [C], "std": [C]}}` of the features.
      comparison: of images and reconstructions.
    """
    axes = (1, 2, 3)

    def relative_l1(difference, magnitude):
        return jnp.abs(difference).mean(axes) / magnitude.mean(axes)

    def squared(difference, _):
        return jnp.square(difference).mean(axes)

    total = _total(loss, statistics, comparison, relative_l1, squared, axes)
    if loss.extra is None:
        return total
    own = loss.extra(comparison)
    if own.shape != total.shape:
        raise errors.UsageError(
            f"loss.extra returns {list(own.shape)} for {len(total)} images; it must "
            "return one value for each"
        )
    return total + loss.extra_weight * own


def layer_terms(
    loss: Loss, statistics: Statistics, comparison: Comparison
) -> dict[str, jax.Array]:
    """Returns the relative perceptual L1 term of each layer by itself, float32 `[B]`.

    Their mean by the layers' weights is the relative perceptual term of `per_image`.
    """
    return {
        name: per_image(
            _only(loss, name, relative_perceptual=1.0), statistics, comparison
        )
        for name in comparison.real
    }


def shares(
    loss: Loss, statistics: Statistics, comparison: Comparison
) -> dict[str, jax.Array]:
    """Returns what part of the loss of each image comes from where, float32 `[B]`.

    Args:
      loss: which terms, with their weights.
      statistics: see `per_image`.
      comparison: of images and reconstructions.

    Returns:
      The share of each layer, its relative perceptual and its perceptual term together,
      by the layer's name, and of the terms `l1`, `l2` and `extra` that the loss has.
      They add up to 1; of a loss of 0 all are 0.
    """
    weights = {**dict(loss.layers), IMAGE: loss.image_weight}
    parts = {}
    if loss.relative_perceptual or loss.perceptual:
        for name in comparison.real:
            term = _only(
                loss,
                name,
                relative_perceptual=loss.relative_perceptual,
                perceptual=loss.perceptual,
            )
            value = per_image(term, statistics, comparison)
            parts[name] = weights[name] / sum(weights.values()) * value
    if loss.l1:
        parts["l1"] = per_image(_only(loss, l1=loss.l1), statistics, comparison)
    if loss.l2:
        parts["l2"] = per_image(_only(loss, l2=loss.l2), statistics, comparison)
    if loss.extra is not None:
        parts["extra"] = loss.extra_weight * loss.extra(comparison)
    total = per_image(loss, statistics, comparison)
    return {n: part / jnp.where(total == 0, 1, total) for n, part in parts.items()}


def _only(loss: Loss, layer: str = "", **terms: Any) -> Loss:
    """Returns a loss of the given terms alone, the perceptual ones of one layer."""
    nothing = Loss(
        layers=() if layer in ("", IMAGE) else ((layer, 1.0),),
        image_weight=float(layer == IMAGE),
        relative_perceptual=0.0,
        normalize=loss.normalize,
        backbone=loss.backbone,
    )
    return dataclasses.replace(nothing, **terms)


def stage_per_image(
    loss: StageLoss,
    weights: backbones.Weights,
    statistics: Statistics,
    targets: tuple[Features, Features],
    x: jax.Array,
    y: jax.Array,
    z: jax.Array,
    alpha,
    backend: str = "cpu",
) -> jax.Array:
    """Returns the loss of a stage for each image, float32 `[B]` (method, section 3).

    Args:
      loss: of the stage.
      weights: of its backbone.
      statistics: see `per_image`.
      targets: `stage_targets` of `x`.
      x: float `[B, R, R, C]` in [-1, 1], mixed in a transition.
      y: the reconstructions.
      z: the latents.
      alpha: the new resolution's share.
      backend: see `Compute`.
    """
    full, half = targets
    comparison = compare(loss.full, weights, full, x, y, z, backend)
    value = per_image(loss.full, statistics, comparison)
    if loss.half is None:
        return value
    x, y = images.average_pool2(x), images.average_pool2(y)
    comparison = compare(loss.half, weights, half, x, y, z, backend)
    coarse = per_image(loss.half, statistics, comparison)
    return alpha * value + (1 - alpha) * coarse


def stage_targets(
    loss: StageLoss, weights: backbones.Weights, x: jax.Array, backend: str = "cpu"
) -> tuple[Features, Features]:
    """Computes the features of the images themselves, at full and half resolution."""
    full = extract(weights, x, loss.full, backend)
    if loss.half is None:
        return full, {}
    return full, extract(weights, images.average_pool2(x), loss.half, backend)


def anomaly_map(
    loss: Loss, statistics: Statistics, comparison: Comparison
) -> jax.Array:
    """Returns where an image differs: the loss before its mean over positions.

    Each layer's term is averaged over channels only and brought to the image's size by
    bilinear interpolation; the mean of a map is the image's score, but for rounding and
    for a term of the user's own, which has no place in it.

    Returns:
      float32 `[B, R, R]`, not negative.
    """
    shape = comparison.image.shape[:3]

    def enlarge(value):  # [B, h, w] -> [B, R, R]
        return jax.image.resize(value, shape, "bilinear")

    def relative_l1(difference, magnitude):
        scale = magnitude.mean(axis=(1, 2, 3))[:, None, None]
        return enlarge(jnp.abs(difference).mean(axis=3) / scale)

    def squared(difference, _):
        return enlarge(jnp.square(difference).mean(axis=3))

    return _total(loss, statistics, comparison, relative_l1, squared, 3)


def _total(loss, statistics, comparison, relative_l1, squared, axes):
    """Adds up the terms of a loss, pixels averaged over `axes`."""
    real, fake = comparison.real, comparison.fake
    difference = comparison.image - comparison.reconstruction
    terms = []
    if loss.relative_perceptual:
        value = _weighted(loss, statistics, real, fake, relative_l1)
        terms.append(loss.relative_perceptual * value)
    if loss.perceptual:
        used = statistics if loss.normalize else {}
        value = _weighted(loss, used, real, fake, squared)
        terms.append(loss.perceptual * value)
    if loss.l1:
        terms.append(loss.l1 * jnp.abs(difference).mean(axes))
    if loss.l2:
        terms.append(loss.l2 * jnp.square(difference).mean(axes))
    return sum(terms, jnp.zeros_like(difference).mean(axes))  # even of no terms


def _weighted(loss, statistics, real, fake, distance):
    """Averages `distance` over layers, by their weights."""
    layers = [*loss.layers]
    if loss.image_weight:
        layers.append((IMAGE, loss.image_weight))
    total = 0.0
    for name, weight in layers:
        a, b = _wide(jax.lax.stop_gradient(real[name])), _wide(fake[name])
        mean, std = 0.0, 1.0
        if name in statistics:
            mean, std = statistics[name]["mean"], statistics[name]["std"]
        # g(x) - g(y) = (f(x) - f(y)) / std, so that only |g(x)| needs the mean
        total += weight * distance((a - b) / std, jnp.abs(a - mean) / std)
    return total / sum(weight for _, weight in layers)


def _wide(features: jax.Array) -> jax.Array:
    return features.astype(jnp.promote_types(features.dtype, jnp.float32))
