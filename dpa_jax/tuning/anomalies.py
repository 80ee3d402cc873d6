"""The known anomalies that trials are ranked by, and what they must not be in."""

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from dpa_jax import console, data, errors
from dpa_jax.data import labels as label_names
from dpa_jax.data.image_set import ImageSet
from dpa_jax.weights import formats


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """What is kept about a pool of anomalies.

    Attributes:
      paths: `m` names.
      groups: `m` names of what they share (patient, slide), None if unknown.
      kinds: `m` names of what they are, empty where that is unknown.
      sha256: of each one's pixels, `m` in hexadecimal.
      drawn: int64, ascending: those that trials are ranked by.
      statements: what `guard.guard` has found, for the report.
    """

    paths: tuple[str, ...]
    groups: tuple[str, ...] | None
    kinds: tuple[str, ...]
    sha256: tuple[str, ...]
    drawn: np.ndarray
    statements: tuple[str, ...] = ()

    def count_kinds(self) -> dict[str, int]:
        """Returns how many of the drawn ones are of each kind, the most first."""
        counts = collections.Counter(self.kinds[i] for i in self.drawn)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


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

    @property
    def groups(self) -> Sequence[str] | None:
        """The patient or slide of each, None if unknown."""
        return self.images.groups

    def record(self, statements: Sequence[str] = ()) -> Record:
        """Returns what is to be kept about the pool."""
        groups = self.images.groups
        return Record(
            tuple(self.images.paths),
            None if groups is None else tuple(groups),
            self.kinds,
            tuple(hashes(self.images)),
            self.drawn,
            tuple(statements),
        )


def load(
    search: ml_collections.ConfigDict,
    config: ml_collections.ConfigDict,
    *,
    visible: bool = True,
) -> Pool | None:
    """Loads the anomalies that a search names and draws some of them.

    Args:
      search: its `anomalies`: `source`, a location as `data.load` takes it; `where`,
        COLUMN=VALUE of those to take, empty for all; `kind`, the column that says what
        an anomaly is, empty for `kind` or, in a folder, its first subfolder; `count`
        and `seed` of the drawing.
      config: says how images are preprocessed and which count as normal. Those of
        trials may differ; order and drawing are the same.
      visible: whether to show progress.

    Returns:
      The pool; None if no source is named.

    Raises:
      UsageError: more are to be drawn than there are, or none are named to choose from.
      DpaError: they cannot be loaded, have no such column, or one is normal.
    """
    if not search.source:
        if search.where or search.kind:
            raise errors.UsageError(
                "anomalies.where and anomalies.kind need anomalies.source: say where "
                "the anomalies are"
            )
        return None
    images = read_images(search.source, config, "reading anomalies", visible)
    if search.where:
        images = images.select(label_names.matches(images, search.where))
    _check_abnormal(images, config, search.source)
    if not 0 <= search.count <= len(images):
        matching = f" with {search.where}" if search.where else ""
        raise errors.UsageError(
            f"anomalies.count is {search.count}; {search.source} has {len(images)} "
            f"anomalies{matching}"
        )
    return Pool(
        images,
        _kinds(images, search.source, search.kind),
        draw(len(images), search.count, search.seed),
    )


def draw(pool: int, count: int, *seed: int) -> np.ndarray:
    """Draws without replacement: a larger draw of equal seed holds the smaller one.

    Args:
      pool: how many there are.
      count: how many to draw.
      *seed: numbers of 0 and above.

    Returns:
      int64 `[count]`, ascending.
    """
    order = np.random.default_rng(seed).permutation(pool)
    return np.sort(order[:count]).astype(np.int64)


def keep(path: pathlib.Path, pool: Pool, statements: Sequence[str]) -> None:
    """Writes what is known about a pool, or checks that it is the one written before.

    Statements are renewed: the test set may have been named later.

    Args:
      path: of the .npz.
      pool: preprocessed as the study's config says.
      statements: of `guard.guard`.

    Raises:
      DpaError: the study was begun with other anomalies.
    """
    now = pool.record(statements)
    if path.exists():
        before = read(path)
        if before.sha256 != now.sha256 or before.paths != now.paths:
            raise errors.DpaError(
                f"the study was begun with {len(before.paths)} other anomalies than "
                f"the {len(now.paths)} found now ({path}); restore them, or give "
                "another --workdir"
            )
        if before.drawn.tolist() != now.drawn.tolist():
            raise errors.DpaError(
                f"the study draws {len(before.drawn)} other anomalies than the "
                f"{len(now.drawn)} asked for now ({path}); ask for the same, or give "
                "another --workdir"
            )
        if before.statements == now.statements:
            return
    names = {"paths": now.paths, "groups": now.groups, "kinds": now.kinds}
    names |= {"sha256": now.sha256, "statements": now.statements}
    arrays: dict[str, Any] = {"drawn": now.drawn}
    arrays |= {k: np.array(v, np.str_) for k, v in names.items() if v is not None}
    with formats.replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read(path: pathlib.Path) -> Record:
    """Reads what `keep` has written."""
    found = formats.read_npz(path, lambda name: True)
    with formats.reading(path):
        names = {
            name: tuple(found[name].tolist())
            for name in ("paths", "kinds", "sha256", "statements")
        }
        groups = tuple(found["groups"].tolist()) if "groups" in found else None
        return Record(groups=groups, drawn=found["drawn"], **names)


def read_images(
    location: str, config: ml_collections.ConfigDict, description: str, visible: bool
) -> ImageSet:
    """Loads images as a configuration says; `description` is shown meanwhile."""
    with console.counting(description, "images", visible) as show:
        return data.load(
            location,
            data.Preprocessing.from_config(config),
            skip_corrupt=config.data.skip_corrupt,
            workers=config.data.workers,
            progress=show,
            data_dir=config.data.data_dir or None,
        )


def _check_abnormal(images: ImageSet, config, source: str) -> None:
    normal = np.zeros(len(images), bool)
    column, _, values = config.data.normal.partition("=")
    known = _columns(images).get(column.strip())
    if known is not None:
        # not labels.matches, which wants an image of each value
        names = [_text(label_names.split(value)) for value in values.split("|")]
        names += [value.strip() for value in values.split("|")]
        normal = np.array([_text(value) in names for value in known])
    elif images.labels is not None:
        normal = images.labels == 0
    if normal.any():
        first = images.paths[int(normal.argmax())]
        raise errors.DpaError(
            f"{source}: {normal.sum()} of {len(images)} are normal images, not "
            f"anomalies, such as {first}; anomalies.where takes those with a value in "
            "a column"
        )


def _kinds(images: ImageSet, source: str, column: str) -> tuple[str, ...]:
    columns = _columns(images)
    if column and column not in columns:
        known = ", ".join(sorted(columns)) or "none"
        raise errors.DpaError(
            f"anomalies.kind is {column!r}; {source} has the columns {known}"
        )
    if column or "kind" in columns:
        return tuple(_text(value) for value in columns[column or "kind"])
    folder = os.path.expanduser(source)
    if not os.path.isdir(folder):
        return ("",) * len(images)
    inside = [pathlib.Path(os.path.relpath(path, folder)) for path in images.paths]
    return tuple(path.parts[0] if len(path.parts) > 1 else "" for path in inside)


def _columns(images: ImageSet) -> dict[str, Sequence | np.ndarray]:
    groups = {} if images.groups is None else {"group": images.groups}
    return {**groups, **(images.columns or {})}


def _text(value: object) -> str:
    return "+".join(sorted(value)) if isinstance(value, tuple) else str(value)


def hashes(images: ImageSet) -> list[str]:
    """Returns the SHA-256 of each image's pixels, in hexadecimal."""
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images.images]
