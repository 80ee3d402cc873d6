"""What one p-value is of: an image, or all images of a group (patient, slide).

A group has the highest of its scores, since one abnormal image makes it abnormal. In
two strata it is two units.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpa_jax import errors
from dpa_jax.data.image_set import ImageSet

ALL = "all"  # the one stratum where nothing parts any


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """Scores of units, in the order of their first images.

    Attributes:
      scores: float64 `[U]`.
      strata: str `[U]`.
      index: int64 `[N]`, the unit of each image.
    """

    scores: np.ndarray
    strata: np.ndarray
    index: np.ndarray

    @classmethod
    def of(
        cls,
        scores: np.ndarray,
        groups: Sequence[Any] | None,
        strata: Sequence[Any] | None,
    ) -> "Units":
        """Gathers the scores of images.

        Args:
          scores: float `[N]`.
          groups: `N` names; None makes each image a unit.
          strata: `N` names; None for one stratum.
        """
        count = len(scores)
        names = [ALL] * count if strata is None else [str(name) for name in strata]
        members = range(count) if groups is None else [str(name) for name in groups]
        keys = list(zip(members, names, strict=True))
        numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        index = np.array([numbers[key] for key in keys], np.int64)
        highest = np.full(len(numbers), -np.inf)
        np.maximum.at(highest, index, np.asarray(scores, np.float64))
        return cls(highest, np.array([name for _, name in numbers]), index)

    def by_stratum(self) -> dict[str, np.ndarray]:
        """Returns which units each stratum has: bool `[U]` by name, names sorted."""
        return {str(name): self.strata == name for name in np.unique(self.strata)}


def columns(images: ImageSet) -> dict[str, Any]:
    """Returns what is known about images by name, their groups as `group`."""
    groups = {} if images.groups is None else {"group": images.groups}
    return {**(images.columns or {}), **groups}


def column(images: ImageSet, name: str) -> Sequence[Any]:
    """Returns one of `columns`.

    Raises:
      DpaError: there is no such column.
    """
    found = columns(images)
    if name not in found:
        raise errors.DpaError(
            f"the images have no column {name}; they have {', '.join(found) or 'none'}"
        )
    return found[name]
