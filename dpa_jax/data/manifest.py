"""CSV manifests: which images there are, and what is known about each."""

import collections
import csv
import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from dpa_jax import errors
from dpa_jax.data import labels as label_names
from dpa_jax.storage import workdir

_TEXT = ("mask", "split")  # columns that never become numbers


@dataclasses.dataclass(frozen=True)
class Row:
    """An image of a data set.

    Attributes:
      path: of the image.
      split: that it belongs to.
      is_abnormal: whether it shows anything but normal tissue.
      group: what it shares with others (patient, volume); empty if not known.
      findings: what an abnormal image shows, joined by +; empty if not known.
      mask: of its abnormal pixels, an image of the same view; empty if there is none.
    """

    path: pathlib.Path
    split: str
    is_abnormal: bool
    group: str = ""
    findings: str = ""
    mask: pathlib.Path | str = ""


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
        cell empty, a label unknown, or an image both normal and abnormal; or two
        columns have one name; or there is no such split.
    """
    fields = ("path", "label", "group")
    splits: set[str] = set()
    rows: list[dict[str, str]] = []
    labelled: dict[str, tuple[str, int]] = {}  # the label of a path, and its line
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
                _check_label(cells, labelled, place, reader.line_num)
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


def write(rows: Sequence[Row], out: str | os.PathLike) -> list[str]:
    """Writes a manifest.

    Args:
      rows: of the images.
      out: a .csv, with paths relative to its folder; of the columns group, findings and
        mask it has those that anything is known of, group if it is known of all images.

    Returns:
      Lines on what it lists; see `describe`.

    Raises:
      UsageError: `out` is no .csv.
      DpaError: an image or a mask is missing.
    """
    if not os.fspath(out).lower().endswith(".csv"):
        raise errors.UsageError(f"the manifest must be called FILE.csv, not {out}")
    for path in (path for row in rows for path in (row.path, row.mask) if path):
        if not os.path.isfile(path):
            raise errors.DpaError(f"{path} is missing")
    folder = os.path.realpath(pathlib.Path(out).parent)

    def relative(path: pathlib.Path | str) -> str:
        if not path:
            return ""
        parent, name = os.path.split(path)
        found = os.path.relpath(os.path.join(os.path.realpath(parent), name), folder)
        # a path that is to be read again stays one
        return f"./{found}" if found.startswith(workdir.FORMULA) else found

    columns = {
        "path": [relative(row.path) for row in rows],
        "label": [("normal", "abnormal")[row.is_abnormal] for row in rows],
        "split": [row.split for row in rows],
        "group": [row.group for row in rows],
        "findings": [row.findings for row in rows],
        "mask": [relative(row.mask) for row in rows],
    }
    if not all(columns["group"]):
        del columns["group"]
    for optional in ("findings", "mask"):
        if not any(columns[optional]):
            del columns[optional]
    values = list(zip(*columns.values(), strict=True))
    workdir.write_csv(pathlib.Path(out), list(columns), values)
    return describe(columns["split"], columns["label"], columns.get("group"))


def describe(
    splits: Sequence[str], labels: Sequence[str] | None, groups: Sequence[str] | None
) -> list[str]:
    """Returns lines on the images of a manifest and on groups that splits share.

    Args:
      splits: `N` names.
      labels: `N` of normal and abnormal, or None.
      groups: `N` names, or None.

    Returns:
      For each split the numbers of normal and abnormal images and of groups, and a
      warning where splits share groups.
    """
    lines = []
    for split in dict.fromkeys(splits):
        rows = [i for i, name in enumerate(splits) if name == split]
        line = f"{split}: {len(rows):,} images"
        if labels is not None:
            counts = collections.Counter(labels[i] for i in rows)
            line += f", {counts['normal']:,} normal, {counts['abnormal']:,} abnormal"
        if groups is not None:
            line += f", {len({groups[i] for i in rows}):,} groups"
        lines.append(line)
    if groups is not None:
        places = collections.defaultdict(set)
        for split, group in zip(splits, groups, strict=True):
            places[group].add(split)
        common = sorted(group for group, found in places.items() if len(found) > 1)
        if common:
            lines.append(
                f"warning: {len(common):,} groups are in several splits, such as "
                f"{common[0]} in {', '.join(sorted(places[common[0]]))}"
            )
    return lines


def _checked(row: dict[str, str], place: str) -> dict[str, str]:
    for name in ("path", "label", "group", "split"):
        if row.get(name) == "":
            raise errors.DpaError(f"{place}: the {name} is empty")
    if "label" in row:
        row["label"] = str(label_names.parse_label(row["label"], place))
    return row


def _check_label(
    row: dict[str, str], labelled: dict[str, tuple[str, int]], place: str, line: int
) -> None:
    """Refuses an image that is listed as normal and as abnormal."""
    if "label" not in row:
        return
    path = os.path.normpath(row["path"])
    label, first = labelled.setdefault(path, (row["label"], line))
    if label != row["label"]:
        raise errors.DpaError(
            f"{place}: {row['path']} has another label than in line {first}"
        )


def _located(row: dict[str, str], folder: pathlib.Path, place: str) -> dict[str, str]:
    """Makes the paths of a row relative to the working directory, if not absolute."""
    for name in ("path", "mask"):
        if row.get(name):
            path = folder / row[name]
            if not os.path.isfile(path):
                raise errors.DpaError(f"{place}: there is no file {path}")
            row[name] = str(path)
    return row
