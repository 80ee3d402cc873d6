"""Configurations from files and to files: Python, JSON, the published YAML."""

import importlib.util
import inspect
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from dpa_jax import errors
from dpa_jax.config import default_config, flat, flattened, updated
from dpa_jax.storage import json_files
from dpa_jax.weights import formats

# the fields that may hold a path, each with the words that are none
_PATHS = {
    "data.train": (),
    "data.test": (),
    "data.test_normal": (),
    "data.test_abnormal": (),
    "data.data_dir": (),
    "perceptual.weights": ("imagenet",),
    "perceptual.statistics": ("imagenet", "train"),
}
_SCHEME = re.compile(r"(random|tfds):|[A-Za-z0-9+.-]+://")


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
        return read(path, "give a config as `train` writes it")
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


def read(path: pathlib.Path, remedy: str) -> ml_collections.ConfigDict:
    """Reads the configuration that `save` wrote.

    Args:
      path: of the file.
      remedy: what to do about a damaged file, which ends the message of an error.

    Raises:
      DpaError: the file cannot be read, or holds no JSON object.
      UsageError: it has a key that does not exist, or a value of the wrong type.
    """
    return from_values(json_files.read(path, {}, remedy), str(path))


def from_values(values: Mapping[str, Any], source: str) -> ml_collections.ConfigDict:
    """Returns the configuration of nested values; `source` names it in errors."""
    return updated(default_config(), dict(flattened(values)), source)


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns the configuration as indented JSON, in a fixed order."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def with_absolute_paths(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a copy whose paths mean the same from any working folder.

    What is no path of this machine stays as it is: `tfds:` and URLs, `imagenet`,
    `random:SEED`, `train`.
    """
    values = flat(config)
    paths = {
        name: os.path.abspath(os.path.expanduser(values[name]))
        for name, words in _PATHS.items()
        if values[name] not in ("", *words) and not _SCHEME.match(values[name])
    }
    return updated(config, paths, "absolute paths")


def save(config: ml_collections.ConfigDict, path: str | os.PathLike) -> None:
    """Writes the configuration as JSON, atomically."""
    with formats.replacing(pathlib.Path(path)) as temporary:
        temporary.write_text(to_json(config), encoding="utf-8")
