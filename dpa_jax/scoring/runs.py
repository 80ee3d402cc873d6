"""A trained run applied to images in one call, from Python."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpa_jax import data, errors
from dpa_jax.data import leakage
from dpa_jax.scoring import evaluation, loading
from dpa_jax.scoring.scorer import Scorer


def score(
    workdir: str | os.PathLike,
    images: np.ndarray | data.ImageSet,
    scores: Sequence[str] = ("loss",),
    **options: Any,
) -> dict[str, np.ndarray]:
    """Scores images by a trained run.

    Args:
      workdir: of the run.
      images: of any size, an array as `data.from_array` takes it or a set as
        `data.load` returns; an array is prepared as the run's training images were.
      scores: see `scores.compute`.
      **options: see `loading.load`.

    Returns:
      float32 `[N]`, or a map `[N, R, R]`, by name; `loss` is the anomaly score.

    Raises:
      DpaError: the run or the images cannot be used.
      UsageError: there is no such score.
    """
    scorer = loading.load(workdir, **options)
    return scorer.scores(_prepared(scorer, images).images, scores)


def evaluate(
    workdir: str | os.PathLike,
    images: np.ndarray | data.ImageSet,
    labels: Sequence[int] | np.ndarray | None = None,
    groups: Sequence[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measures how well a trained run tells abnormal images from normal ones.

    Args:
      workdir: of the run.
      images: see `score`.
      labels: of an array, `[N]`, 0 normal and 1 abnormal; a set has its own.
      groups: of an array, `[N]` names of what images share (patient, slide).
      **options: see `loading.load`.

    Returns:
      As `evaluation.report`: `roc_auc` with its interval, and so on.

    Raises:
      DpaError: the run or the images cannot be used, or a label is absent.
    """
    scorer = loading.load(workdir, **options)
    found = _prepared(scorer, images, labels, groups)
    if found.labels is None:
        raise errors.DpaError("the images have no labels: give labels=, 0 and 1")
    evaluation.count_labels(found.labels)
    leakage.check_labels(found)
    leakage.check(workdir, found, "test images")
    return evaluation.report(scorer, found, scorer(found.images))


def _prepared(
    scorer: Scorer,
    images: np.ndarray | data.ImageSet,
    labels: Sequence[int] | np.ndarray | None = None,
    groups: Sequence[str] | None = None,
) -> data.ImageSet:
    if isinstance(images, data.ImageSet):
        return images
    preprocessing = data.Preprocessing.from_config(scorer.config, scoring=True)
    return data.from_array(images, preprocessing, labels=labels, groups=groups)
