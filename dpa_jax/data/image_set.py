"""A set of decoded images in host memory, whatever they were read from."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An image that was left out, and why."""

    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Decoded images with what is known about each.

    Attributes:
      images: uint8 `[N, S, S, C]`, 0 to 255, in the order of `paths`.
      paths: `N` names: the file of an image, or what identifies it in its source.
      labels: int8 `[N]`, 0 normal and 1 abnormal, or None if the source has none.
      groups: `N` names of what images share (patient, slide), or None if unknown.
      skipped: the images left out because `skip_corrupt` was set.
      columns: whatever else the source says about each image, by name: `N` values
        each, an array where they are numbers. None if it says nothing.
    """

    images: np.ndarray
    paths: Sequence[str]
    labels: np.ndarray | None = None
    groups: Sequence[str] | None = None
    skipped: Sequence[Skipped] = ()
    columns: Mapping[str, Sequence | np.ndarray] | None = None

    def __post_init__(self):
        count = len(self.images)
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be uint8 [N, S, S, C], got {self.images.dtype} "
                f"{list(self.images.shape)}"
            )
        for name in ("paths", "labels", "groups"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"{count} images but {len(value)} {name}")
        for name, value in (self.columns or {}).items():
            if len(value) != count:
                raise ValueError(f"{count} images but {len(value)} values of {name}")

    def __len__(self):
        return len(self.images)

    def select(self, index) -> "ImageSet":
        """Returns the images at `index`, an integer or boolean array, as a set."""
        index = np.arange(len(self))[index]
        return dataclasses.replace(
            self,
            images=self.images[index],
            paths=[self.paths[i] for i in index],
            labels=None if self.labels is None else self.labels[index],
            groups=None if self.groups is None else [self.groups[i] for i in index],
            columns=None
            if self.columns is None
            else {name: taken(v, index) for name, v in self.columns.items()},
        )


def taken(values: Sequence | np.ndarray, index) -> Sequence | np.ndarray:
    """Returns the values at `index`, whole numbers, as an array if they are one."""
    if isinstance(values, np.ndarray):
        return values[index]
    return [values[i] for i in index]


def joined(sets: Sequence[ImageSet], labels: Sequence[int]) -> ImageSet:
    """Puts sets one after the other, all images of each under one label.

    Args:
      sets: of images of one shape.
      labels: of each set, 0 normal or 1 abnormal.

    Returns:
      One set; with groups, and with a column, only if every set has it.
    """
    groups = [s.groups for s in sets]
    columns = [s.columns or {} for s in sets]
    common = [name for name in columns[0] if all(name in c for c in columns)]
    return ImageSet(
        images=np.concatenate([s.images for s in sets]),
        paths=[path for s in sets for path in s.paths],
        labels=np.repeat(np.array(labels, np.int8), [len(s) for s in sets]),
        groups=None
        if any(g is None for g in groups)
        else [name for g in groups if g is not None for name in g],
        skipped=[skipped for s in sets for skipped in s.skipped],
        columns={name: _concatenated([c[name] for c in columns]) for name in common}
        or None,
    )


def _concatenated(parts: Sequence[Sequence | np.ndarray]) -> Sequence | np.ndarray:
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return [value for part in parts for value in part]
