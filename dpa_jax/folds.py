"""Cross-validation: which of the normal images a run is trained without.

Images of one patient or slide resemble each other, so that a fold holds all of a group
or none (method, section 6).
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from dpa_jax import errors
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
    names, index, sizes = np.unique(
        np.asarray(groups, str), return_inverse=True, return_counts=True
    )
    if len(names) < folds:
        raise errors.DpaError(
            f"{folds} folds need at least {folds} groups (patients, slides) of normal "
            f"images; there are {len(names)}"
        )
    order = sorted(range(len(names)), key=lambda i: _hash(names[i]))
    filled = np.zeros(folds, np.int64)
    fold_of_group = np.zeros(len(names), np.int64)
    for i in order:
        fold = int(np.argmin(filled))
        fold_of_group[i] = fold
        filled[fold] += sizes[i]
    return fold_of_group[index]


def held_out(images: ImageSet, folds: int, fold: int) -> np.ndarray:
    """Says which images are held out of training: bool `[N]`.

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
    return [
        hashlib.sha256(image.tobytes()).hexdigest()
        for block in images.blocks()
        for image in block
    ]


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


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
