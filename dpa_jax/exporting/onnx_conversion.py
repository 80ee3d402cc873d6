"""A traced function of JAX as the nodes of an ONNX graph.

jax2onnx knows more primitives. Its releases since 0.13.1 (up to 0.17.1) need
orbax-checkpoint older than 0.11.37, which checkpoints here are not written with, and
those before do not import in full under JAX 0.10.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core

from dpa_jax import errors
from dpa_jax.exporting import onnx_arrays, onnx_elementwise
from dpa_jax.exporting.onnx_nodes import Nodes, Value

# those that only wrap a program, and where it is among their parameters
_CALLS = {
    "jit": "jaxpr",
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), "call_jaxpr"),
}


def convert(
    nodes: Nodes, program: core.ClosedJaxpr, values: Sequence[Value]
) -> list[Value]:
    """Adds the nodes of a program.

    What does not depend on the input is computed here.

    Args:
      nodes: of the graph, added to.
      program: traced.
      values: its arguments.

    Returns:
      Its results, some still to be broadcast to their shapes.

    Raises:
      DpaError: it holds a primitive that is not known here.
    """
    found: dict[Any, Value] = {
        variable: Value(array=np.asarray(array))
        for variable, array in zip(program.jaxpr.constvars, program.consts, strict=True)
    }
    found.update(zip(program.jaxpr.invars, values, strict=True))

    def read(variable: Any) -> Value:
        dtype = variable.aval.dtype
        if isinstance(variable, core.Literal):
            return Value(array=np.asarray(variable.val, dtype))
        return found[variable]

    for equation in program.jaxpr.eqns:
        given = [read(variable) for variable in equation.invars]
        for variable, value in zip(
            equation.outvars, _results(nodes, equation, given), strict=True
        ):
            found[variable] = value
    return [read(variable) for variable in program.jaxpr.outvars]


def _results(nodes: Nodes, equation: Any, given: list[Value]) -> list[Value]:
    name = equation.primitive.name
    if name in _CALLS:
        return convert(nodes, equation.params[_CALLS[name]], given)
    sizes = [size for variable in equation.outvars for size in variable.aval.shape]
    is_constant = all(v.array is not None and not v.is_narrow for v in given)
    is_constant &= all(isinstance(size, int) for size in sizes)
    if is_constant and name != "dim_as_value":
        arrays = equation.primitive.bind(*(v.array for v in given), **equation.params)
        several = arrays if equation.primitive.multiple_results else [arrays]
        return [Value(array=np.asarray(array)) for array in several]
    if name in onnx_elementwise.PRIMITIVES:
        return [onnx_elementwise.PRIMITIVES[name](nodes, equation, given)]
    if name not in onnx_arrays.PRIMITIVES:
        raise errors.DpaError(
            f"JAX's {name} has no counterpart in ONNX here; StableHLO has it"
        )
    full = [
        nodes.broadcast(value, variable.aval.shape)
        for value, variable in zip(given, equation.invars, strict=True)
    ]
    made = onnx_arrays.PRIMITIVES[name](nodes, equation, *full)
    return made if isinstance(made, list) else [made]
