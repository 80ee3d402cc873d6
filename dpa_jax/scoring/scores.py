"""What images may be scored by: the training loss, its parts, functions of one's own.

A score is a function of a `losses.Comparison` that returns one value per image, `[B]`,
the higher the more abnormal; one that returns `[B, R, R]` is a map.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dpa_jax import errors, extensions, losses

Score = Callable[[losses.Comparison], jax.Array]


def pixel_l1(comparison: losses.Comparison) -> jax.Array:
    """Returns the mean absolute difference of the pixels, float32 `[B]`."""
    difference = comparison.image - comparison.reconstruction
    return jnp.abs(difference).mean((1, 2, 3))


def latent_norm(comparison: losses.Comparison) -> jax.Array:
    """Returns the Euclidean norm of the latent, float32 `[B]`."""
    latent = comparison.latent.astype(comparison.image.dtype)
    return jnp.sqrt(jnp.square(latent).sum((1, 2, 3)))


_OF_COMPARISON: dict[str, Score] = {"l1": pixel_l1, "latent_norm": latent_norm}
_OF_LOSS: dict[str, Callable[..., Any]] = {
    "loss": losses.per_image,
    "layers": losses.layer_terms,
    "map": losses.anomaly_map,
    "share": losses.shares,
}
NAMES = ("loss", "layers", "l1", "latent_norm")


def compute(
    name: str,
    loss: losses.Loss,
    statistics: losses.Statistics,
    comparison: losses.Comparison,
) -> dict[str, jax.Array]:
    """Computes a score, or several where a name stands for several.

    Args:
      name: `loss`, `layers` for the term of each layer, `share` for what part of the
        loss comes from each (see `losses.shares`), `l1`, `latent_norm`, `map` for the
        loss before its mean over positions, or `module:function`.
      loss: of the run.
      statistics: of the features.
      comparison: of images and reconstructions.

    Returns:
      `[B]`, or a map `[B, R, R]`, by name; a layer's is `layers.NAME` or `share.NAME`.

    Raises:
      UsageError: there is no such score, or a function returns something else.
    """
    if name in _OF_LOSS:
        found = _OF_LOSS[name](loss, statistics, comparison)
        if isinstance(found, dict):
            return {f"{name}.{layer}": value for layer, value in found.items()}
        return {name: found}
    if name in _OF_COMPARISON:
        return {name: _OF_COMPARISON[name](comparison)}
    check(name)
    found = extensions.load(name, "--score")(comparison)
    b, r, *_ = comparison.image.shape
    if jnp.shape(found) not in ((b,), (b, r, r)):
        raise errors.UsageError(
            f"--score={name} returns {list(jnp.shape(found))} for {b} images of {r} "
            f"pixels; a score is [{b}], and a map [{b}, {r}, {r}]"
        )
    return {name: found}


def check(name: str) -> None:
    """Raises a UsageError if no score has this name."""
    if name not in NAMES and not extensions.is_extension(name):
        raise errors.UsageError(
            f"--score={name}: a score is {', '.join(NAMES)} or module:function"
        )
