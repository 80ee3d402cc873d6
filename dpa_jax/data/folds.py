"""Cross-validation: which of the normal images a run is trained without.

Images of one patient or slide resemble each other, so that a fold holds all of a group
or none (method, section 6).
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from dpa_jax import errors
from dpa_jax.data import leakage
from dpa_jax.data.image_set import ImageSet


def assign(groups: Sequence[str], folds: int) -> np.ndarray:
    """Deals groups out to folds: the same however the images are ordered.

    Args:
      groups: the name of each image's group, `N` of them.
      folds: how many, at least 2.

    Returns:
      int64 `[N]`, the fold of each image, from 0. The groups are taken in the order of
      a hash of their names, each for the fold with the fewest images by then.

    Raises:
      DpaError: there are fewer groups than folds.
    """
    return _dealt(groups, folds)[0]


def even(groups: Sequence[str], folds: int) -> np.ndarray:
    """Returns which images to keep so that all folds hold as many: bool `[N]`.

    The groups that are dealt out last are left out, at most a hundredth of the images;
    if that cannot make folds equal, none is. What is kept is dealt out as before.

    Args:
      groups: the name of each image's group, `N` of them.
      folds: how many, at least 2.
    """
    fold, position = _dealt(groups, folds)
    for last in range(int(position.max()), -1, -1):
        kept = position <= last
        if kept.sum() < 0.99 * len(kept):
            break
        if len(set(np.bincount(fold[kept], minlength=folds))) == 1:
            return kept
    return np.ones(len(fold), bool)


def _dealt(groups: Sequence[str], folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the fold of each image, and the position of its group in the dealing."""
    names, index, sizes = np.unique(
        np.asarray(groups, str), return_inverse=True, return_counts=True
    )
    if len(names) < folds:
        raise errors.DpaError(
            f"{folds} folds need at least {folds} groups (patients, slides) of normal "
            f"images; there are {len(names)}"
        )
    order = sorted(
        range(len(names)), key=lambda i: hashlib.sha256(names[i].encode()).hexdigest()
    )
    filled, fold = np.zeros(folds, np.int64), np.zeros(len(names), np.int64)
    for i in order:
        fold[i] = np.argmin(filled)
        filled[fold[i]] += sizes[i]
    return fold[index], np.argsort(order)[index]


def held_out(images: ImageSet, folds: int, fold: int) -> np.ndarray:
    """Returns which images are held out of training: bool `[N]`.

    Where a source knows no groups, each image is one of its own; images that are equal
    pixel by pixel belong together even then.

    Args:
      images: normal ones.
      folds: how many, at least 2.
      fold: the one held out, from 0.
    """
    groups = groups_of(images)
    held = assign(groups, folds) == fold
    check(groups, held)
    return held


def groups_of(images: ImageSet) -> list[str]:
    """Returns what must stay together: the groups, or else one for each picture."""
    if images.groups is not None:
        return list(images.groups)
    return leakage.fingerprints(images)


def of_groups(images: ImageSet, groups: Sequence[str] | None) -> np.ndarray:
    """Returns which images are of one of the groups: bool `[N]`, False if unknown."""
    if images.groups is None or groups is None:
        return np.zeros(len(images), bool)
    return np.isin(np.asarray(images.groups, str), np.asarray(groups, str))


def check(groups: Sequence[str], held: np.ndarray) -> None:
    """Refuses a division that tears a group apart.

    Raises:
      DpaError: naming a group with images on both sides.
    """
    names = np.asarray(groups, str)
    both = np.intersect1d(names[held], names[~held])
    if len(both):
        raise errors.DpaError(
            f"{len(both)} groups (patients, slides) have images both in training and "
            f"held out, such as {both[0]}"
        )
