"""What a study tries: `suggest(trial, config)` of a search file, and its options."""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import optuna

from dpa_jax import errors, validation
from dpa_jax.config import flat, flattened, updated
from dpa_jax.storage import config_files

_CHECKED = 8  # suggestions that are checked before anything is trained
_POSSIBLE = {"sampler": ("tpe", "random", "grid"), "pruner": ("median", "none")}
_LEAST = {"trials": 1, "folds": 2}  # and 0 of all other numbers
# fields of a run's data that are equal for all trials of a study
_EQUAL = ("train", "normal", "data_dir", "test", "test_normal", "test_abnormal")
# fields that the loss of a held-out image may depend on, beside the model
_MEASURE = ("data.", "loss.", "perceptual.")


def default_options() -> ml_collections.ConfigDict:
    """Returns the paper's protocol (method, section 6)."""
    return ml_collections.ConfigDict(
        {
            "sampler": "tpe",  # or random, or grid: every combination of its values
            "pruner": "median",  # gives up between stages what is below; or none
            "trials": 20,  # a grid has as many as combinations, whatever this says
            "folds": 3,
            "seed": 0,  # of the sampler, and of every run's order and augmentation
            "retries": 3,  # of a trial whose worker died
            "early_stopping": {"every": 1_000, "patience": 3, "min_delta": 1e-3},
            "anomalies": {
                "source": "",  # folder, manifest, .npz or tfds:...; empty: none
                "count": 20,  # drawn of them, to rank with; without any: by the loss
                "where": "",  # COLUMN=VALUE|VALUE of those that may be drawn
                "kind": "",  # the column of kinds; empty: `kind`, or the subfolder
                "seed": 0,  # of the drawing
            },
        }
    )


@dataclasses.dataclass(frozen=True)
class Search:
    """A search file that was read, and its text.

    Attributes:
      suggest: sets the hyper-parameters of a config to what a trial suggests.
      options: see `default_options`.
      grid: by the name of each hyper-parameter, its values; the last change fastest.
    """

    suggest: Callable[[optuna.trial.BaseTrial, ml_collections.ConfigDict], None]
    options: ml_collections.ConfigDict
    grid: Mapping[str, Sequence[Any]]
    path: pathlib.Path
    source: str

    def plan(self) -> list[dict[str, Any]]:
        """Returns the values of each trial, empty where the sampler chooses them."""
        if self.options.sampler != "grid":
            return [{}] * self.options.trials
        combined = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, values, strict=True)) for values in combined]

    def values(self) -> dict[str, Any]:
        """Returns options and grid, as `load` takes them."""
        return {**self.options.to_dict(), "grid": dict(self.grid)}

    def config(
        self,
        base: ml_collections.ConfigDict,
        trial: optuna.trial.BaseTrial | Mapping[str, Any],
    ) -> ml_collections.ConfigDict:
        """Returns a config with the hyper-parameters of a trial, or given by name."""
        result = base.copy_and_resolve_references()
        if isinstance(trial, Mapping):
            trial = optuna.trial.FixedTrial(dict(trial))
        with _running(self.path):
            self.suggest(trial, result)
        for name in _EQUAL:
            if result.data[name] != base.data[name]:
                raise errors.UsageError(f"{self.path}: suggest() sets data.{name}")
        return result

    def fold_config(
        self, config: ml_collections.ConfigDict, fold: int
    ) -> ml_collections.ConfigDict:
        """Returns the config, checked, of a trial's run that holds out a fold."""
        result, options = config.copy_and_resolve_references(), self.options
        if result.data.folds or result.data.seed >= 0 or result.early_stopping.every:
            raise errors.UsageError(
                "data.folds, data.seed and early_stopping are options of a search: "
                "--search.folds and so on"
            )
        result.data.folds, result.data.fold = options.folds, fold
        result.data.seed = options.seed
        result.early_stopping.update(options.early_stopping)
        return validation.validate(result)

    def check(self, base: ml_collections.ConfigDict) -> None:
        """Checks the options, and the configs of a grid or of some suggestions."""
        for name, value in flat(self.options).items():
            possible, least = _POSSIBLE.get(name, (value,)), _LEAST.get(name, 0)
            if value not in possible or not isinstance(value, str) and value < least:
                wanted = " or ".join(possible) if name in _POSSIBLE else f">= {least}"
                raise errors.UsageError(f"search.{name} is {value!r}, not {wanted}")
        random = optuna.samplers.RandomSampler(seed=self.options.seed)
        study = optuna.create_study(sampler=random)
        grid = self.options.sampler == "grid"
        trials = [optuna.trial.FixedTrial(v) for v in self.plan()] if grid else []
        if grid and not (self.grid and trials):
            raise errors.UsageError(f"{self.path} has no values for a grid")
        configs = []
        for trial in trials or (study.ask() for _ in range(_CHECKED)):
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # a value is out of range
                made = self.config(base, trial)
            if grid and set(trial.params) != set(self.grid):
                raise errors.UsageError(
                    f"{self.path}: suggest() takes {', '.join(trial.params)}, but the "
                    f"grid has values for {', '.join(self.grid)}"
                )
            try:
                configs.append(self.fold_config(made, 0))
            except errors.UsageError as error:
                raise errors.UsageError(f"with {trial.params}: {error}") from None
        if not (self.options.anomalies.source and self.options.anomalies.count):
            check_comparable(configs)


def load(
    location: str | os.PathLike,
    config: ml_collections.ConfigDict,
    options: Mapping[str, Any] | None = None,
) -> Search:
    """Reads a search file.

    It defines `suggest(trial, config)` and may define `get_options(config)`, which
    returns what differs from `default_options` and the values of a `grid`.

    Args:
      location: of the file; looked for among the configs of the package too.
      config: what trials start from.
      options: taken instead of the file's.
    """
    path = config_files.find(os.fspath(location))
    source = path.read_text(encoding="utf-8")
    defined: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    with _running(path):
        exec(compile(source, path, "exec"), defined)  # nosec B102: it is a program
        if options is None and "get_options" in defined:
            options = defined["get_options"](config)
        given = dict(options or {})
        grid = {name: tuple(values) for name, values in given.pop("grid", {}).items()}
    if not callable(defined.get("suggest")):
        raise errors.UsageError(f"{path} defines no suggest(trial, config)")
    completed = updated(default_options(), dict(flattened(given)), str(path))
    return Search(defined["suggest"], completed, grid, path, source)


def check_comparable(configs: Sequence[ml_collections.ConfigDict]) -> None:
    """Refuses to rank runs by loss if their losses may measure different things."""
    values = [flat(config) for config in configs]
    for name, first in values[0].items() if values else ():
        if name.startswith(_MEASURE) and any(v[name] != first for v in values):
            raise errors.UsageError(
                "without anomalies trials are ranked by reconstruction loss, which "
                f"cannot be compared where {name} differs ({first!r} and others): give "
                "anomalies, or leave that out of the search"
            )


@contextlib.contextmanager
def _running(path: pathlib.Path) -> Iterator[None]:
    """Names the search file in whatever its code raises in the body."""
    try:
        yield
    except errors.DpaError:
        raise
    except Exception as error:  # whatever may be wrong with somebody's program
        raise errors.UsageError(
            f"{path} fails with {type(error).__name__}: {error}"
        ) from error
