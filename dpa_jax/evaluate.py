"""How well scores tell abnormal from normal: figures, intervals, plots."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import sklearn.metrics

from dpa_jax import config as config_lib
from dpa_jax import errors, workdir
from dpa_jax.data.image_set import ImageSet
from dpa_jax.score import Scorer


def evaluate(
    scores: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Computes the figures of merit of anomaly scores.

    Args:
      scores: float `[N]`, higher is more abnormal.
      labels: int `[N]`, 0 normal and 1 abnormal, both present.
      groups: `N` names of what images share (patient, slide): the interval then
        resamples groups, since images of one are not independent.
      resamples: of the bootstrap.
      seed: of the bootstrap.

    Returns:
      `roc_auc` and its 95% `roc_auc_interval` (percentile bootstrap),
      `average_precision` with that of a blind guess beside it, counts, and with groups
      `groups` and, where each has one label, `group_roc_auc` of the groups' highest
      scores.

    Raises:
      DpaError: one of the labels is absent, or a score is not finite.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    normal, abnormal = int((labels == 0).sum()), int((labels == 1).sum())
    if not normal or not abnormal:
        raise errors.DpaError(
            f"ROC AUC needs normal and abnormal images; there are {normal} and "
            f"{abnormal}"
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise errors.DpaError(
            f"{bad.size} scores are not finite, the first is {bad[0]}"
        )
    result: dict[str, Any] = {
        "roc_auc": float(sklearn.metrics.roc_auc_score(labels, scores)),
        "roc_auc_interval": _interval(scores, labels, groups, resamples, seed),
        "average_precision": float(
            sklearn.metrics.average_precision_score(labels, scores)
        ),
        "average_precision_by_chance": abnormal / len(labels),
        "normal": normal,
        "abnormal": abnormal,
    }
    if groups is not None:
        names, index = np.unique(np.asarray(groups, str), return_inverse=True)
        highest = np.full(len(names), -np.inf)
        np.maximum.at(highest, index, scores)
        first, last = np.ones(len(names)), np.zeros(len(names))
        np.minimum.at(first, index, labels)
        np.maximum.at(last, index, labels)
        result["groups"] = len(names)
        if (first == last).all():
            result["group_roc_auc"] = float(
                sklearn.metrics.roc_auc_score(last, highest)
            )
    return result


def report(scorer: Scorer, images: ImageSet, scores: np.ndarray) -> dict[str, Any]:
    """Returns `evaluate` of a run's scores, and what they stand on.

    Where the source knows the view of each image, within each view as well: a data set
    whose views differ between normal and abnormal scores well by telling views apart.

    Args:
      scorer: the run.
      images: with labels.
      scores: float `[N]`.
    """
    labels = images.labels
    if labels is None:
        raise errors.DpaError("the images have no labels")
    result = {
        **evaluate(scores, labels, images.groups),
        "skipped": len(images.skipped),
        "trained_steps": scorer.trained,
        "stage": scorer.stage.name,
        "vgg_weights": scorer.config.perceptual.weights,
        "random_weights": config_lib.uses_vgg(scorer.config)
        and scorer.config.perceptual.weights.startswith("random:"),
    }
    views = (images.columns or {}).get("view")
    if views is not None:
        views = np.asarray(views, str)
        result["by_view"] = {
            str(view): evaluate(
                scores[views == view],
                labels[views == view],
                None
                if images.groups is None
                else np.asarray(images.groups, str)[views == view],
            )
            for view in np.unique(views)
            if len(np.unique(labels[views == view])) == 2
        }
    return result


def write(
    folder: pathlib.Path, images: ImageSet, scores: np.ndarray, result: dict[str, Any]
) -> None:
    """Writes metrics.json, scores.csv and the plots of an evaluation.

    Args:
      folder: made if absent.
      images: with labels.
      scores: float32 `[N]`.
      result: see `report`.
    """
    labels = images.labels
    assert labels is not None  # report() has refused images without
    folder.mkdir(parents=True, exist_ok=True)
    groups = images.groups or [""] * len(images)
    rows = [
        (path, ("normal", "abnormal")[label], group, workdir.number(score))
        for path, label, group, score in zip(
            images.paths, labels, groups, scores, strict=True
        )
    ]
    workdir.write_csv(folder / "scores.csv", ("path", "label", "group", "score"), rows)
    write_plots(folder, scores, labels)
    # last, so that one that exists is of a complete evaluation
    workdir.write_json(folder / "metrics.json", result)


def _interval(scores, labels, groups, resamples, seed) -> list[float]:
    """Returns the 2.5 and 97.5 percentiles of ROC AUC over resampled units."""
    units = np.arange(len(scores)) if groups is None else np.asarray(groups, str)
    _, index = np.unique(units, return_inverse=True)
    order = np.argsort(index, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(index))[:-1])
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < resamples:
        drawn = rng.integers(0, len(members), len(members))
        taken = np.concatenate([members[i] for i in drawn])
        if 0 < labels[taken].sum() < len(taken):
            found.append(_auc(scores[taken], labels[taken]))
    low, high = np.percentile(found, [2.5, 97.5])
    return [float(low), float(high)]


def _auc(scores: np.ndarray, labels: np.ndarray) -> float:
    # scikit-learn's takes 2 ms, a thousand of which are felt
    import scipy.stats

    positive = int(labels.sum())
    ranks = scipy.stats.rankdata(scores)[labels == 1].sum()
    negative = len(labels) - positive
    return (ranks - positive * (positive + 1) / 2) / (positive * negative)


def write_plots(folder: pathlib.Path, scores: np.ndarray, labels: np.ndarray) -> None:
    """Writes `roc.png` and `histogram.png`."""
    # no pyplot: its global state and its choice of a backend are not ours to change
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def figure():
        made = Figure(figsize=(4.8, 4.2), layout="constrained")
        FigureCanvasAgg(made)
        return made, made.subplots()

    roc, axes = figure()
    false, true, _ = sklearn.metrics.roc_curve(labels, scores)
    auc = sklearn.metrics.auc(false, true)
    axes.plot(false, true, color="tab:blue", label=f"AUC {auc:.3f}")
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="chance")
    axes.set(
        xlabel="false positive rate",
        ylabel="true positive rate",
        title="ROC",
        aspect="equal",
        xlim=(0, 1),
        ylim=(0, 1.01),
    )
    axes.legend(loc="lower right")
    roc.savefig(folder / "roc.png", dpi=120)

    histogram, axes = figure()
    bins = np.linspace(scores.min(), scores.max(), 41).tolist()
    for value, name, color in ((0, "normal", "tab:blue"), (1, "abnormal", "tab:red")):
        part = scores[labels == value]
        axes.hist(
            part,
            bins=bins,
            density=True,
            alpha=0.6,
            color=color,
            label=f"{name} ({len(part)})",
        )
    axes.set(xlabel="anomaly score", ylabel="density", title="Scores")
    axes.legend()
    histogram.savefig(folder / "histogram.png", dpi=120)
