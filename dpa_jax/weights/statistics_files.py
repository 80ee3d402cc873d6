"""Statistics of a backbone's features: from files and to files."""

import json
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from dpa_jax import errors
from dpa_jax.weights import files, formats, published_statistics

# {"r42": {"mean": float32 [C], "std": float32 [C]}, ...}
Statistics = dict[str, dict[str, np.ndarray]]


def load(spec: str) -> Statistics:
    """Loads the mean and standard deviation of each channel of some layers.

    Args:
      spec: `imagenet` (the cache), an .npz with `LAYER/mean` and `LAYER/std`, or the
        published .pt. What is called `var`, as in the published code, holds standard
        deviations and is read as such.

    Returns:
      `{layer: {"mean": float32 [C], "std": float32 [C]}}` for the file's layers;
      `std` may be 0 where a channel never varied (see `select`).

    Raises:
      DpaError: the file is absent or unreadable, or an array is missing, of the wrong
        shape, negative or not finite.
    """
    path = find(spec)
    if path.suffix == ".npz":
        found = formats.read_npz(path, lambda name: "/" in name)
    elif path.suffix in (".pt", ".pth"):
        found = _read_statistics_pt(path)
    else:
        raise errors.DpaError(f"{path}: statistics are an .npz or a .pt file")
    return _checked_statistics(found, path)


def find(spec: str) -> pathlib.Path:
    """Returns the file that `load` reads; a DpaError is raised if there is none."""
    if spec == "imagenet":
        return files.from_cache({"statistics": files.cached_statistics()})["statistics"]
    return files.existing(spec, "statistics are imagenet, train or a file")


def save(
    path: str | os.PathLike, statistics: Statistics, metadata: Mapping[str, str]
) -> None:
    """Writes feature statistics as an .npz file, atomically.

    Args:
      path: the file; an existing one is replaced.
      statistics: as `load` returns.
      metadata: where they come from; stored beside them with a fingerprint.
    """
    metadata = files.described(statistics, metadata)
    arrays: dict[str, Any] = {
        f"{layer}/{name}": np.asarray(array, np.float32)
        for layer, pair in statistics.items()
        for name, array in pair.items()
    }
    with formats.replacing(pathlib.Path(path)) as temporary:
        with open(temporary, "wb") as file:
            np.savez(file, metadata=np.array(json.dumps(metadata)), **arrays)


def select(statistics: Statistics, layers: Collection[str], source: str) -> Statistics:
    """Selects the statistics of the layers in use, which must divide safely.

    Args:
      statistics: as `load` returns.
      layers: names of them.
      source: named in errors.

    Raises:
      DpaError: a layer is missing, or a channel of it has no spread.
    """
    for layer in layers:
        if layer not in statistics:
            raise errors.DpaError(
                f"{source} has no statistics of {layer}; it has {', '.join(statistics)}"
            )
        still = np.flatnonzero(~(statistics[layer]["std"] > 0))
        if still.size:
            raise errors.DpaError(
                f"{source}: {still.size} of {len(statistics[layer]['std'])} channels "
                f"of {layer} have standard deviation 0 (the first is {still[0]}), so "
                "its features cannot be normalised; compute the statistics over more "
                "images or choose another layer"
            )
    return {layer: statistics[layer] for layer in layers}


def _checked_statistics(
    found: Mapping[str, np.ndarray], path: pathlib.Path
) -> Statistics:
    statistics: Statistics = {}
    for layer in dict.fromkeys(name.partition("/")[0] for name in found):
        spread = f"{layer}/std"
        if spread not in found and f"{layer}/var" in found:
            spread = f"{layer}/var"  # the published name of a standard deviation
        shape = np.shape(found.get(f"{layer}/mean", ()))[:1]  # of one dimension
        mean = formats.checked(found, f"{layer}/mean", shape, f"{path}: ")
        std = formats.checked(found, spread, shape, f"{path}: ")
        if (std < 0).any():
            raise errors.DpaError(f"{path}: {spread} has negative values")
        statistics[layer] = {"mean": mean, "std": std}
    if not statistics:
        raise errors.DpaError(f"{path} holds no statistics (LAYER/mean, LAYER/std)")
    return statistics


def _read_statistics_pt(path: pathlib.Path) -> dict[str, np.ndarray]:
    if formats.file_sha256(path) == published_statistics.SHA256:
        return published_statistics.read(path)  # known bytes: no torch needed
    loaded = formats.load_torch(path)
    if not isinstance(loaded, Mapping) or not all(
        isinstance(pair, (tuple, list))
        and len(pair) == 2
        and all(hasattr(value, "detach") for value in pair)
        for pair in loaded.values()
    ):
        raise errors.DpaError(f"{path} does not hold {{layer: (mean, deviation)}}")
    return {
        f"{layer}/{name}": formats.from_torch(value, layer, path).reshape(-1)
        for layer, pair in loaded.items()
        for name, value in zip(("mean", "std"), pair, strict=True)
    }
