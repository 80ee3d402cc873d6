"""Nodes, constants and values of an ONNX graph in the making."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dpa_jax import errors

# the oldest operators that do: they are known since ONNX 1.13 and ONNX Runtime 1.14
OPSET, _IR_VERSION = 18, 8


@dataclasses.dataclass(frozen=True)
class Value:
    """What an intermediate result of JAX is in the graph.

    Attributes:
      name: of a node's result; empty for a constant.
      array: of a constant.
      is_narrow: whether it still lacks being broadcast to its shape, which elementwise
        operators do by themselves.
    """

    name: str = ""
    array: np.ndarray | None = None
    is_narrow: bool = False


class Nodes:
    """A graph in the making, of one input whose first dimension is free.

    Attributes:
      source: the input's name.
      batch: the symbol of its first dimension.
    """

    def __init__(self, source: str, batch: Any):
        self.source, self.batch = source, batch
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._batch_size = ""

    def add(self, kind: str, *inputs: Value, **attributes: Any) -> Value:
        """Adds a node; returns its only result."""
        found = f"{kind.lower()}_{len(self._nodes)}"
        names = [self.name(value) for value in inputs]
        self._nodes.append(helper.make_node(kind, names, [found], found, **attributes))
        return Value(found)

    def name(self, value: Value) -> str:
        """Returns how nodes refer to a value; equal constants are kept once."""
        if value.array is None:
            return value.name
        array = np.ascontiguousarray(value.array)
        content = f"{array.dtype}{array.shape}".encode() + array.tobytes()
        name = f"constant_{hashlib.sha256(content).hexdigest()[:16]}"
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(
                array.reshape(value.array.shape), name
            )
        return name

    def reshape(self, value: Value, shape: Sequence[Any]) -> Value:
        """Reshapes a value of full shape."""
        free = [not isinstance(size, int) for size in shape]
        if value.array is not None:
            return Value(array=value.array.reshape(shape))
        if sum(free) > 1:
            raise errors.DpaError(f"ONNX cannot reshape to {list(shape)}")
        sizes = [
            -1 if is_free else size for is_free, size in zip(free, shape, strict=True)
        ]
        return self.add("Reshape", value, integers(sizes))

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """Transposes a value of full shape."""
        if value.array is not None:
            return Value(array=value.array.transpose(order))
        return self.add("Transpose", value, perm=list(order))

    def broadcast(self, value: Value, shape: Sequence[Any]) -> Value:
        """Broadcasts a value to its full shape, if that is still to be done."""
        if not value.is_narrow:
            return value
        if all(isinstance(size, int) for size in shape):
            return self.add("Expand", value, integers(shape))
        parts = [
            integers([size]) if isinstance(size, int) else self.size(size)
            for size in shape
        ]
        return self.add("Expand", value, self.add("Concat", *parts, axis=0))

    def size(self, size: Any) -> Value:
        """Returns the size of the free dimension, int64 `[1]`."""
        if size != self.batch:
            raise errors.DpaError(f"ONNX has no counterpart of a dimension of {size}")
        if not self._batch_size:
            found = self.add("Shape", Value(self.source), start=0, end=1)
            self._batch_size = found.name
        return Value(self._batch_size)

    def model(
        self, shape: Sequence[Any], results: dict[str, tuple[Value, Sequence[Any]]]
    ) -> onnx.ModelProto:
        """Returns the graph as a model.

        Args:
          shape: of the input, uint8.
          results: float32, with their shapes, by the names that they are to have.
        """

        def described(name: str, kind: int, shape: Sequence[Any]):
            sizes = [s if isinstance(s, int) else str(s) for s in shape]
            return helper.make_tensor_value_info(name, kind, sizes)

        for name, (value, full) in results.items():
            last = self.broadcast(value, full)
            names = [self.name(last)]
            self._nodes.append(helper.make_node("Identity", names, [name], name))
        graph = helper.make_graph(
            self._nodes,
            "dpa_jax",
            [described(self.source, onnx.TensorProto.UINT8, shape)],
            [
                described(name, onnx.TensorProto.FLOAT, full)
                for name, (_, full) in results.items()
            ],
            list(self._constants.values()),
        )
        return helper.make_model(
            graph,
            producer_name="dpa_jax",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
        )


def integers(numbers: Sequence[int]) -> Value:
    """Returns a constant as ONNX takes shapes and axes."""
    return Value(array=np.array(numbers, np.int64))
