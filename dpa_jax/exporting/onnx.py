"""Graphs as ONNX, run by ONNX Runtime; needs the extra `onnx`."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime

from dpa_jax import errors
from dpa_jax.exporting import onnx_conversion, onnx_nodes
from dpa_jax.exporting.graph import Graph

_IMAGES = "images"


def write(graph: Graph, path: pathlib.Path) -> str:
    """Writes a graph; returns what the file holds.

    Raises:
      DpaError: ONNX has no counterpart of what the run computes.
    """
    program, shapes = jax.make_jaxpr(graph.function, return_shape=True)(graph.images)
    nodes = onnx_nodes.Nodes(_IMAGES, graph.batch)
    found = onnx_conversion.convert(nodes, program, [onnx_nodes.Value(_IMAGES)])
    # a dictionary's leaves are in the order of its sorted names
    results = {
        name: (value, shapes[name].shape)
        for name, value in zip(sorted(shapes), found, strict=True)
    }
    model = nodes.model(graph.images.shape, results)
    path.write_bytes(model.SerializeToString())
    return f"ONNX, opset {onnx_nodes.OPSET}"


def read(path: pathlib.Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns what a file holds as a function of images.

    Raises:
      DpaError: the file is no ONNX, or holds what ONNX Runtime cannot run.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # each library has several of its own
        reason = str(error).splitlines()[0]
        raise errors.DpaError(f"ONNX Runtime cannot run the graph: {reason}") from error
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        found: Any = session.run(names, {_IMAGES: images})
        return dict(zip(names, found, strict=True))

    return run
