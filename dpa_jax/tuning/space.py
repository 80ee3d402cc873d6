"""The hyper-parameters of a search: ranges, lists, and fields that go together."""

import dataclasses
import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections
import numpy as np

from dpa_jax import config as config_lib
from dpa_jax import errors

_KEYS = ("field", "low", "high", "log", "points", "values", "choices")


@dataclasses.dataclass(frozen=True)
class Range:
    """A hyper-parameter between two numbers, both of them possible."""

    name: str
    field: str
    low: float
    high: float
    log: bool
    points: int
    whole: bool

    @property
    def fields(self) -> set[str]:
        """The fields of a config that it sets."""
        return {self.field}

    def overrides(self, value: float) -> dict[str, Any]:
        """Returns what a value means, by field."""
        return {self.field: value}

    def ends(self) -> list[float]:
        """Returns what lies outermost."""
        return [self.low, self.high]

    def grid(self) -> list[float]:
        """Returns `points` of it, evenly spaced, by their logarithm if so set."""
        between = np.geomspace if self.log else np.linspace
        values = between(self.low, self.high, self.points)
        return list(dict.fromkeys(self._rounded(v, 6) for v in values))

    def draw(self, rng: np.random.Generator) -> float:
        """Draws evenly, by the logarithm if so set."""
        margin = 0.5 if self.whole else 0.0
        low, high = self.low - margin, self.high + margin
        if self.log:
            return self._rounded(math.exp(rng.uniform(math.log(low), math.log(high))))
        return self._rounded(rng.uniform(low, high))

    def count(self) -> float:
        """Returns how many values it has."""
        return self.high - self.low + 1 if self.whole else math.inf

    def _rounded(self, value: float, digits: int = 4) -> float:
        # a number that a person can type again
        plain = round(value) if self.whole else float(f"{value:.{digits}g}")
        return min(max(plain, self.low), self.high)

    def suggest(self, trial) -> float:
        """Lets Optuna choose."""
        suggest = trial.suggest_int if self.whole else trial.suggest_float
        return suggest(self.name, self.low, self.high, log=self.log)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A hyper-parameter with some values, each by its label."""

    name: str
    options: Mapping[Any, Mapping[str, Any]]

    @property
    def fields(self) -> set[str]:
        """The fields of a config that it sets."""
        return set().union(*self.options.values())

    def overrides(self, value: Any) -> dict[str, Any]:
        """Returns what a label means, by field."""
        return dict(self.options[value])

    def ends(self) -> list[Any]:
        """Returns all labels: none is further out than another."""
        return list(self.options)

    grid = ends

    def draw(self, rng: np.random.Generator) -> Any:
        """Draws a label, each as likely."""
        return self.ends()[int(rng.integers(len(self.options)))]

    def count(self) -> float:
        """Returns how many values it has."""
        return len(self.options)

    def suggest(self, trial) -> Any:
        """Lets Optuna choose."""
        return trial.suggest_categorical(self.name, self.ends())


Parameter = Range | Choice


def read(
    space: Mapping[str, Any],
    config: ml_collections.ConfigDict,
    fixed: Collection[str] = (),
) -> list[Parameter]:
    """Reads the space of a search.

    Args:
      space: by a name of one's own, one entry for each hyper-parameter; see
        `search.default_search`.
      config: whose fields it sets.
      fixed: fields that it may not set.

    Returns:
      The hyper-parameters in the order of their names.

    Raises:
      UsageError: an entry cannot be read, or names a field that does not exist (the
        nearest that does is suggested) or that is not its to set.
    """
    known = config_lib.flat(config)
    if not space:
        raise errors.UsageError(
            "the search has an empty space: say what to try, as configs/search do"
        )
    found = [_parameter(name, entry, known) for name, entry in sorted(space.items())]
    owners: dict[str, str] = {}
    for parameter in found:
        for field in sorted(parameter.fields):
            where = f"space.{parameter.name}"
            _check_known(where, field, known)
            if field in fixed:
                raise errors.UsageError(
                    f"{where}: {field} is the same for all trials of a study"
                )
            if field in owners:
                raise errors.UsageError(f"{where}: space.{owners[field]} sets {field}")
            owners[field] = parameter.name
    return found


def _check_known(where: str, field: Any, known: Mapping[str, Any]) -> None:
    if field not in known:
        raise errors.UsageError(f"{where}: {config_lib.unknown_key(str(field), known)}")


def _parameter(name: str, entry: Any, known: Mapping[str, Any]) -> Parameter:
    where = f"space.{name}"
    if not isinstance(entry, Mapping):
        raise errors.UsageError(f"{where} is {entry!r}; it takes field, low and high")
    for key in entry:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise errors.UsageError(f"{where} has {key}, which means nothing{hint}")
    keys = set(entry)
    if keys == {"choices"}:
        return _choices(name, where, entry["choices"])
    if keys == {"field", "values"}:
        return _values(name, where, entry["field"], entry["values"])
    if keys - {"log", "points"} == {"field", "low", "high"}:
        return _range(name, where, entry, known)
    raise errors.UsageError(
        f"{where} has {', '.join(entry)}; it takes field with low and high (and log, "
        "points), field with values, or choices"
    )


def _choices(name: str, where: str, options: Any) -> Choice:
    if not isinstance(options, Mapping) or not all(
        isinstance(option, Mapping) and option for option in options.values()
    ):
        raise errors.UsageError(
            f"{where}.choices takes fields with their values under each name"
        )
    return _choice(
        name,
        where,
        {
            label: config_lib.flat(ml_collections.ConfigDict(option))
            for label, option in options.items()
        },
    )


def _values(name: str, where: str, field: str, values: Any) -> Choice:
    if not isinstance(values, list | tuple):
        raise errors.UsageError(f"{where}.values is {values!r}; it takes a tuple")
    return _choice(name, where, {_label(value): {field: value} for value in values})


def _label(value: Any) -> Any:
    """Returns what Optuna and a table can hold."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _choice(name: str, where: str, options: dict[Any, dict[str, Any]]) -> Choice:
    if len(options) < 2:
        raise errors.UsageError(f"{where} has no two values to choose from")
    return Choice(name, options)


def _range(name: str, where: str, entry: Any, known: Mapping[str, Any]) -> Range:
    field, low, high = entry["field"], entry["low"], entry["high"]
    log, points = entry.get("log", False), entry.get("points", 0)
    _check_known(where, field, known)
    kind = type(known[field])
    if kind not in (int, float):
        raise errors.UsageError(f"{where}: {field} is not a number; give its values")
    numbers = (int,) if kind is int else (int, float)
    for key, value, kinds in (
        ("low", low, numbers),
        ("high", high, numbers),
        ("log", log, (bool,)),
        ("points", points, (int,)),
    ):
        if type(value) not in kinds:
            raise errors.UsageError(
                f"{where}.{key} is {value!r}; it takes {kinds[-1].__name__}"
            )
    if not low < high or (log and low <= 0):
        least = " and above 0" if log else ""
        raise errors.UsageError(
            f"{where} goes from {low} to {high}; low must be below high{least}"
        )
    return Range(name, field, kind(low), kind(high), log, points, kind is int)
