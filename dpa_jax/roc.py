"""The area under the ROC curve, and how sure it is."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

_BLOCK = 50  # resamples at once


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the chance that an abnormal image scores higher than a normal one.

    Args:
      scores: numbers `[N]`; of two equal ones each is higher half of the time.
      labels: int `[N]`, 0 normal and 1 abnormal, both present.
    """
    labels = np.asarray(labels)
    return float(_weighted(np.asarray(scores), labels, np.ones((1, len(labels))))[0])


def interval(
    scores: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[float]:
    """Returns the 95% interval of `auc` by a percentile bootstrap.

    Args:
      scores: numbers `[N]`.
      labels: int `[N]`, 0 normal and 1 abnormal, both present.
      groups: `N` names of what images share; groups are resampled if they are given,
        images if not.
      resamples: that hold both labels; others are drawn again.
      seed: of the drawing.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    units = np.arange(len(scores)) if groups is None else np.asarray(groups, str)
    draws = itertools.islice(
        _draws(units, labels, np.random.default_rng(seed)), resamples
    )
    found = []
    while times := list(itertools.islice(draws, _BLOCK)):
        found.append(_weighted(scores, labels, np.array(times)))
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
    return [float(low), float(high)]


def _draws(
    units: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yields how many times each image is in a resample of the units, `[N]`."""
    names, unit = np.unique(units, return_inverse=True)
    while True:
        drawn = rng.integers(0, len(names), len(names))
        times = np.bincount(drawn, minlength=len(names))[unit]
        if times[labels == 0].any() and times[labels == 1].any():
            yield times


def _weighted(scores: np.ndarray, labels: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Returns the AUC `[R]` of sets that hold each image so many times, `[R, N]`."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    times, abnormal = times[:, order], labels[order] == 1
    # [R, distinct scores]
    above = np.add.reduceat(times * abnormal, first, axis=1)
    below = np.add.reduceat(times * ~abnormal, first, axis=1)
    wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
    return wins / (above.sum(axis=1) * below.sum(axis=1))
