"""The known anomalies that trials are ranked by, and what they must not be in."""

import dataclasses
import os
from typing import Any

import ml_collections
import numpy as np

from dpa_jax import errors
from dpa_jax.data import folds, leakage, test_set
from dpa_jax.data import labels as label_names
from dpa_jax.data.image_set import ImageSet


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """All anomalies of a source, some of which are drawn to rank trials by.

    Attributes:
      images: `m` of them.
      kinds: what each is, empty where that is unknown.
      drawn: int64, ascending indices into them.
    """

    images: ImageSet
    kinds: tuple[str, ...]
    drawn: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Returns what a study keeps in its database about those that are drawn."""
        chosen = self.images.select(self.drawn)
        kinds = [self.kinds[i] for i in self.drawn]
        kept = {"drawn": self.drawn.tolist(), "of": len(self.images), "kinds": kinds}
        return {**kept, "paths": list(chosen.paths), "groups": chosen.groups}


def load(
    options: ml_collections.ConfigDict, config: ml_collections.ConfigDict, visible: bool
) -> Pool | None:
    """Loads the anomalies that a search names and draws some of them.

    Args:
      options: `anomalies` of a search, see `search.default_options`.
      config: how images are preprocessed and which count as normal.
      visible: whether to show progress.

    Returns:
      The pool; None if no source is named.

    Raises:
      DpaError: they cannot be loaded, are too few, lack a column, or one is normal.
    """
    source = options.source
    if not source:
        if options.where or options.kind:
            raise errors.UsageError("anomalies.where and .kind need anomalies.source")
        return None
    images = test_set.read(source, config, "reading anomalies", visible)
    if options.where:
        images = images.select(label_names.matches(images, options.where))
    groups = {} if images.groups is None else {"group": images.groups}
    columns = {**groups, **(images.columns or {})}
    normal = _normal(images, columns, config.data.normal)
    if normal.any():
        raise errors.DpaError(
            f"{source}: {normal.sum()} of {len(images)} are normal images, such as "
            f"{images.paths[int(normal.argmax())]}; anomalies.where takes those with a "
            "value in a column"
        )
    if options.count > len(images):
        raise errors.UsageError(
            f"anomalies.count is {options.count}; {source} has {len(images)} anomalies"
        )
    if options.kind and options.kind not in columns:
        raise errors.DpaError(
            f"anomalies.kind is {options.kind!r}; {source} has the columns "
            f"{', '.join(sorted(columns)) or 'none'}"
        )
    kinds = [_text(value) for value in columns.get(options.kind or "kind", ())]
    if not kinds:  # the first subfolder, if it is a folder
        folder = os.path.expanduser(source)
        inside = [os.path.relpath(p, folder).partition(os.sep) for p in images.paths]
        kinds = [p[0] if p[1] and os.path.isdir(folder) else "" for p in inside]
    drawn = draw(len(images), options.count, options.seed)
    return Pool(images, tuple(kinds), drawn)


def draw(pool: int, count: int, *seed: int) -> np.ndarray:
    """Draws so many ascending indices; a larger draw of a seed holds the smaller."""
    order = np.random.default_rng(seed).permutation(pool)
    return np.sort(order[:count]).astype(np.int64)


def usable(normal: ImageSet, pool: Pool | None, parts: int) -> ImageSet:
    """Returns the normal images that so many folds are made of.

    Those of a patient or slide of whom an anomaly is drawn are left out, and a few that
    make folds unequal, whose programs would be compiled apart (see `folds.even`).
    """
    if pool is not None:
        drawn = pool.images.select(pool.drawn)
        normal = normal.select(~folds.of_groups(normal, drawn.groups))
    return normal.select(folds.even(folds.groups_of(normal), parts))


def check(
    pool: Pool, normal: ImageSet, kept: ImageSet, test: ImageSet | None
) -> list[str]:
    """Refuses anomalies that are trained on, or tested on (or others of a patient).

    Args:
      pool: all of it is checked, drawn or not.
      normal: all normal training images.
      kept: those of them that are `usable`.
      test: the test set, None if none is named.

    Returns:
      Sentences on what was checked and what could not be, for the report.
    """
    ours = pool.images
    _refuse_same(ours, normal, f"the {len(normal):,} normal training images")
    both = folds.of_groups(ours, normal.groups).sum()
    out = folds.of_groups(normal, ours.select(pool.drawn).groups).sum()
    found = [
        f"{both:,} of {len(ours):,} anomalies share a patient or slide with the "
        f"{len(normal):,} normal training images. The {out:,} normal images of those "
        "drawn are neither trained on nor held out (a learning curve draws from those "
        "that share none with the rest)."
    ]
    if ours.groups is None or normal.groups is None:
        found = ["Anomalies and normal images share no image (patients are unknown)."]
    if uneven := len(normal) - len(kept) - out:
        found.append(f"{uneven:,} normal images are left out to make folds equal.")
    if test is None:
        return [*found, "No test set was named that the anomalies may be in."]
    _refuse_same(ours, test, "the test set")
    shared = np.flatnonzero(folds.of_groups(ours, test.groups))
    if len(shared):
        raise errors.DpaError(
            f"{len(shared)} of {len(ours)} anomalies are of a patient or slide that is "
            f"also in the test set, such as {ours.paths[shared[0]]}; leave them out of "
            "anomalies.source"
        )
    known = ours.groups is not None and test.groups is not None
    what = "image, patient or slide" if known else "image (patients are unknown)"
    return [*found, f"Anomalies and the {len(test):,} test images share no {what}."]


def _refuse_same(ours: ImageSet, others: ImageSet, where: str) -> None:
    names = {os.path.realpath(path): path for path in others.paths}
    pixels = {i: others.paths[j] for i, j in leakage.same(ours, others).items()}
    found = [
        f"{path}, which is {names.get(os.path.realpath(path)) or pixels[i]}"
        for i, path in enumerate(ours.paths)
        if os.path.realpath(path) in names or i in pixels
    ]
    if found:
        raise errors.DpaError(
            f"{len(found)} of {len(ours)} anomalies are also in {where}, by name or by "
            f"pixels, such as {found[0]}; leave them out of anomalies.source"
        )


def _normal(images: ImageSet, columns, condition: str) -> np.ndarray:
    column, _, values = condition.partition("=")
    if column.strip() not in columns:
        return (
            np.zeros(len(images), bool) if images.labels is None else images.labels == 0
        )
    # not labels.matches, which wants an image of each value
    names = {value.strip() for value in values.split("|")}
    names |= {_text(label_names.split(name)) for name in names}
    return np.array([_text(value) in names for value in columns[column.strip()]])


def _text(value: object) -> str:
    return "+".join(sorted(value)) if isinstance(value, tuple) else str(value)
