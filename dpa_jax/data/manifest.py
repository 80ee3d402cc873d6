"""Reads a CSV manifest: which images there are, and what is known about each."""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from dpa_jax import errors
from dpa_jax.data import labels as label_names


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a manifest lists; see `read`."""

    paths: Sequence[str]
    labels: np.ndarray | None
    groups: Sequence[str] | None
    columns: Mapping[str, Sequence | np.ndarray]


def read(location: str) -> Manifest:
    """Reads the column path and whatever others there are.

    Args:
      location: a CSV file in UTF-8 with a header; relative paths in it are relative to
        its folder.

    Returns:
      Paths; labels as int8 `[N]` (1 abnormal) or None; groups or None; and all other
      columns by name, see `labels.column`, whose cells may be empty.

    Raises:
      DpaError: naming the file and the line: a column or an image file is missing, a
        cell empty, or a label unknown; or two columns have one name.
    """
    fields = ("path", "label", "group")
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
                rows.append(_checked({n: row[n].strip() for n in header}, place))
                path = pathlib.Path(location).parent / rows[-1]["path"]
                if not os.path.isfile(path):
                    raise errors.DpaError(f"{place}: there is no file {path}")
                rows[-1]["path"] = str(path)
    except OSError as error:
        raise errors.DpaError(
            f"{location}: cannot be read: {error.strerror}"
        ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise errors.DpaError(
            f"{location}: not a CSV file in UTF-8: {error}"
        ) from error
    if not rows:
        raise errors.DpaError(f"{location}: lists no images")
    found = {name: [row[name] for row in rows] for name in header}
    labels = found.get("label")
    return Manifest(
        found["path"],
        None if labels is None else np.array([int(v) for v in labels], np.int8),
        found.get("group"),
        {
            name: label_names.column(name, values)
            for name, values in found.items()
            if name and name not in fields
        },
    )


def _checked(row: dict[str, str], place: str) -> dict[str, str]:
    for name in ("path", "label", "group"):
        if row.get(name) == "":
            raise errors.DpaError(f"{place}: the {name} is empty")
    if "label" in row:
        row["label"] = str(label_names.parse_label(row["label"], place))
    return row
