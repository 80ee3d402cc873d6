"""The published losses in terms of ours."""

import math
import re
from collections.abc import Iterator
from typing import Any

from dpa_jax.interop import reference_keys as keys

Values = dict[str, Any]

_ADVERSARIAL = {
    "image_adv_loss.loss_type": "wasserstein",
    "image_adv_loss.loss_kwargs.gradient_penalty": 10,
    "image_adv_loss.loss_kwargs.norm_penalty": 0.001,
    "image_adv_loss.loss_kwargs.lambd": 1,
    "image_adv_loss.loss_kwargs.target_gamma": 1,
    "ddis.type": "residual18",
    "loss_weights.image_rec_loss": 1,
}
_LOSSES = {
    "relative_perceptual_L1": "relative_perceptual",
    "perceptual": "perceptual",
    "l1": "l1",
    "l2": "l2",
}


def losses(left: Values, resolutions: list[int], channels: tuple[int, ...]) -> Values:
    """Maps the published losses to `loss` and `perceptual`.

    Args:
      left: the published options by dotted name; those of the losses are taken out.
      resolutions: those of the stages, in pixels.
      channels: the encoder's, which the critic must share.

    Returns:
      Our values by dotted name.

    Raises:
      UsageError: an option has no counterpart.
    """
    values: Values = {f"loss.{name}": 0.0 for name in _LOSSES.values()}
    perceptual: Values = {}
    smooth = False
    for prefix, weight in _terms(left):
        published = keys.take(left, f"{prefix}loss_type", str)
        keys.require(
            published in _LOSSES, f"{prefix}loss_type {published!r} has no counterpart"
        )
        name = f"loss.{_LOSSES[published]}"
        keys.require(not values[name], f"{prefix}loss_type {published!r} occurs twice")
        values[name] = weight
        keys.expect(left, {f"{prefix}loss_kwargs.reduction": "mean"})
        if "perceptual" in published:
            keys.require(not perceptual, f"{prefix}: a second perceptual loss")
            smooth = keys.take(left, f"{prefix}loss_kwargs.use_smooth_pg", bool, False)
            perceptual = _perceptual(left, f"{prefix}loss_kwargs.", resolutions)
        if published == "perceptual":
            perceptual["perceptual.normalize"] = keys.take(
                left, f"{prefix}loss_kwargs.use_feature_normalization", bool, False
            )
            for option in ("use_L1_norm", "use_relative_error"):
                keys.expect(left, {f"{prefix}loss_kwargs.{option}": False})
    keys.require(
        not (
            smooth and len(resolutions) > 1 and (values["loss.l1"] or values["loss.l2"])
        ),
        "image_rec_loss: use_smooth_pg beside an l1 or l2 term, which it leaves alone, "
        "has no counterpart",
    )
    return {
        **values,
        **perceptual,
        **_adversarial(left, channels, resolutions[-1]),
        "loss.smooth_transition": smooth,
    }


def _terms(left: Values) -> Iterator[tuple[str, float]]:
    """Yields the prefix of each loss's keys, and its weight."""
    if left.get("image_rec_loss.loss_type") != "compose":
        yield "image_rec_loss.", 1.0
        return
    del left["image_rec_loss.loss_type"]
    for part in ("loss_1", "loss_2"):
        prefix = f"image_rec_loss.loss_kwargs.{part}."
        yield prefix, keys.take(left, f"{prefix}loss_weight", float)


def _perceptual(left: Values, prefix: str, resolutions: list[int]) -> Values:
    entries, image_weights = [], set()
    for name in list(left):
        match = re.match(re.escape(prefix) + r"weights_per_resolution\.(\d+)\.", name)
        if match and int(match[1]) not in resolutions:
            del left[name]  # of a resolution that is not trained at
    for resolution in resolutions:
        at = f"{prefix}weights_per_resolution.{resolution}."
        image_weights.add(keys.take(left, f"{at}img_weight", float, 0.0))
        names = [name for name in left if name.startswith(f"{at}feature_weights.")]
        terms = {
            name.rpartition(".")[2]: keys.take(left, name, float) for name in names
        }
        keys.require(any(terms.values()), f"{at}feature_weights is missing")
        entries.append(
            f"{resolution}:"
            + "+".join(
                layer if weight == 1 else f"{layer}*{weight:g}"
                for layer, weight in terms.items()
                if weight
            )
        )
    keys.require(
        len(image_weights) == 1,
        f"{prefix}weights_per_resolution: img_weight differs between resolutions, "
        "which has no counterpart",
    )
    return {
        "perceptual.layers": " ".join(entries),
        "perceptual.image_weight": image_weights.pop(),
    }


def _adversarial(left: Values, channels: tuple[int, ...], resolution: int) -> Values:
    if not any(name.startswith(("image_adv_loss", "ddis")) for name in left):
        keys.expect(left, {"n_dis": 0, "loss_weights.image_rec_loss": 1})
        return {}
    keys.expect(left, _ADVERSARIAL)
    # from the highest resolution down to 4 pixels, beyond a spatial latent
    count = int(math.log2(max(resolution, 4) // 4)) + 1
    expected = channels + channels[-1:] * (count - len(channels))
    critic = tuple(keys.take(left, "ddis.kwargs.inner_dims", list))[-count:]
    keys.require(
        critic == expected,
        f"ddis.kwargs.inner_dims {list(critic)} differ from the encoder's "
        f"{list(expected)}, which has no counterpart",
    )
    return {
        "loss.adversarial": keys.take(left, "loss_weights.image_adv_loss", float),
        "adversarial.discriminator_steps": keys.take(left, "n_dis", int),
    }
