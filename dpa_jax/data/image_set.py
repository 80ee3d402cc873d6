"""A set of decoded images, in memory or mapped, whatever they were read from."""

import dataclasses
import mmap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_ALL: Any = None


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An image that was left out, and why."""

    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Decoded images with what is known about each.

    Attributes:
      base: uint8 `[M, S, S, C]`, 0 to 255, in memory or mapped from a file; it may
        hold other images besides those of the set.
      paths: `N` names: the file of an image, or what identifies it in its source.
      labels: int8 `[N]`, 0 normal and 1 abnormal, or None if the source has none.
      groups: `N` names of what images share (patient, slide), or None if unknown.
      skipped: the images left out because `skip_corrupt` was set.
      columns: whatever else the source says about each image, by name: `N` values
        each, an array where they are numbers. None if it says nothing.
      rows: int64 `[N]`, which images of `base` the set has, in the order of `paths`;
        all of them if not given.
      originals: what the images were before they were prepared, float32 `[N, F]`, see
        `properties.Original`; None if that is not known.
    """

    base: np.ndarray
    paths: Sequence[str]
    labels: np.ndarray | None = None
    groups: Sequence[str] | None = None
    skipped: Sequence[Skipped] = ()
    columns: Mapping[str, Sequence | np.ndarray] | None = None
    rows: np.ndarray = _ALL
    originals: np.ndarray | None = None

    def __post_init__(self):
        if self.base.dtype != np.uint8 or self.base.ndim != 4:
            raise ValueError(
                f"images must be uint8 [N, S, S, C], got {self.base.dtype} "
                f"{list(self.base.shape)}"
            )
        if self.rows is None:
            object.__setattr__(self, "rows", np.arange(len(self.base)))
        count = len(self)
        for name in ("paths", "labels", "groups", "originals"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"{count} images but {len(value)} {name}")
        for name, value in (self.columns or {}).items():
            if len(value) != count:
                raise ValueError(f"{count} images but {len(value)} values of {name}")

    def __len__(self):
        return len(self.rows)

    @property
    def images(self) -> np.ndarray:
        """The images as uint8 `[N, S, S, C]`: `base` itself if the set has all of it.

        Those of a selection are copied at each access; `base[rows]`, part by part, or
        `blocks` take less memory.
        """
        if np.array_equal(self.rows, np.arange(len(self.base))):
            return self.base
        return self.base[self.rows]

    def blocks(self, size: int = 2**26) -> Iterator[np.ndarray]:
        """Yields all images in order, in copies of a bounded size.

        Args:
          size: of a block, in bytes; a block has one image at least.

        Yields:
          uint8 `[B, S, S, C]`.
        """
        count = max(1, size // max(1, self.base[:1].nbytes))
        for first in range(0, len(self), count):
            block = self.base[self.rows[first : first + count]]
            release(self.base)
            yield block

    def select(self, index) -> "ImageSet":
        """Returns the images at `index`, an integer or boolean array, as a set.

        No pixel is copied: the set shares its `base` with this one.
        """
        index = np.arange(len(self))[index]
        return dataclasses.replace(
            self,
            rows=self.rows[index],
            paths=[self.paths[i] for i in index],
            labels=None if self.labels is None else self.labels[index],
            groups=None if self.groups is None else [self.groups[i] for i in index],
            originals=None if self.originals is None else self.originals[index],
            columns=None
            if self.columns is None
            else {name: taken(v, index) for name, v in self.columns.items()},
        )


def release(images: np.ndarray) -> None:
    """Lets go of the memory that reading a mapped array has taken up.

    The array stays as it is: what is read again comes from the file again, or from the
    system's cache of it. Arrays that are not mapped, or that may be written to, are
    left alone.
    """
    owner: Any = images
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    # A private map that was written to would lose what was written.
    if isinstance(owner, mmap.mmap) and not images.flags.writeable:
        owner.madvise(mmap.MADV_DONTNEED)


def taken(values: Sequence | np.ndarray, index) -> Sequence | np.ndarray:
    """Returns the values at `index`, whole numbers, as an array if they are one."""
    if isinstance(values, np.ndarray):
        return values[index]
    return [values[i] for i in index]


def joined(sets: Sequence[ImageSet], labels: Sequence[int] | None = None) -> ImageSet:
    """Puts sets one after the other.

    Args:
      sets: of images of one shape.
      labels: of each set, 0 normal or 1 abnormal; None for those of its images.

    Returns:
      One set; with labels, groups, and a column, only if every set has them.
    """
    if len(sets) == 1 and labels is None:
        return sets[0]
    columns = [s.columns or {} for s in sets]
    common = [name for name in columns[0] if all(name in c for c in columns)]

    def every(name: str) -> Any:
        parts = [getattr(s, name) for s in sets]
        return None if any(p is None for p in parts) else concatenated(parts)

    return ImageSet(
        np.concatenate([s.images for s in sets]),
        paths=[path for s in sets for path in s.paths],
        labels=every("labels")
        if labels is None
        else np.repeat(np.array(labels, np.int8), [len(s) for s in sets]),
        groups=every("groups"),
        skipped=[skipped for s in sets for skipped in s.skipped],
        columns={name: concatenated([c[name] for c in columns]) for name in common}
        or None,
        originals=every("originals"),
    )


def concatenated(parts: Sequence[Sequence | np.ndarray]) -> Any:
    """Returns some columns as one, an array if all of them are."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return [value for part in parts for value in part]
