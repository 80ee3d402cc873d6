"""The area under the ROC curve, and how sure it is."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.stats

FEWEST = 10  # independent pairs with which a bootstrap says something
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
    """Returns the 95% interval of `auc`, by a percentile bootstrap of enough images.

    A bootstrap over few images knows nothing of those it has not seen: of 100 normal
    images and 1 abnormal one, and of an AUC of 0.75, its interval held the truth in one
    set of four, of 5 abnormal ones in 85 of 100. With fewer than `FEWEST` independent
    pairs of a normal and an abnormal unit, and where all resamples agree, as they do
    where separation is perfect, the interval is that of Clopper and Pearson (1934) for
    as many pairs as there are; of none, 0 to 1. It is wide, and holds whatever the
    scores' distributions are: the AUC of all pairs is a mean over ways to form
    independent ones, and varies less than theirs (Hoeffding, 1963, section 5).
    Intervals that take the abnormal scores to vary as the normal ones do (Hanley and
    McNeil, 1982; Newcombe, 2006) are narrower, and too narrow where anomalies vary
    more.

    Args:
      scores: numbers `[N]`; of several runs `[K, N]`, whose mean AUC is meant.
      labels: int `[N]`, 0 normal and 1 abnormal, both present.
      groups: `N` names of what images share; groups are resampled if they are given,
        images if not.
      resamples: that hold both labels; others are drawn again.
      seed: of the drawing.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    runs = np.atleast_2d(scores)
    pairs = independent_pairs(labels, groups)
    if pairs < FEWEST:
        return _of_pairs(runs, labels, pairs)
    units = np.arange(len(labels)) if groups is None else np.asarray(groups, str)
    draws = itertools.islice(
        _draws(units, labels, np.random.default_rng(seed)), resamples
    )
    found = []
    while times := list(itertools.islice(draws, _BLOCK)):
        each = [_weighted(run, labels, np.array(times)) for run in runs]
        found.append(np.mean(each, axis=0))
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
    if high - low < 1e-9:
        return _of_pairs(runs, labels, pairs)
    return [float(low), float(high)]


def independent_pairs(labels: np.ndarray, groups: Sequence[str] | None = None) -> int:
    """Returns how many pairs of a normal and an abnormal image share nothing.

    Args:
      labels: int `[N]`, 0 normal and 1 abnormal.
      groups: `N` names of what images share; no two pairs have a group in common, nor
        have the two of a pair.
    """
    labels = np.asarray(labels)
    units = np.arange(len(labels)) if groups is None else np.asarray(groups, str)
    counts = [len(np.unique(units[labels == label])) for label in (0, 1)]
    return min(*counts, len(np.unique(units)) // 2)


def _of_pairs(runs: np.ndarray, labels: np.ndarray, pairs: int) -> list[float]:
    """Returns the interval of Clopper and Pearson for the mean AUC of some runs."""
    won = pairs * float(np.mean([auc(scores, labels) for scores in runs]))
    low = scipy.stats.beta.ppf(0.025, won, pairs - won + 1) if won else 0
    high = scipy.stats.beta.ppf(0.975, won + 1, pairs - won) if won < pairs else 1
    return [float(low), float(high)]


def band(
    scores: np.ndarray,
    labels: np.ndarray,
    rates: np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """Returns the 95% band of the ROC curve, at each false positive rate by itself.

    Args:
      scores: numbers `[N]`.
      labels: int `[N]`, 0 normal and 1 abnormal, both present.
      rates: of false positives, `[R]`, 0 to 1.
      groups: see `interval`.
      resamples: see `interval`.
      seed: of the drawing.

    Returns:
      float64 `[2, R]`: the lower and the upper true positive rate.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    units = np.arange(len(labels)) if groups is None else np.asarray(groups, str)
    draws = _draws(units, labels, np.random.default_rng(seed))
    order = np.argsort(-scores, kind="stable")
    # the last of equal scores: a threshold cannot part them
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    abnormal = labels[order] == 1
    found = np.empty((resamples, len(rates)))
    for row, times in zip(found, draws, strict=False):
        hits, false = (
            np.append(0, np.cumsum(times[order] * chosen)[last])
            for chosen in (abnormal, ~abnormal)
        )
        row[:] = np.interp(rates, false / false[-1], hits / hits[-1])
    return np.percentile(found, [2.5, 97.5], axis=0)


def group_auc(
    scores: np.ndarray, labels: np.ndarray, groups: Sequence[str]
) -> tuple[float, int]:
    """Returns the AUC of groups, each scored by the highest of equally many images.

    The highest of more images is higher by chance, so that groups of unequal size are
    not compared by all of theirs: of each as many are drawn as the smallest has.

    Args:
      scores: numbers `[N]`.
      labels: int `[N]`, 0 normal and 1 abnormal, the same for all of a group.
      groups: `N` names.

    Returns:
      The chance that the highest of an abnormal group's draw exceeds that of a normal
      group's, exactly, without drawing; and how many images are drawn, M.
    """
    _, index, sizes = np.unique(
        np.asarray(groups, str), return_inverse=True, return_counts=True
    )
    drawn = int(sizes.min())
    descending = np.lexsort((-np.asarray(scores), index))  # within each group
    weights = np.empty(len(index))
    for members in np.split(descending, np.cumsum(sizes)[:-1]):
        # The i-th lowest is the highest of a draw in C(i-1, M-1) of C(size, M) ways.
        i = np.arange(len(members), 1, -1)
        ratios = np.maximum(i - drawn, 0) / (i - 1)
        weights[members] = drawn / len(members) * np.cumprod(np.append(1, ratios))
    found = _weighted(np.asarray(scores), np.asarray(labels), weights[None])
    return float(found[0]), drawn


def wins(normal: np.ndarray, abnormal: np.ndarray) -> np.ndarray:
    """Returns how many normal images each abnormal one beats, of two equal ones half.

    Args:
      normal: scores `[N]`.
      abnormal: scores `[M]`.

    Returns:
      float64 `[M]`. The mean over any of the abnormal images, divided by N, is the AUC
      of these against the normal ones.
    """
    ordered = np.sort(normal)
    below = np.searchsorted(ordered, abnormal, "left")
    return (below + np.searchsorted(ordered, abnormal, "right")) / 2


def mean_resamples(
    normals: Sequence[np.ndarray],
    abnormals: Sequence[np.ndarray],
    normal_groups: Sequence[Sequence[str] | None],
    abnormal_groups: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Returns the mean AUC of models that score the same anomalies, resampled.

    Each model has normal images of its own (its fold), which are resampled apart; the
    resampled anomalies are the same for all models, as what they have of chance is
    common to them. Equal seeds and equal groups draw the same resamples, so that those
    of several trials can be compared one by one.

    Args:
      normals: for each of K models the scores of its normal images.
      abnormals: for each model the scores of the `M` anomalies, in one order.
      normal_groups: for each model the names of what its normal images share; None
        resamples images.
      abnormal_groups: the same of the anomalies.
      resamples: how many, R.
      seed: of the drawing.

    Returns:
      float64 `[R]`, the mean over the models in each resample.
    """
    count = len(abnormals[0])
    names, unit = _units(abnormal_groups, count)
    drawn = _counts(seed, 0, names, resamples)[:, unit]  # [R, M]
    total = np.zeros(resamples)
    for fold, (normal, abnormal) in enumerate(zip(normals, abnormals, strict=True), 1):
        names, unit = _units(normal_groups[fold - 1], len(normal))
        order = np.argsort(unit, kind="stable")
        first = np.searchsorted(unit[order], np.arange(names))
        column, row = np.asarray(normal)[order, None], np.asarray(abnormal)[None]
        beaten = (column < row) + np.float32(0.5) * (column == row)  # [N, M]
        times = _counts(seed, fold, names, resamples)  # [R, groups]
        above = times @ np.add.reduceat(beaten, first)  # [R, M]
        pairs = drawn.sum(axis=1) * (times @ np.bincount(unit).astype(np.float32))
        total += (drawn * above).sum(axis=1, dtype=np.float64) / pairs
    return total / len(normals)


def _units(groups: Sequence[str] | None, count: int) -> tuple[int, np.ndarray]:
    """Returns how many units are resampled, and that of each image, `[count]`."""
    if groups is None:
        return count, np.arange(count)
    names, unit = np.unique(np.asarray(groups, str), return_inverse=True)
    return len(names), unit


@functools.lru_cache(maxsize=16)  # the trials of a study share folds, hence draws
def _counts(seed: int, stream: int, units: int, resamples: int) -> np.ndarray:
    """Returns how many times each unit is in each resample, float32 `[R, units]`."""
    rng = np.random.default_rng((seed, stream))
    times = np.empty((resamples, units), np.float32)
    for row in times:
        row[:] = np.bincount(rng.integers(0, units, units), minlength=units)
    times.flags.writeable = False
    return times


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
