"""Graphs as StableHLO, by `jax.export`."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax import export

from dpa_jax.exporting.graph import Graph

# what the program may run on; only the one at hand is tried
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write(graph: Graph, path: pathlib.Path) -> str:
    """Writes a graph; returns what the file holds."""
    exported = export.export(jax.jit(graph.function), platforms=PLATFORMS)(graph.images)
    path.write_bytes(exported.serialize())
    return f"StableHLO, calling convention {exported.calling_convention_version}"


def read(path: pathlib.Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns what a file holds as a function of images."""
    exported = export.deserialize(bytearray(path.read_bytes()))
    return lambda images: jax.device_get(exported.call(images))
