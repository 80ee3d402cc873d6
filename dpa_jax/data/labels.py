"""What sources say about images: names of fields, labels, conditions on columns."""

import dataclasses
import difflib
import re
from collections.abc import Sequence

import numpy as np

from dpa_jax import errors
from dpa_jax.data.image_set import ImageSet

_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d+)?")
_LABELS = {"normal": 0, "0": 0, "abnormal": 1, "1": 1}


def parse_label(value: str, place: str) -> int:
    """Returns 0 for normal or 0 and 1 for abnormal or 1; `place` is named in errors."""
    if value.lower() not in _LABELS:
        raise errors.DpaError(
            f"{place}: a label is normal or 0, or abnormal or 1, not {value!r}"
        )
    return _LABELS[value.lower()]


def check_fields(
    source: str, found: Sequence[str], required: str, optional: Sequence[str]
) -> None:
    """Refuses a source that lacks its required field or has one that is misspelt.

    A field that is neither known nor much like a missing one is no fault.
    """
    if required not in found:
        raise errors.DpaError(
            f"{source}: no {required} among {', '.join(found) or 'no fields at all'}"
        )
    unknown = [name for name in found if name not in (required, *optional)]
    for name in optional:
        close = difflib.get_close_matches(name, unknown, 1, 0.75)
        if name not in found and close:
            raise errors.DpaError(
                f"{source}: {close[0]} is not known; if {name} is meant, rename it"
            )


def matches(images: ImageSet, condition: str) -> np.ndarray:
    """Returns which images a condition such as `class=cat` is true of.

    Args:
      images: with columns.
      condition: `COLUMN=VALUE`, or `COLUMN=VALUE|VALUE` for any of several; several
        conditions joined by ` & ` are true where all of them are. Where a column holds
        lists, such as findings, a value is the whole list, joined by `+` in any order:
        `findings=Mass+Nodule`, and `findings=` for an empty one. `group` is a column
        too where the images have groups.

    Returns:
      bool `[N]`.

    Raises:
      UsageError: the condition cannot be read.
      DpaError: there is no such column, or no image with one of the values.
    """
    if " & " in condition:
        found = [matches(images, part) for part in condition.split(" & ")]
        return np.logical_and.reduce(found)
    name, equals, wanted = (part.strip() for part in condition.partition("="))
    if not name or not equals:
        raise errors.UsageError(
            f"{condition!r} is not COLUMN=VALUE or COLUMN=VALUE|VALUE"
        )
    columns = dict(images.columns or {})
    if images.groups is not None:
        columns.setdefault("group", images.groups)
    if name not in columns:
        raise errors.DpaError(
            f"{condition}: the images have no column {name}; there "
            f"{'is' if len(columns) == 1 else 'are'} {', '.join(columns) or 'none'}"
        )
    found = np.array([_text(value) for value in columns[name]])
    values = [value.strip() for value in wanted.split("|")]
    if any(isinstance(value, tuple) for value in columns[name]):
        values = [_text(split(value)) for value in values]
    for value in values:
        if value not in found:
            near = difflib.get_close_matches(value, list(set(found)), 1)
            there = near or sorted(set(found))[:10]
            raise errors.DpaError(
                f"{condition}: no image has {name}={value}; there "
                f"{'is' if len(there) == 1 else 'are'} {', '.join(there)}"
            )
    return np.isin(found, values)


def labelled(images: ImageSet, normal: str, source: str) -> ImageSet:
    """Returns images labelled by what is normal, or as their source labels them.

    Args:
      images: of a source.
      normal: a condition, see `matches`, that is true of the normal images alone, such
        as a config's `data.normal`; empty to leave the labels as they are.
      source: where the images are, for messages.

    Raises:
      UsageError: there is no condition, and the images are of several classes of which
        it is not known which is normal.
      DpaError: see `matches`.
    """
    if normal:
        found = (~matches(images, normal)).astype(np.int8)
        return dataclasses.replace(images, labels=found)
    classes = sorted(set(map(_text, (images.columns or {}).get("class", ()))))
    if images.labels is None and len(classes) > 1:
        raise errors.UsageError(
            f"{source} has the classes {', '.join(classes[:10])}; say which are "
            f"normal, such as --config.data.normal='class={classes[0]}'"
        )
    return images


def column(name: str, values: Sequence[str]) -> np.ndarray | list:
    """Reads what a source says about each image in text.

    Args:
      name: of the column. `findings` holds lists, see `split`.
      values: `N` of them.

    Returns:
      int64 or float64 `[N]` if all are numbers (007 is a name), NaN where nothing
      stands; tuples of names if they are lists; else the values.
    """
    if name == "findings":
        return [split(value) for value in values]
    known = [value for value in values if value]
    if known and all(_NUMBER.fullmatch(value) for value in known):
        whole = len(known) == len(values) and not any("." in v for v in known)
        kind = np.int64 if whole else np.float64
        return np.array([value or "nan" for value in values]).astype(kind)
    return list(values)


def split(value: str) -> tuple[str, ...]:
    """Reads a list of names joined by + or |, empty if nothing or No Finding."""
    names = (name.strip() for name in value.replace("|", "+").split("+"))
    return tuple(name for name in names if name not in ("", "No Finding"))


def _text(value) -> str:
    if isinstance(value, tuple):
        return "+".join(sorted(map(str, value)))
    if isinstance(value, float | np.floating):
        return str(value).removesuffix(".0")  # 57.0 years are written 57
    return str(value)
