"""Losses and anomaly scores: one value per image (section 3; method 1).

Float32, or float64 where images are.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections

from dpa_jax import config as config_lib
from dpa_jax import images, vgg
from dpa_jax.stages import Stage

# a layer's features, or at IMAGE the preprocessed image itself
Features = Mapping[str, jax.Array]
IMAGE = "image"


@dataclasses.dataclass(frozen=True)
class Loss:
    """What a stage minimises, at one resolution; static and hashable.

    Attributes:
      layers: VGG19 layers with their weights.
      image_weight: of the same term on the preprocessed image.
      relative_perceptual: weight of the relative perceptual L1 term.
      perceptual: weight of the plain perceptual L2 term.
      normalize: whether the plain perceptual term divides by the statistics.
      l1: weight of the mean absolute error of the pixels.
      l2: weight of their mean squared error.
    """

    layers: tuple[tuple[str, float], ...] = ()
    image_weight: float = 0.0
    relative_perceptual: float = 1.0
    perceptual: float = 0.0
    normalize: bool = True
    l1: float = 0.0
    l2: float = 0.0

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, resolution: int) -> "Loss":
        """Takes the loss at `resolution` from a validated configuration."""
        layers = config_lib.perceptual_layers(config.perceptual.layers)
        return cls(
            layers=layers[resolution] if config_lib.uses_vgg(config) else (),
            image_weight=config.perceptual.image_weight,
            relative_perceptual=config.loss.relative_perceptual,
            perceptual=config.loss.perceptual,
            normalize=config.perceptual.normalize,
            l1=config.loss.l1,
            l2=config.loss.l2,
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


def extract(
    vgg_weights: vgg.Weights, x: jax.Array, loss: Loss, backend: str = "cpu"
) -> Features:
    """Computes what the perceptual terms compare.

    Args:
      vgg_weights: see `vgg.features`.
      x: float `[B, R, R, C]` in [-1, 1].
      loss: says which layers.
      backend: see `Compute`.

    Returns:
      `{layer: [B, h, w, channels]}`, with the preprocessed image under `IMAGE` if it
      has a weight; empty if there is no perceptual term.
    """
    if not (loss.relative_perceptual or loss.perceptual):
        return {}
    inputs = vgg.preprocess(x)
    names = tuple(name for name, _ in loss.layers)
    result = vgg.features(vgg_weights, inputs, names, backend) if names else {}
    return {**result, IMAGE: inputs} if loss.image_weight else result


def per_image(
    loss: Loss,
    statistics: Mapping[str, Mapping[str, jax.Array]],
    real: Features,
    fake: Features,
    x: jax.Array,
    y: jax.Array,
) -> jax.Array:
    """Returns the loss of each image, float32 `[B]`: also its anomaly score.

    Args:
      loss: which terms, with their weights.
      statistics: `{layer: {"mean": [C], "std": [C]}}` of the features.
      real: `extract` of the images `x`; they carry no gradient.
      fake: `extract` of the reconstructions `y`.
      x: float `[B, R, R, C]` in [-1, 1].
      y: likewise.
    """
    axes = (1, 2, 3)

    def relative_l1(difference, magnitude):
        return jnp.abs(difference).mean(axes) / magnitude.mean(axes)

    def squared(difference, _):
        return jnp.square(difference).mean(axes)

    return _total(
        loss,
        statistics,
        (jax.lax.stop_gradient(real), fake),
        x - y,
        relative_l1,
        squared,
        axes,
    )


def stage_per_image(
    loss: StageLoss,
    vgg_weights: vgg.Weights,
    statistics: Mapping[str, Mapping[str, jax.Array]],
    targets: tuple[Features, Features],
    x: jax.Array,
    y: jax.Array,
    alpha,
    backend: str = "cpu",
) -> jax.Array:
    """Returns the loss of a stage for each image, float32 `[B]` (method, section 3).

    Args:
      loss: of the stage.
      vgg_weights: see `vgg.features`.
      statistics: see `per_image`.
      targets: `stage_targets` of `x`.
      x: float `[B, R, R, C]` in [-1, 1], mixed in a transition.
      y: the reconstructions.
      alpha: the new resolution's share.
      backend: see `Compute`.
    """
    full, half = targets
    value = per_image(
        loss.full, statistics, full, extract(vgg_weights, y, loss.full, backend), x, y
    )
    if loss.half is None:
        return value
    x, y = images.average_pool2(x), images.average_pool2(y)
    coarse = per_image(
        loss.half, statistics, half, extract(vgg_weights, y, loss.half, backend), x, y
    )
    return alpha * value + (1 - alpha) * coarse


def stage_targets(
    loss: StageLoss, vgg_weights: vgg.Weights, x: jax.Array, backend: str = "cpu"
) -> tuple[Features, Features]:
    """Computes the features of the images themselves, at full and half resolution."""
    full = extract(vgg_weights, x, loss.full, backend)
    if loss.half is None:
        return full, {}
    return full, extract(vgg_weights, images.average_pool2(x), loss.half, backend)


def anomaly_map(
    loss: Loss,
    statistics: Mapping[str, Mapping[str, jax.Array]],
    real: Features,
    fake: Features,
    x: jax.Array,
    y: jax.Array,
) -> jax.Array:
    """Returns where an image differs: the loss before its mean over positions.

    Each layer's term is averaged over channels only and brought to the image's size by
    bilinear interpolation; the mean of a map is the image's score, but for rounding.

    Returns:
      float32 `[B, R, R]`, not negative.
    """

    def enlarge(value):  # [B, h, w] -> [B, R, R]
        return jax.image.resize(value, x.shape[:3], "bilinear")

    def relative_l1(difference, magnitude):
        scale = magnitude.mean(axis=(1, 2, 3))[:, None, None]
        return enlarge(jnp.abs(difference).mean(axis=3) / scale)

    def squared(difference, _):
        return enlarge(jnp.square(difference).mean(axis=3))

    return _total(loss, statistics, (real, fake), x - y, relative_l1, squared, 3)


def _total(loss, statistics, features, difference, relative_l1, squared, axes):
    """Adds up the terms of a loss, pixels averaged over `axes`."""
    real, fake = features
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
    return sum(terms, jnp.zeros((), difference.dtype))


def _weighted(loss, statistics, real, fake, distance):
    """Averages `distance` over layers, by their weights."""
    layers = [*loss.layers]
    if loss.image_weight:
        layers.append((IMAGE, loss.image_weight))
    total = 0.0
    for name, weight in layers:
        a, b = _wide(real[name]), _wide(fake[name])
        mean, std = 0.0, 1.0
        if name in statistics:
            mean, std = statistics[name]["mean"], statistics[name]["std"]
        # g(x) - g(y) = (f(x) - f(y)) / std, so that only |g(x)| needs the mean
        total += weight * distance((a - b) / std, jnp.abs(a - mean) / std)
    return total / sum(weight for _, weight in layers)


def _wide(features: jax.Array) -> jax.Array:
    return features.astype(jnp.promote_types(features.dtype, jnp.float32))
