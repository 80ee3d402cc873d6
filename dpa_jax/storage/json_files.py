"""JSON as runs keep it: one reader, which checks what it finds, and lines of it."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dpa_jax import errors
from dpa_jax.weights import formats

# the names that an object must have, each with the types that its value may be of
Fields = Mapping[str, type | tuple[type, ...]]

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def read(path: str | os.PathLike, fields: Fields, remedy: str) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
      path: of the file.
      fields: that it must have. An int counts as a float; a bool as neither.
      remedy: what to do about a damaged file, which ends the message of an error.

    Raises:
      DpaError: the file cannot be read or does not hold that; it is named.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise errors.DpaError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise errors.DpaError(f"{path}: damaged, not text; {remedy}") from None
    try:
        return parse(text, fields)
    except ValueError as error:
        raise errors.DpaError(f"{path}: damaged, {error}; {remedy}") from None


def parse(text: str, fields: Fields) -> dict[str, Any]:
    """Returns the JSON object that a text holds; see `read`.

    Raises:
      ValueError: the text holds no object, or one without these fields.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}" if text.strip() else "empty") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:  # Python's refusal to read a number of thousands of digits
        raise ValueError("it holds a number that is too long") from None
    return check(values, fields)


def check(values: Any, fields: Fields) -> dict[str, Any]:
    """Returns what was read from JSON, if it is an object with these fields.

    Raises:
      ValueError: it is not, or a field is missing or of another type.
    """
    if not isinstance(values, dict):
        raise ValueError("not an object of names and values")
    for name, types in fields.items():
        if name not in values:
            raise ValueError(f"{name} is missing")
        kinds = types if isinstance(types, tuple) else (types,)
        if not any(_is(values[name], kind) for kind in kinds):
            expected = " or ".join(_NAMES.get(kind, kind.__name__) for kind in kinds)
            raise ValueError(f"{name} is not {expected}")
    return values


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def write_lines(
    path: pathlib.Path, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Writes rows as JSON objects, one a line, atomically; see `number`."""
    with formats.replacing(path) as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            for row in rows:
                line = json.dumps(dict(zip(header, row, strict=True)), allow_nan=False)
                file.write(line + "\n")


def number(value: np.floating | np.integer) -> float | int | None:
    """Returns the number with the fewest digits that stands for the very same float.

    JSON has none for what is not finite: None.
    """
    if isinstance(value, np.integer):
        return int(value)
    return float(str(value)) if np.isfinite(value) else None
