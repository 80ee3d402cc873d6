"""What a ROC AUC stands on: views, findings, and what tells labels without disease."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpa_jax import errors
from dpa_jax.data.image_set import ImageSet
from dpa_jax.scoring import roc

MARGIN = 0.05  # a shortcut that comes so near to the model's ROC AUC is warned of
_COLUMNS = ("view", "follow_up", "age", "sex", "original_width", "original_height")
_FEWEST = 10  # images of a finding that is named as the best or the worst


def audit(images: ImageSet, scores: np.ndarray) -> dict[str, Any]:
    """Separates what the ROC AUC of a whole set mixes.

    Args:
      images: with labels; what their source says beside is in the columns `view`,
        `findings` (a tuple of names each) and those that may be shortcuts.
      scores: finite numbers `[N]`, higher is more abnormal.

    Returns:
      `by_view`: the ROC AUC within each view, if the views are known.
      `by_finding`: that of all normal images against the abnormal ones with a finding,
      if findings are known. Each with counts and, unless one of the labels is absent,
      `roc_auc` and its 95% `roc_auc_interval`, a bootstrap over the groups if there
      are any.
      `shortcuts`: the ROC AUC of what is known about the images used as the score;
      see `shortcuts`.
      `warnings`: sentences, none if no shortcut comes near to the scores.

    Raises:
      DpaError: the images have no labels.
    """
    labels = _labels(images)
    columns = images.columns or {}
    result: dict[str, Any] = {}
    if "view" in columns:
        views = np.asarray(columns["view"], str)
        result["by_view"] = {
            str(view): _within(images, scores, views == view)
            for view in np.unique(views)
        }
    if "findings" in columns:
        found = columns["findings"]
        names = {
            n for of, label in zip(found, labels, strict=True) if label for n in of
        }
        result["by_finding"] = {
            name: _within(
                images,
                scores,
                (labels == 0) | np.array([name in of for of in found]),
            )
            for name in sorted(names)
        }
    result["shortcuts"] = shortcuts(images)
    result["warnings"] = _warnings(result["shortcuts"], roc.auc(scores, labels))
    return result


def shortcuts(images: ImageSet) -> dict[str, float]:
    """Returns the ROC AUC of what needs no look at the anatomy, highest first.

    Numbers are taken with the better of the two signs; names, such as views, in the
    order of how many of their images are abnormal. Hence none is below 0.5.

    Args:
      images: with labels; those of the known columns that they have are tried, the
        ratio of the original width to the height, and the mean of the pixels.
    """
    labels = _labels(images)
    columns = images.columns or {}
    tried = {name: np.asarray(columns[name]) for name in _COLUMNS if name in columns}
    sides = [tried.get(f"original_{side}") for side in ("width", "height")]
    if all(side is not None and side.dtype.kind in "iuf" for side in sides):
        tried["original_aspect"] = tried["original_width"] / tried["original_height"]
    tried["mean_intensity"] = images.images.mean(axis=(1, 2, 3))
    found = {}
    for name, values in tried.items():
        known = values == values  # a number that is not known is NaN
        if len(np.unique(labels[known])) == 2:
            found[name] = _alone(values[known], labels[known])
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def describe(result: Mapping[str, Any]) -> list[str]:
    """Returns in a few lines what `audit` has found, without its warnings."""
    lines = []
    views = result.get("by_view", {})
    if len(views) > 1:
        lines += [f"within {view}: {_figures(part)}" for view, part in views.items()]
    common = {
        name: part
        for name, part in result.get("by_finding", {}).items()
        if "roc_auc" in part and part["abnormal"] >= _FEWEST
    }
    if common:
        order = sorted(common, key=lambda name: common[name]["roc_auc"])
        for word, name in (("lowest", order[0]), ("highest", order[-1]))[: len(order)]:
            lines.append(f"{word} by finding: {name} {_figures(common[name])}")
    alone = (f"{name} {value:.3f}" for name, value in result["shortcuts"].items())
    lines.append(f"ROC AUC without the model: {', '.join(alone)}")
    return lines


def _labels(images: ImageSet) -> np.ndarray:
    if images.labels is None:
        raise errors.DpaError("the images have no labels")
    return images.labels


def _within(images: ImageSet, scores: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    labels = _labels(images)[chosen]
    normal, abnormal = int((labels == 0).sum()), int((labels == 1).sum())
    counts = {"normal": normal, "abnormal": abnormal}
    if not normal or not abnormal:
        return counts
    groups: Sequence[str] | None = None
    if images.groups is not None:
        groups = np.asarray(images.groups, str)[chosen].tolist()
    scores = np.asarray(scores)[chosen]
    return {
        "roc_auc": roc.auc(scores, labels),
        "roc_auc_interval": roc.interval(scores, labels, groups),
        **counts,
    }


def _alone(values: np.ndarray, labels: np.ndarray) -> float:
    if values.dtype.kind not in "iuf":
        _, index = np.unique(values, return_inverse=True)
        values = (np.bincount(index, labels) / np.bincount(index))[index]
    value = roc.auc(values, labels)
    return max(value, 1 - value)


def _warnings(found: Mapping[str, float], model: float) -> list[str]:
    near = [
        f"{name} {value:.3f}"
        for name, value in found.items()
        if value >= model - MARGIN
    ]
    if not near:
        return []
    return [
        f"the ROC AUC of {model:.3f} need not come from seeing disease: without the "
        f"model, these come within {MARGIN} of it or exceed it: {', '.join(near)}"
    ]


def _figures(part: Mapping[str, Any]) -> str:
    counts = f"{part['normal']} normal, {part['abnormal']} abnormal"
    if "roc_auc" not in part:
        return counts
    low, high = part["roc_auc_interval"]
    return f"ROC AUC {part['roc_auc']:.4f} (95% {low:.4f} to {high:.4f}), {counts}"
