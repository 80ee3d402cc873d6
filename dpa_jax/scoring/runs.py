"""A trained run applied to images in one call, from Python."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpa_jax import console, errors
from dpa_jax.data import leakage, training_images
from dpa_jax.scoring import calibrating, calibration, decisions, evaluation, loading


def score(
    workdir: str | os.PathLike,
    images: Any,
    scores: Sequence[str] = ("loss",),
    **options: Any,
) -> dict[str, np.ndarray]:
    """Scores images by a trained run.

    Args:
      workdir: of the run.
      images: of any kind that `data.as_image_set` takes: paths, PIL images, arrays of
        any size, lists of these, or a set as `data.load` returns. They are prepared as
        the run's training images were.
      scores: see `scores.compute`.
      **options: see `loading.load`.

    Returns:
      float32 `[N]`, or a map `[N, R, R]`, by name; `loss` is the anomaly score. Of a
      calibrated run also its `p_value`, float64 `[N]`, and `abnormal`, int64 `[N]`, 1
      where that is at most alpha; a set has the groups and strata that it needs.

    Raises:
      DpaError: the run or the images cannot be used, or they are unlike those of
        training and `strict=True` is among the options.
      UsageError: there is no such score.
    """
    scorer = loading.load(workdir, **options)
    prepared = scorer.prepare(images)
    decisions.check(scorer.calibration, prepared)
    found = scorer.scores(prepared, scores)
    decided = None
    if "loss" in found:
        decided = decisions.decide(scorer.calibration, prepared, found["loss"])
    if decided:
        for warning in decided.warnings():
            console.print_line(f"warning: {warning}")
        found |= decided.columns()
    return found


def evaluate(
    workdir: str | os.PathLike,
    images: Any,
    labels: Sequence[int] | np.ndarray | None = None,
    groups: Sequence[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measures how well a trained run tells abnormal images from normal ones.

    Args:
      workdir: of the run.
      images: see `score`.
      labels: `[N]`, 0 normal and 1 abnormal; None for those of a set or manifest.
      groups: `[N]` names of what images share (patient, slide); likewise.
      **options: see `loading.load`.

    Returns:
      As `evaluation.report`: `roc_auc` with its interval, and so on.

    Raises:
      DpaError: the run or the images cannot be used, or a label is absent.
    """
    scorer = loading.load(workdir, **options)
    found = scorer.prepare(images, labels, groups)
    if found.labels is None:
        raise errors.DpaError("the images have no labels: give labels=, 0 and 1")
    evaluation.count_labels(found.labels)
    leakage.check_labels(found)
    leakage.check(workdir, found, "test images")
    decisions.check(scorer.calibration, found)
    scores = scorer(found)
    decided = decisions.decide(scorer.calibration, found, scores)
    return evaluation.report(scorer, found, scores, decided)


def calibrate(
    workdir: str | os.PathLike,
    images: Any,
    *,
    alpha: float = 0.05,
    group: str | None = None,
    by: str | None = None,
    location: str = "in memory",
    overwrite: bool = False,
    visible: bool = True,
    **options: Any,
) -> calibration.Calibration:
    """Calibrates a trained run on held-out normal images, for p-values of its scores.

    Args:
      workdir: of the run; gets `calibration.json`.
      images: normal ones, see `score`; of a set those that are labelled abnormal are
        left out.
      alpha: false positive rate that is promised.
      group: column of a set that names groups (patient, slide); None for its groups, if
        it has any.
      by: column of a set, such as view, whose values are calibrated apart.
      location: of the images, for the record.
      overwrite: whether a calibration that is there may be replaced.
      visible: whether to show progress on stderr.
      **options: see `loading.load`.

    Returns:
      What is written.

    Raises:
      UsageError: alpha is not between 0 and 1.
      DpaError: images were trained on, are too few for alpha, have no such column or no
        spread of scores, or the run is calibrated already.
    """
    folder = pathlib.Path(workdir)
    if not overwrite:
        calibration.check_absent(folder)
    scorer = loading.load(folder, **options)
    prepared = training_images.normal(
        scorer.prepare(images), visible, "calibration image"
    )
    leakage.check(folder, prepared, "calibration images")
    with console.counting("scoring", "images", visible) as show:
        found = calibrating.calibrate(
            scorer, prepared, location, alpha=alpha, group=group, by=by, progress=show
        )
    calibration.write(folder, found)
    return found
