"""Configurations from files and to files: Python, JSON, the published YAML."""

import importlib.util
import inspect
import json
import os
import pathlib
from typing import Any

import ml_collections

from dpa_jax import config as config_lib
from dpa_jax import errors
from dpa_jax.weights import formats


def load(location: str) -> ml_collections.ConfigDict:
    """Reads a configuration from `FILE.py[:ARGUMENT]`, `FILE.json` or `FILE.yaml`.

    A relative file that is not in the working folder is looked for among the
    configs that come with the package. YAML is the published code's own format.

    Raises:
      UsageError: there is no such file, it defines no `get_config`, or it holds keys
        that do not exist here.
    """
    name, _, argument = location.partition(":")
    path = find(name)
    if path.suffix == ".py":
        return _from_python(path, argument)
    if argument:
        raise errors.UsageError(f"only a .py config takes an argument: {location}")
    if path.suffix == ".json":
        try:
            return from_json(path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise errors.UsageError(f"{path} is not JSON: {error}") from None
    if path.suffix in (".yaml", ".yml"):
        from dpa_jax.interop import reference_config

        return reference_config.load(path)
    raise errors.UsageError(f"a config is a .py, .json or .yaml file, not {name}")


def _from_python(path: pathlib.Path, argument: str) -> ml_collections.ConfigDict:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise errors.UsageError(f"{path} defines no get_config()")
        if argument and not inspect.signature(module.get_config).parameters:
            raise errors.UsageError(f"{path} takes no argument, so not {argument!r}")
        config = module.get_config(argument) if argument else module.get_config()
    except errors.DpaError:
        raise
    except Exception as error:  # whatever may be wrong with somebody's program
        raise errors.UsageError(
            f"{path} fails with {type(error).__name__}: {error}; --debug shows where"
        ) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise errors.UsageError(
            f"{path}: get_config() returns {type(config).__name__}, not a ConfigDict"
        )
    return config


def find(name: str) -> pathlib.Path:
    """Returns a file in the working folder or, by that name, of the package.

    Raises:
      UsageError: there is none.
    """
    path = pathlib.Path(name)
    package = pathlib.Path(__file__).resolve().parents[1]
    for candidate in (path, package.parent / path, package / path):
        if candidate.is_file() and not (path.is_absolute() and candidate != path):
            return candidate
    shipped = next(
        (d for d in (package / "configs", package.parent / "configs") if d.is_dir()),
        None,
    )
    known = sorted(f"configs/{p.name}" for p in shipped.glob("*.py")) if shipped else []
    raise errors.UsageError(f"no config {name}; with dpa_jax come {', '.join(known)}")


def from_json(text: str, source: str) -> ml_collections.ConfigDict:
    """Returns the configuration that `to_json` wrote; `source` names it in errors."""
    values = read_object(text, source, "a configuration")
    return config_lib.updated(
        config_lib.default_config(), dict(config_lib.flattened(values)), source
    )


def read_object(text: str, source: str, what: str) -> dict[str, Any]:
    """Returns a JSON object; `source` names in errors what should hold `what`."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise errors.UsageError(f"{source} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise errors.UsageError(f"{source} does not hold {what}")
    return values


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns the configuration as indented JSON, in a fixed order."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def save(config: ml_collections.ConfigDict, path: str | os.PathLike) -> None:
    """Writes the configuration as JSON, atomically."""
    with formats.replacing(pathlib.Path(path)) as temporary:
        temporary.write_text(to_json(config), encoding="utf-8")
