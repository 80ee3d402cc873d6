"""Functions of somebody else's that a configuration names as `module:function`."""

import hashlib
import importlib
import inspect
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import ml_collections

from dpa_jax import errors
from dpa_jax.config import flat

# the fields of a configuration that may name one
FIELDS = ("perceptual.backbone", "loss.extra", "model.kind", "optimizer.name")


def is_extension(name: str) -> bool:
    """Returns whether a name is `module:function` and no name of this package's."""
    return ":" in name


def load(name: str, field: str) -> Callable[..., Any]:
    """Imports a function; the working folder is looked through as well.

    Args:
      name: `module:function`, the module as in an import statement.
      field: what names it, for errors.

    Raises:
      UsageError: there is no such module or function, or the module fails.
    """
    module_name, _, function_name = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # after all others, so that it hides none of them
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise errors.UsageError(
            f"{field} is {name}, and there is no module {error.name}: put its file "
            "into the working folder, or its folder on PYTHONPATH"
        ) from None
    except Exception as error:  # whatever may be wrong with somebody's program
        raise errors.UsageError(
            f"{field} is {name}: importing {module_name} fails with "
            f"{type(error).__name__}: {error}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise errors.UsageError(
            f"{field} is {name}, and {module.__file__} has no function "
            f"{function_name!r}"
        )
    return function


def named_by(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Returns the `module:function` names in a configuration, by field."""
    values = flat(config)
    return {field: values[field] for field in FIELDS if is_extension(values[field])}


def describe(config: ml_collections.ConfigDict) -> dict[str, dict[str, str]]:
    """Returns each function that a configuration names, with its module's SHA-256.

    Returns:
      `{field: {"name": "module:function", "sha256": of the source file}}`.

    Raises:
      UsageError: see `load`.
    """
    return {
        field: {"name": name, "sha256": _digest(load(name, field))}
        for field, name in named_by(config).items()
    }


def _digest(function: Callable[..., Any]) -> str:
    path = inspect.getsourcefile(inspect.unwrap(function))
    assert path is not None  # it was imported from a file
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
