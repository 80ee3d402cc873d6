"""What a study tries: its protocol, its space, and the configs that come of it."""

import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np

from dpa_jax import config as config_lib
from dpa_jax import config_files, errors, validation
from dpa_jax.tuning import selection
from dpa_jax.tuning import space as space_lib
from dpa_jax.tuning.space import Parameter, Range

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "none")
# fields of a run's config that a study sets itself, with the search's own instead
_SET = {
    "data.folds": "folds",
    "data.fold": "folds",
    "data.seed": "seed",
    "early_stopping.every": "early_stopping.every",
    "population.seeds": "population",
}
_FIXED = (
    *("data.train", "data.normal", "data.test", "data.test_normal"),
    *("data.test_abnormal", "data.data_dir"),
    *("early_stopping.patience", "early_stopping.min_delta"),
)
# runs that differ in nothing else are trained by one program
_MEMBERS = {"seed", "optimizer.learning_rate"}

Values = dict[str, Any]


def default_search() -> ml_collections.ConfigDict:
    """Returns the paper's protocol (method, section 6), without a space.

    The space holds, by a name of one's own, one entry for each hyper-parameter:
    a range `{"field": "optimizer.learning_rate", "low": 1e-4, "high": 1e-2, "log":
    True}` (whole numbers or fractions as the field is; `points` of it make a grid), or
    a list `{"field": "batch_size", "values": (32, 64)}`, or fields that go together:
    `{"choices": {"w16": {"model": {"latent_channels": 16, ...}}, ...}}`.
    """
    return ml_collections.ConfigDict(
        {
            "sampler": "tpe",  # or random, or grid: every combination
            "pruner": "median",  # gives up between stages what is below; or none
            "trials": 20,  # a grid has as many as combinations, whatever this says
            "folds": 3,
            "seed": 0,  # of the sampler, and of every run's order and augmentation
            "population": 1,  # trials of equal shapes that are trained together
            "retries": 3,  # of a trial whose worker died
            "early_stopping": {"every": 1_000, "patience": 3, "min_delta": 1e-3},
            "anomalies": {
                "source": "",  # folder, manifest, .npz or tfds:...; empty: none
                "count": 20,  # drawn of them, to rank with; without any: by the loss
                "where": "",  # COLUMN=VALUE|VALUE of those that may be drawn
                "kind": "",  # the column that says of which kind each is
                "seed": 0,  # of the drawing
            },
            "space": {},
        }
    )


def load(location: str) -> ml_collections.ConfigDict:
    """Reads a search from `FILE.py[:ARGUMENT]` or from the JSON that a study keeps.

    Raises:
      UsageError: there is no such file, or it cannot be read as one.
    """
    name = location.partition(":")[0]
    if name.endswith(".json") and os.path.isfile(name):
        return from_json(pathlib.Path(name).read_text(encoding="utf-8"), name)
    if not name.endswith(".py"):
        raise errors.UsageError(f"a search is a .py file or a study's .json: {name}")
    return config_files.load(location)


def from_json(text: str, source: str) -> ml_collections.ConfigDict:
    """Returns the search that `config.to_json` wrote; `source` names it in errors."""
    values = config_files.read_object(text, source, "a search")
    return _completed(ml_collections.ConfigDict(values), source)


def _completed(search, source: str) -> ml_collections.ConfigDict:
    """Returns the search with all fields, each of its right type."""
    plain = {k: v for k, v in search.to_dict().items() if k != "space"}
    given = config_lib.flat(ml_collections.ConfigDict(plain))
    result = config_lib.updated(default_search(), given, source)
    result.space = ml_collections.ConfigDict(search.to_dict().get("space", {}))
    return result


def parameters(
    search: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> list[Parameter]:
    """Returns the hyper-parameters of a search; see `space.read`.

    Those that leave a run's shapes as they are come last: combinations that differ in
    the last alone follow one another, and can be trained together.
    """
    found = space_lib.read(search.space.to_dict(), config, {*_SET, *_FIXED})
    return sorted(found, key=lambda parameter: parameter.fields <= _MEMBERS)


def validate(
    search: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """Checks a search, and every config that it can lead to.

    Where the space is not finite, its corners stand for what lies between them.

    Args:
      search: as a file gives it.
      config: what its trials start from.

    Returns:
      The search with all fields, each of its right type.

    Raises:
      UsageError: naming the field, its value and what is possible.
    """
    search = _completed(search, "the search")
    for name, options in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if search[name] not in options:
            raise errors.UsageError(
                f"search.{name} is {search[name]!r}; it may be {', '.join(options)}"
            )
    values = config_lib.flat(search)
    for name, least in (
        ("trials", 1),
        ("folds", 2),
        ("seed", 0),
        ("population", 1),
        ("retries", 0),
        ("early_stopping.every", 0),
        ("early_stopping.patience", 0),
        ("early_stopping.min_delta", 0),
        ("anomalies.count", 0),
        ("anomalies.seed", 0),
    ):
        if values[name] < least:
            raise errors.UsageError(
                f"search.{name} is {values[name]}; it must be at least {least}"
            )
    _check_base(config)
    found = parameters(search, config)
    if search.sampler == "grid":
        for parameter in found:
            if isinstance(parameter, Range) and parameter.points < 2:
                raise errors.UsageError(
                    f"space.{parameter.name} has no points: a grid needs 2 or more"
                )
    elif search.sampler == "random":
        count = math.prod(parameter.count() for parameter in found)
        if search.trials > count:
            raise errors.UsageError(
                f"search.trials is {search.trials}, but the space has {int(count)} "
                "combinations: --search.sampler=grid tries them all"
            )
    configs = {}
    for chosen in _outermost(search, found):
        try:
            one = fold_config(config, search, found, chosen, 0)
            validation.validate(one)
        except errors.UsageError as error:
            raise errors.UsageError(f"with {describe(chosen)}: {error}") from None
        configs[describe(chosen)] = one
    if not (search.anomalies.source and search.anomalies.count):
        selection.check_comparable(configs)
    return search


def _check_base(config) -> None:
    defaults = config_lib.flat(config_lib.default_config())
    values = config_lib.flat(config)
    for name, instead in _SET.items():
        if values[name] != defaults[name]:
            raise errors.UsageError(
                f"{name} is {values[name]}, but a study sets it itself; leave it at "
                f"{defaults[name]} and use --search.{instead}"
            )


def _outermost(search, found: Sequence[Parameter]) -> Iterator[Values]:
    if search.sampler == "grid":
        return iter(combinations(found))
    return _product(found, [parameter.ends() for parameter in found])


def combinations(found: Sequence[Parameter]) -> list[Values]:
    """Returns every combination of a grid."""
    return list(_product(found, [parameter.grid() for parameter in found]))


def _product(found: Sequence[Parameter], values: list) -> Iterator[Values]:
    for combination in itertools.product(*values):
        yield {p.name: v for p, v in zip(found, combination, strict=True)}


def planned(
    search: ml_collections.ConfigDict, found: Sequence[Parameter]
) -> list[Values]:
    """Returns the trials of a study in order, before any is run.

    Args:
      search: validated.
      found: its parameters.

    Returns:
      The values of each; empty for those that TPE chooses when their turn comes. More
      trials of the same search begin with the same.
    """
    if search.sampler == "grid":
        return combinations(found)
    if search.sampler == "tpe":
        return [{}] * search.trials
    rng = np.random.default_rng(search.seed)
    drawn: dict[tuple, Values] = {}
    while len(drawn) < search.trials:
        values = {parameter.name: parameter.draw(rng) for parameter in found}
        drawn.setdefault(tuple(values.values()), values)
    return list(drawn.values())


def applied(
    config: ml_collections.ConfigDict, found: Sequence[Parameter], values: Values
) -> ml_collections.ConfigDict:
    """Returns the config with the values of a trial."""
    overrides: dict[str, Any] = {}
    for parameter in found:
        overrides |= parameter.overrides(values[parameter.name])
    return config_lib.updated(config, overrides, "the search")


def fold_config(
    config: ml_collections.ConfigDict,
    search: ml_collections.ConfigDict,
    found: Sequence[Parameter],
    values: Values,
    fold: int,
) -> ml_collections.ConfigDict:
    """Returns the config of a trial's run that holds out `fold`."""
    result = applied(config, found, values)
    result.data.folds, result.data.fold = search.folds, fold
    result.data.seed = search.seed
    result.early_stopping.update(search.early_stopping)
    return result


def shape(config: ml_collections.ConfigDict) -> str:
    """Returns what is equal for runs that can be trained together."""
    values = config_lib.flat(config)
    return json.dumps({k: v for k, v in values.items() if k not in _MEMBERS})


def describe(values: Values) -> str:
    """Words the values of a trial."""

    def plain(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name} {plain(value)}" for name, value in values.items())
