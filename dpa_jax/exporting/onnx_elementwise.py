"""JAX's primitives that act on each number by itself, as nodes of ONNX.

ONNX broadcasts the arguments of these, so that what JAX broadcasts first is kept narrow
for as long as no other kind of node reads it.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper

from dpa_jax.exporting.onnx_nodes import Nodes, Value

_KINDS = {
    **{"abs": "Abs", "add": "Add", "and": "And", "ceil": "Ceil", "cos": "Cos"},
    **{"div": "Div", "eq": "Equal", "erf": "Erf", "exp": "Exp", "floor": "Floor"},
    **{"ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "log": "Log"},
    **{"logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul"},
    **{"neg": "Neg", "not": "Not", "or": "Or", "pow": "Pow", "sign": "Sign"},
    **{"sin": "Sin", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh", "xor": "Xor"},
    "stop_gradient": "Identity",
}


def _node(kind: str, nodes: Nodes, equation: Any, given: list[Value]) -> Value:
    """Adds a node, whose result is narrow if none of its arguments is full."""
    shape = equation.outvars[0].aval.shape
    is_narrow = all(
        value.is_narrow or variable.aval.shape != shape
        for value, variable in zip(given, equation.invars, strict=True)
    )
    return Value(nodes.add(kind, *given).name, is_narrow=is_narrow)


def _ne(nodes: Nodes, equation: Any, given: list[Value]) -> Value:
    equal = _node("Equal", nodes, equation, given)
    return Value(nodes.add("Not", equal).name, is_narrow=equal.is_narrow)


def _power(nodes: Nodes, equation: Any, given: list[Value]) -> Value:
    exponent = {"square": 2, "rsqrt": -0.5}.get(equation.primitive.name)
    if exponent is None:
        exponent = equation.params["y"]
    number = np.asarray(exponent, equation.invars[0].aval.dtype)
    found = nodes.add("Pow", *given, Value(array=number))
    return Value(found.name, is_narrow=given[0].is_narrow)


def _select(nodes: Nodes, equation: Any, given: list[Value]) -> Value:
    which, if_false, if_true = given
    condition, false, true = equation.invars
    reordered = equation.replace(invars=[condition, true, false])
    return _node("Where", nodes, reordered, [which, if_true, if_false])


def _cast(nodes: Nodes, equation: Any, given: list[Value]) -> Value:
    kind = helper.np_dtype_to_tensor_dtype(equation.params["new_dtype"])
    found = nodes.add("Cast", *given, to=kind)
    return Value(found.name, is_narrow=given[0].is_narrow)


def _broadcast(nodes: Nodes, equation: Any, given: list[Value]) -> Value:
    """Brings a value to the rank it will have, and leaves the rest for later."""
    (value,), shape = given, equation.params["shape"]
    before = equation.invars[0].aval.shape
    value = nodes.broadcast(value, before)
    axes = equation.params["broadcast_dimensions"]
    sizes = [1] * len(shape)
    for axis, size in zip(axes, before, strict=True):
        sizes[axis] = size
    found = nodes.reshape(value, sizes)
    return Value(found.name, found.array, is_narrow=tuple(sizes) != tuple(shape))


PRIMITIVES: dict[str, Callable[[Nodes, Any, list[Value]], Value]] = {
    **{name: functools.partial(_node, kind) for name, kind in _KINDS.items()},
    "ne": _ne,
    **dict.fromkeys(("square", "rsqrt", "integer_pow"), _power),
    "select_n": _select,
    "convert_element_type": _cast,
    "broadcast_in_dim": _broadcast,
}
