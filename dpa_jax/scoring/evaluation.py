"""How well scores tell abnormal from normal: figures, intervals, plots."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import sklearn.metrics

from dpa_jax import errors
from dpa_jax.config import has_random_weights
from dpa_jax.data.image_set import ImageSet
from dpa_jax.scoring import audit, calibration, decisions, roc
from dpa_jax.scoring.scorer import Scorer
from dpa_jax.storage import workdir


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
      `roc_auc` and its 95% `roc_auc_interval`, see `roc.interval`; the number of
      `independent_pairs` that it stands on,
      `average_precision` with that of a blind guess beside it, counts, and with groups
      `groups` and, where each has one label, `group_roc_auc` of the highest score
      among `group_images` images drawn from each group; see `roc.group_auc`.

    Raises:
      DpaError: one of the labels is absent, or a score is not finite.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    normal, abnormal = count_labels(labels)
    calibration.check_finite(scores)
    result: dict[str, Any] = {
        "roc_auc": float(sklearn.metrics.roc_auc_score(labels, scores)),
        "roc_auc_interval": roc.interval(
            scores, labels, groups, resamples=resamples, seed=seed
        ),
        "independent_pairs": roc.independent_pairs(labels, groups),
        "average_precision": float(
            sklearn.metrics.average_precision_score(labels, scores)
        ),
        "average_precision_by_chance": abnormal / len(labels),
        "normal": normal,
        "abnormal": abnormal,
    }
    if groups is not None:
        names, index = np.unique(np.asarray(groups, str), return_inverse=True)
        abnormal_share = np.bincount(index, labels) / np.bincount(index)
        result["groups"] = len(names)
        if np.isin(abnormal_share, [0, 1]).all():
            result["group_roc_auc"], result["group_images"] = roc.group_auc(
                scores, labels, groups
            )
    return result


def count_labels(labels: np.ndarray) -> tuple[int, int]:
    """Returns how many images are normal and abnormal.

    Args:
      labels: int `[N]`, 0 normal and 1 abnormal.

    Raises:
      DpaError: one of the labels is absent.
    """
    normal, abnormal = int((labels == 0).sum()), int((labels == 1).sum())
    if not normal or not abnormal:
        raise errors.DpaError(
            f"ROC AUC needs normal and abnormal images; there are {normal} and "
            f"{abnormal}"
        )
    return normal, abnormal


def report(
    scorer: Scorer,
    images: ImageSet,
    scores: np.ndarray,
    decided: decisions.Decisions | None = None,
) -> dict[str, Any]:
    """Returns `evaluate` of a run's scores, and what they stand on.

    What they stand on is what the images are otherwise known to differ in: see `audit`.

    Args:
      scorer: the run.
      images: with labels.
      scores: float `[N]`.
      decided: on these; None if the run is not calibrated.
    """
    labels = images.labels
    if labels is None:
        raise errors.DpaError("the images have no labels")
    found: dict[str, Any] = {
        **evaluate(scores, labels, images.groups),
        **audit.audit(images, scores),
        "skipped": len(images.skipped),
        "trained_steps": scorer.trained,
        "stage": scorer.stage.name,
        "vgg_weights": scorer.config.perceptual.weights,
        "random_weights": has_random_weights(scorer.config),
    }
    if decided:
        found["calibration"] = rates = decided.rates(labels)
        found["warnings"] += decisions.warnings_of(rates)
    return found


def describe(result: dict[str, Any]) -> list[str]:
    """Returns in a few lines what `report` found."""
    low, high = result["roc_auc_interval"]
    lines = [
        f"ROC AUC {result['roc_auc']:.4f} (95% {low:.4f} to {high:.4f}), "
        f"average precision {result['average_precision']:.4f}; "
        f"{result['normal']} normal, {result['abnormal']} abnormal"
    ]
    pairs = result["independent_pairs"]
    if pairs < roc.FEWEST:
        lines.append(
            f"the interval is that of {pairs} independent pair{'s' * (pairs != 1)} of "
            "a normal and an abnormal image (Clopper and Pearson): of so few, a "
            "bootstrap says nothing"
        )
    if "group_roc_auc" in result:
        drawn = result["group_images"]
        lines.append(
            f"by group (slide or patient), of each the highest score of {drawn} "
            f"image{'s' * (drawn > 1)}: ROC AUC {result['group_roc_auc']:.4f} "
            f"over {result['groups']} groups"
        )
    if "calibration" in result:
        lines.append(decisions.describe(result["calibration"]))
    return lines


def summarize(
    results: Sequence[dict[str, Any]], images: ImageSet, scores: np.ndarray
) -> dict[str, Any]:
    """Returns what the runs of a population reach on average.

    Args:
      results: `report` of each.
      images: with labels.
      scores: float `[K, N]`, of each.

    Returns:
      `roc_auc_mean` and `roc_auc_sd` over the runs (K - 1 degrees of freedom) and the
      95% `roc_auc_interval` of the mean, of a bootstrap of the images that is the same
      for all runs; each run's `roc_auc`; what they have in common.
    """
    labels = images.labels
    assert labels is not None  # report() has refused images without
    each = [result["roc_auc"] for result in results]
    shared = ("normal", "abnormal", "skipped", "vgg_weights", "random_weights")
    return {
        "runs": len(each),
        "roc_auc_mean": float(np.mean(each)),
        "roc_auc_sd": float(np.std(each, ddof=1)),
        "roc_auc_interval": roc.interval(scores, labels, images.groups),
        "roc_auc": each,
        "trained_steps": [result["trained_steps"] for result in results],
        **{name: results[0][name] for name in shared},
    }


def write(
    folder: pathlib.Path,
    images: ImageSet,
    scores: np.ndarray,
    result: dict[str, Any],
    decided: decisions.Decisions | None = None,
) -> None:
    """Writes metrics.json, scores.csv and the plots of an evaluation.

    Args:
      folder: made if absent.
      images: with labels.
      scores: float32 `[N]`.
      result: see `report`.
      decided: on these; None if the run is not calibrated.
    """
    labels = images.labels
    assert labels is not None  # report() has refused images without
    folder.mkdir(parents=True, exist_ok=True)
    groups = images.groups or [""] * len(images)
    numbers = {"score": scores, **(decided.columns() if decided else {})}
    rows = [
        (path, ("normal", "abnormal")[label], group, *map(workdir.number, values))
        for path, label, group, *values in zip(
            images.paths, labels, groups, *numbers.values(), strict=True
        )
    ]
    workdir.write_csv(folder / "scores.csv", ("path", "label", "group", *numbers), rows)
    write_plots(folder, scores, labels)
    # last, so that one that exists is of a complete evaluation
    workdir.write_json(folder / "metrics.json", result)


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
    bins = np.histogram_bin_edges(scores, 40).tolist()  # even if all are the same
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
