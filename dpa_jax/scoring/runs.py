"""A trained run applied to images in one call, from Python."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpa_jax import errors
from dpa_jax.scoring import evaluation, loading


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
      float32 `[N]`, or a map `[N, R, R]`, by name; `loss` is the anomaly score.

    Raises:
      DpaError: the run or the images cannot be used, or they are unlike those of
        training and `strict=True` is among the options.
      UsageError: there is no such score.
    """
    scorer = loading.load(workdir, **options)
    return scorer.scores(scorer.prepare(images), scores)


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
    return evaluation.report(scorer, found, scorer(found))
