"""How well anomaly maps find the abnormal pixels: figures against masks."""

from typing import Any

import numpy as np
import scipy.ndimage

from dpa_jax import errors

LIMIT = 0.3  # false positive rate that AUPRO is integrated to


def evaluate(maps: np.ndarray, masks: np.ndarray) -> dict[str, Any]:
    """Computes the figures of merit of anomaly maps.

    Args:
      maps: float `[N, R, R]`, higher is more abnormal.
      masks: bool `[N, R, R]`, True where abnormal; an image may be all normal.

    Returns:
      `pixel_roc_auc` over all pixels of all images; `aupro`, see `aupro`; `best_dice`,
      that of all pixels at the threshold where it is highest, and that threshold
      `best_dice_threshold`, chosen on these very masks; `map_mean_inside` and
      `map_mean_outside`, of each image with abnormal pixels the mean of its map within
      the mask and without, averaged over these images; `masked_images` and `regions`,
      how many there are (connected components).

    Raises:
      DpaError: the pixels are all normal or all abnormal, or a map is not finite.
    """
    maps, masks = np.asarray(maps, np.float64), np.asarray(masks, bool)
    count = count_abnormal(masks)
    if not np.isfinite(maps).all():
        raise errors.DpaError("an anomaly map has values that are not finite")
    values = maps.ravel()
    order = np.argsort(-values, kind="stable")
    # the last of equal values: a threshold cannot part them
    last = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    found = np.cumsum(masks.ravel()[order])[last]  # abnormal pixels from a value on
    false = last + 1 - found
    rate, hits = false / (masks.size - count), found / count
    dice = 2 * found / (last + 1 + count)
    best = int(dice.argmax())
    inside = [m[mask].mean() for m, mask in zip(maps, masks, strict=True) if mask.any()]
    outside = [
        m[~mask].mean()
        for m, mask in zip(maps, masks, strict=True)
        if mask.any() and not mask.all()
    ]
    overlap, regions = _overlap(masks)
    return {
        "pixel_roc_auc": float(np.trapezoid(np.append(0, hits), np.append(0, rate))),
        "aupro": _area(rate, np.cumsum(overlap.ravel()[order])[last]),
        "best_dice": float(dice[best]),
        "best_dice_threshold": float(values[order][last][best]),
        "map_mean_inside": float(np.mean(inside)),
        "map_mean_outside": float(np.mean(outside)) if outside else None,
        "masked_images": len(inside),
        "regions": regions,
    }


def count_abnormal(masks: np.ndarray) -> int:
    """Returns how many pixels are abnormal.

    Raises:
      DpaError: none or all of them are.
    """
    count = int(masks.sum())
    if count in (0, masks.size):
        raise errors.DpaError(
            f"{count} of {masks.size} pixels of the masks are abnormal; pixel figures "
            "need both kinds"
        )
    return count


def fit(masks: np.ndarray, size: int, resolution: int) -> np.ndarray:
    """Returns masks at the resolution of a run's maps.

    Args:
      masks: bool `[N, S, S]`.
      size: side of the centre that is scored.
      resolution: side of the maps, R; `size` is a multiple of it.

    Returns:
      bool `[N, R, R]`, of each block of pixels one in its middle.
    """
    edge, step = (masks.shape[1] - size) // 2, size // resolution
    inner = slice(edge + step // 2, edge + size, step)
    return masks[:, inner, inner]


def describe(result: dict[str, Any]) -> str:
    """Returns a line with the figures of `evaluate`."""
    outside = result["map_mean_outside"]
    return (
        f"pixels: ROC AUC {result['pixel_roc_auc']:.4f}, AUPRO {result['aupro']:.4f} "
        f"(to a false positive rate of {LIMIT:g}), best Dice {result['best_dice']:.4f} "
        f"(threshold {result['best_dice_threshold']:.4g}, chosen on these masks); mean "
        f"of the maps {result['map_mean_inside']:.4g} inside the masks"
        + (f", {outside:.4g} outside" if outside is not None else "")
        + f"; {result['regions']} regions in {result['masked_images']} images"
    )


def _overlap(masks: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns what each pixel adds to the mean overlap of regions, and their number.

    A region is a connected component of an image's mask, with 8-connectivity.
    """
    shares = np.zeros(masks.shape)
    regions = 0
    for share, mask in zip(shares, masks, strict=True):
        parts, count = scipy.ndimage.label(mask, np.ones((3, 3)))
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        share[mask] = 1 / sizes[parts[mask]]
        regions += count
    return shares / regions, regions


def _area(rate: np.ndarray, overlap: np.ndarray) -> float:
    """Integrates the mean overlap over the false positive rate, to `LIMIT`.

    Args:
      rate: `[T]`, rising to 1.
      overlap: `[T]` at the same thresholds.

    Returns:
      The area divided by `LIMIT`: 1 is perfect (Bergmann et al., 2021, section 5.2).
    """
    rate, overlap = np.append(0, rate), np.append(0, overlap)
    end = int(np.searchsorted(rate, LIMIT, "right"))
    last = np.interp(LIMIT, rate[end - 1 : end + 1], overlap[end - 1 : end + 1])
    area = np.trapezoid(np.append(overlap[:end], last), np.append(rate[:end], LIMIT))
    return float(min(area / LIMIT, 1.0))  # rounding aside it is at most 1
