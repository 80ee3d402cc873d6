"""Nested published options as dotted names that are taken out one by one."""

from collections.abc import Iterator, Mapping
from typing import Any

from dpa_jax import errors

Values = dict[str, Any]


def flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of a nested mapping by dotted name."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def take(left: Values, name: str, kind: type, default: Any = None) -> Any:
    """Takes a value of a type out of `left`; without a default it must be there."""
    if default is None:
        require(name in left, f"{name} is missing")
    value = left.pop(name, default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    require(
        isinstance(value, kind) and not (kind is int and isinstance(value, bool)),
        f"{name} is {value!r}, expected {kind.__name__}",
    )
    return value


def expect(left: Values, fixed: Mapping[str, Any]) -> None:
    """Takes options out of `left` that may only have the values they have here."""
    for name, value in fixed.items():
        found = left.pop(name, value)
        require(
            found == value,
            f"{name} is {found!r}; only {value!r} has a counterpart",
        )


def require(condition: bool, message: str) -> None:
    """Raises UsageError with the message unless the condition holds."""
    if not condition:
        raise errors.UsageError(message)
