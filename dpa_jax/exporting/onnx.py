"""Graphs as ONNX, run by ONNX Runtime."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np

from dpa_jax import errors
from dpa_jax.exporting.graph import Graph

_IMAGES = "images"


def write(graph: Graph, path: pathlib.Path) -> str:
    """Writes a graph; returns what the file holds.

    Raises:
      DpaError: ONNX is absent, or has no counterpart of what the run computes.
    """
    with errors.needing("onnx", "exporting to ONNX"):
        import onnx

        from dpa_jax.exporting import onnx_nodes, onnx_primitives
    program, shapes = jax.make_jaxpr(graph.function, return_shape=True)(graph.images)
    nodes = onnx_nodes.Nodes(_IMAGES, graph.batch)
    found = onnx_primitives.convert(nodes, program, [onnx_nodes.Value(_IMAGES)])
    # a dictionary's leaves are in the order of its sorted names
    results = {
        name: (value, shapes[name].shape)
        for name, value in zip(sorted(shapes), found, strict=True)
    }
    model = nodes.model(graph.images.shape, results)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return f"ONNX, opset {onnx_nodes.OPSET}"


def read(path: pathlib.Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns what a file holds as a function of images."""
    with errors.needing("onnx", "verifying ONNX"):
        import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {_IMAGES: images}), strict=True))

    return run
