"""Reads a CSV manifest: which images there are, and what is known about each."""

import csv
import os
import pathlib

import numpy as np

from dpa_jax import errors
from dpa_jax.data import labels as label_names


def read(
    location: str,
) -> tuple[list[str], np.ndarray | None, list[str] | None]:
    """Reads the columns path and, where there are any, label and group.

    Args:
      location: a CSV file in UTF-8 with a header; relative paths in it are relative to
        its folder.

    Returns:
      Paths, labels as int8 `[N]` (1 abnormal) or None, and groups or None.

    Raises:
      DpaError: naming the file and the line: a column or an image file is missing, a
        cell empty, or a label unknown.
    """
    fields = ("path", "label", "group")
    rows: list[dict[str, str]] = []
    try:
        with open(location, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            label_names.check_fields(location, header, "path", fields[1:])
            known = [name for name in fields if name in header]
            for row in reader:
                place = f"{location}, line {reader.line_num}"
                # DictReader's signs of a cell too many and of one too few.
                if None in row or None in row.values():
                    raise errors.DpaError(f"{place}: not {len(header)} columns")
                rows.append(_check_row({n: row[n].strip() for n in known}, place))
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
    return (
        [row["path"] for row in rows],
        np.array([int(row["label"]) for row in rows], np.int8)
        if "label" in known
        else None,
        [row["group"] for row in rows] if "group" in known else None,
    )


def _check_row(row: dict[str, str], place: str) -> dict[str, str]:
    for name, value in row.items():
        if not value:
            raise errors.DpaError(f"{place}: the {name} is empty")
    if "label" in row:
        row["label"] = str(label_names.parse_label(row["label"], place))
    return row
