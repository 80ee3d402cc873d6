"""Reads a CSV manifest: which images there are, and what is known about each."""

import csv
import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from dpa_jax import errors
from dpa_jax.data import labels as label_names

_TEXT = ("mask", "split")  # columns that never become numbers


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a manifest lists; see `read`."""

    paths: Sequence[str]
    labels: np.ndarray | None
    groups: Sequence[str] | None
    columns: Mapping[str, Sequence | np.ndarray]


def parse(location: str) -> tuple[str, str | None] | None:
    """Splits `FILE.csv` or `FILE.csv:SPLIT`; returns None if it is neither."""
    found = re.fullmatch(r"(.+\.csv)(?::([^:/\\]+))?", location, re.IGNORECASE)
    return None if found is None else (found[1], found[2])


def read(location: str, split: str | None = None) -> Manifest:
    """Reads the column path and whatever others there are.

    Args:
      location: a CSV file in UTF-8 with a header; relative paths in it are relative to
        its folder.
      split: the value of the column split whose rows are read; None for all rows.

    Returns:
      Paths; labels as int8 `[N]` (1 abnormal) or None; groups or None; and all other
      columns by name, see `labels.column`, whose cells may be empty. The column mask
      holds paths as path does.

    Raises:
      DpaError: naming the file and the line: a column or an image file is missing, a
        cell empty, or a label unknown; or two columns have one name; or there is no
        such split.
    """
    fields = ("path", "label", "group")
    splits: set[str] = set()
    rows: list[dict[str, str]] = []
    try:
        with open(location, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            label_names.check_fields(location, header, "path", fields[1:])
            twice = [name for name in header if name and header.count(name) > 1]
            if twice:
                raise errors.DpaError(f"{location}: two columns are called {twice[0]}")
            for row in reader:
                place = f"{location}, line {reader.line_num}"
                # DictReader's signs of a cell too many and of one too few.
                if None in row or None in row.values():
                    raise errors.DpaError(f"{place}: not {len(header)} columns")
                cells = _checked({n: row[n].strip() for n in header}, place)
                splits.add(cells.get("split", ""))
                if split in (None, cells.get("split")):
                    rows.append(_located(cells, pathlib.Path(location).parent, place))
    except OSError as error:
        raise errors.DpaError(
            f"{location}: cannot be read: {error.strerror}"
        ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise errors.DpaError(
            f"{location}: not a CSV file in UTF-8: {error}"
        ) from error
    if not splits:
        raise errors.DpaError(f"{location}: lists no images")
    if not rows:
        there = ", ".join(sorted(splits)) if "split" in header else "no column split"
        raise errors.DpaError(f"{location} has no split {split!r}; it has {there}")
    found = {name: [row[name] for row in rows] for name in header}
    labels = found.get("label")
    return Manifest(
        found["path"],
        None if labels is None else np.array([int(v) for v in labels], np.int8),
        found.get("group"),
        {
            name: values if name in _TEXT else label_names.column(name, values)
            for name, values in found.items()
            if name and name not in fields
        },
    )


def _checked(row: dict[str, str], place: str) -> dict[str, str]:
    for name in ("path", "label", "group", "split"):
        if row.get(name) == "":
            raise errors.DpaError(f"{place}: the {name} is empty")
    if "label" in row:
        row["label"] = str(label_names.parse_label(row["label"], place))
    return row


def _located(row: dict[str, str], folder: pathlib.Path, place: str) -> dict[str, str]:
    """Makes the paths of a row relative to the working directory, if not absolute."""
    for name in ("path", "mask"):
        if row.get(name):
            path = folder / row[name]
            if not os.path.isfile(path):
                raise errors.DpaError(f"{place}: there is no file {path}")
            row[name] = str(path)
    return row
