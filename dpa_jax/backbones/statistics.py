"""Per-channel mean and standard deviation of features over a set of images."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dpa_jax.backbones import base
from dpa_jax.data.image_set import ImageSet
from dpa_jax.images import center_crop, downsample, normalize


def feature_statistics(
    backbone: base.Backbone,
    weights: base.Weights,
    images: ImageSet,
    resolutions: Mapping[str, int],
    *,
    backend: str = "cpu",
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Computes the statistics that the perceptual loss divides by (section 3).

    Each batch is averaged in float32 about its own mean, and batches are merged in
    float64 (Chan et al., 1983), so that neither their number nor a large mean costs
    precision.

    Args:
      backbone: whose features.
      weights: its; float32.
      images: of them; of larger ones than the highest of `resolutions`
        the centre of that size, which is what the run's last stage sees of them.
      resolutions: `{layer: resolution in pixels at which its features are taken}`.
      backend: see `Compute`.
      batch_size: images at a time.
      progress: called with the images done and in all.

    Returns:
      `{layer: {"mean": float32 [channels], "std": float32 [channels]}}`, the standard
      deviation that of the population; of a channel that never varies, the median of
      its layer's.
    """
    moments = _moments(backbone, tuple(resolutions.items()), backend)
    count, means, squares = 0, {}, {}
    for batch in images.blocks(batch_size * images.base[0].nbytes):
        fresh = len(batch)
        # the last batch is filled up, so that one executable serves all
        batch = np.resize(batch, (batch_size, *batch.shape[1:]))
        valid = np.arange(batch_size) < fresh
        with jax.default_matmul_precision("highest"):
            found = jax.device_get(moments(weights, batch, valid.astype(np.float32)))
        total = count + fresh
        for layer, pair in found.items():
            mean, variance = (np.asarray(a, np.float64) for a in pair)
            shift = mean - means.get(layer, 0.0)
            squares[layer] = (
                squares.get(layer, 0.0)
                + variance * fresh
                + np.square(shift) * count * fresh / total
            )
            means[layer] = means.get(layer, 0.0) + shift * fresh / total
        count = total
        if progress is not None:
            progress(count, len(images))
    return {
        layer: {
            "mean": means[layer].astype(np.float32),
            "std": _usable(np.sqrt(squares[layer] / count)).astype(np.float32),
        }
        for layer in resolutions
    }


@functools.lru_cache(maxsize=8)
def _moments(
    backbone: base.Backbone, resolutions: tuple[tuple[str, int], ...], backend: str
) -> Callable[..., dict[str, tuple[jax.Array, jax.Array]]]:
    """Returns the program of a batch's means and variances, one for all runs alike.

    It takes the backbone's weights, uint8 images `[B, H, H, C]`, and float32 `[B]`, 1
    where an image counts and 0 elsewhere.
    """
    by_resolution: dict[int, list[str]] = {}
    for layer, resolution in resolutions:
        by_resolution.setdefault(resolution, []).append(layer)
    largest = max(by_resolution)

    @jax.jit
    def moments(weights, batch, valid):
        x = normalize(center_crop(batch, largest))
        found = {}
        for resolution, layers in by_resolution.items():
            small = downsample(x, resolution)
            for layer, f in backbone.features(
                weights, small, tuple(layers), backend
            ).items():
                f = f.astype(jnp.float32)
                share = valid[:, None, None, None] / (
                    valid.sum() * f.shape[1] * f.shape[2]
                )
                mean = (f * share).sum(axis=(0, 1, 2))
                variance = (jnp.square(f - mean) * share).sum(axis=(0, 1, 2))
                found[layer] = (mean, variance)
        return found

    return moments


def _usable(std: np.ndarray) -> np.ndarray:
    """Gives channels that never varied the median spread of those that did.

    A ReLU channel that is 0 on every image of a small or uniform set has no spread to
    divide by, and would divide what a reconstruction makes of it by zero.
    """
    varied = std > 1e-6 * std.max()
    return np.where(varied, std, np.median(std[varied])) if varied.any() else std
