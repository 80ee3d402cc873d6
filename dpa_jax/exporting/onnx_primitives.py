"""The primitives of JAX that scores are made of, as nodes of ONNX.

jax2onnx knows more of them. Its releases since 0.13.1 (up to 0.17.1) need
orbax-checkpoint older than 0.11.37, which checkpoints here are not written with, and
those before do not import in full under JAX 0.10.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from jax.extend import core
from onnx import helper

from dpa_jax import errors
from dpa_jax.exporting.onnx_nodes import Nodes, Value, integers

_ELEMENTWISE = {
    **{"abs": "Abs", "add": "Add", "and": "And", "ceil": "Ceil", "cos": "Cos"},
    **{"div": "Div", "eq": "Equal", "erf": "Erf", "exp": "Exp", "floor": "Floor"},
    **{"ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "log": "Log"},
    **{"logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul"},
    **{"neg": "Neg", "not": "Not", "or": "Or", "pow": "Pow", "sign": "Sign"},
    **{"sin": "Sin", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh", "xor": "Xor"},
    "stop_gradient": "Identity",
}
_REDUCTIONS = {
    **{"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax"},
    **{"reduce_min": "ReduceMin", "reduce_prod": "ReduceProd"},
}
# those that only wrap a program, and where it is among their parameters
_CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "closed_call": "call_jaxpr"}


def convert(nodes: Nodes, program: core.ClosedJaxpr, values: Sequence[Value]):
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
        for variable, array in zip(
            program.jaxpr.constvars, program.consts, strict=True
        )
    }
    found.update(zip(program.jaxpr.invars, values, strict=True))

    def read(variable: Any) -> Value:
        if isinstance(variable, core.Literal):
            return Value(array=np.asarray(variable.val, variable.aval.dtype))
        return found[variable]

    for equation in program.jaxpr.eqns:
        given = [read(variable) for variable in equation.invars]
        for variable, value in zip(
            equation.outvars, _results(nodes, equation, given), strict=True
        ):
            found[variable] = value
    return [read(variable) for variable in program.jaxpr.outvars]


def _results(nodes: Nodes, equation: core.JaxprEqn, given: list[Value]) -> list[Value]:
    name = equation.primitive.name
    if name in _CALLS:
        return convert(nodes, equation.params[_CALLS[name]], given)
    sizes = [size for variable in equation.outvars for size in variable.aval.shape]
    is_constant = all(v.array is not None and not v.is_narrow for v in given)
    if is_constant and all(isinstance(size, int) for size in sizes):
        arrays = equation.primitive.bind(*(v.array for v in given), **equation.params)
        several = arrays if equation.primitive.multiple_results else [arrays]
        return [Value(array=np.asarray(array)) for array in several]
    if name in _ELEMENTWISE:
        return [_elementwise(nodes, _ELEMENTWISE[name], equation, given)]
    if name in _ELEMENTWISE_OTHERS:
        return [_ELEMENTWISE_OTHERS[name](nodes, equation, given)]
    if name not in _OTHERS:
        raise errors.DpaError(
            f"JAX's {name} has no counterpart in ONNX here; StableHLO has all"
        )
    given = [
        nodes.broadcast(value, variable.aval.shape)
        for value, variable in zip(given, equation.invars, strict=True)
    ]
    made = _OTHERS[name](nodes, equation, *given)
    return made if isinstance(made, list) else [made]


def _elementwise(nodes: Nodes, kind: str, equation, given: list[Value]) -> Value:
    """Adds a node that broadcasts by itself, narrow if all that it is given is."""
    shape = equation.outvars[0].aval.shape
    is_narrow = all(
        value.is_narrow or variable.aval.shape != shape
        for value, variable in zip(given, equation.invars, strict=True)
    )
    return Value(nodes.add(kind, *given).name, is_narrow=is_narrow)


def _ne(nodes: Nodes, equation, given: list[Value]) -> Value:
    equal = _elementwise(nodes, "Equal", equation, given)
    return Value(nodes.add("Not", equal).name, is_narrow=equal.is_narrow)


def _power(nodes: Nodes, equation, given: list[Value]) -> Value:
    exponent = {"square": 2, "rsqrt": -0.5}.get(equation.primitive.name)
    if exponent is None:
        exponent = equation.params["y"]
    number = np.asarray(exponent, equation.invars[0].aval.dtype)
    found = nodes.add("Pow", *given, Value(array=number))
    return Value(found.name, is_narrow=given[0].is_narrow)


def _select(nodes: Nodes, equation, given: list[Value]) -> Value:
    which, if_false, if_true = given
    order = [equation.invars[i] for i in (0, 2, 1)]
    return _elementwise(
        nodes,
        "Where",
        equation.replace(invars=order),
        [which, if_true, if_false],
    )


def _cast(nodes: Nodes, equation, given: list[Value]) -> Value:
    kind = helper.np_dtype_to_tensor_dtype(equation.params["new_dtype"])
    found = nodes.add("Cast", *given, to=kind)
    return Value(found.name, is_narrow=given[0].is_narrow)


def _broadcast(nodes: Nodes, equation, given: list[Value]) -> Value:
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


_ELEMENTWISE_OTHERS: dict[str, Callable[..., Value]] = {
    "ne": _ne,
    **dict.fromkeys(("square", "rsqrt", "integer_pow"), _power),
    "select_n": _select,
    "convert_element_type": _cast,
    "broadcast_in_dim": _broadcast,
}


def _reshape(nodes: Nodes, equation, value: Value) -> Value:
    return nodes.reshape(value, equation.outvars[0].aval.shape)


def _transpose(nodes: Nodes, equation, value: Value) -> Value:
    return _transposed(nodes, value, equation.params["permutation"])


def _transposed(nodes: Nodes, value: Value, order: Sequence[int]) -> Value:
    if value.array is not None:
        return Value(array=value.array.transpose(order))
    return nodes.add("Transpose", value, perm=list(order))


def _reduce(nodes: Nodes, equation, value: Value) -> Value:
    kind = _REDUCTIONS[equation.primitive.name]
    return nodes.add(kind, value, integers(equation.params["axes"]), keepdims=0)


def _concatenate(nodes: Nodes, equation, *values: Value) -> Value:
    return nodes.add("Concat", *values, axis=equation.params["dimension"])


def _slice(nodes: Nodes, equation, value: Value) -> Value:
    starts = equation.params["start_indices"]
    ends = equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(starts)
    return _cut(nodes, value, equation.invars[0].aval.shape, starts, ends, steps)


def _cut(nodes: Nodes, value: Value, shape, starts, ends, steps) -> Value:
    """Takes a part along each axis, all of the free one."""
    kept = [
        (axis, *part)
        for axis, part in enumerate(zip(starts, ends, steps, strict=True))
        if part != (0, shape[axis], 1)
    ]
    if not kept:
        return value
    if not all(isinstance(number, int) for part in kept for number in part):
        raise errors.DpaError("ONNX cannot cut the free dimension of a batch")
    axes, starts, ends, steps = zip(*kept, strict=True)
    return nodes.add("Slice", value, *map(integers, (starts, ends, axes, steps)))


def _split(nodes: Nodes, equation, value: Value) -> list[Value]:
    shape, axis = equation.invars[0].aval.shape, equation.params["axis"]
    parts, start = [], 0
    for size in equation.params["sizes"]:
        starts, ends = [0] * len(shape), list(shape)
        starts[axis], ends[axis] = start, start + size
        parts.append(_cut(nodes, value, shape, starts, ends, [1] * len(shape)))
        start += size
    return parts


def _gather(nodes: Nodes, equation, value: Value, indices: Value) -> Value:
    """Takes one part at a place that is known, as indexing by numbers does."""
    numbers, layout = equation.params["dimension_numbers"], indices.array
    if layout is None or layout.ndim != 1:
        raise errors.DpaError(
            "gathering at places that are computed has no counterpart in ONNX here; "
            "StableHLO has all"
        )
    shape, sizes = equation.invars[0].aval.shape, equation.params["slice_sizes"]
    starts = [0] * len(shape)
    for axis, place in zip(numbers.start_index_map, layout.tolist(), strict=True):
        starts[axis] = place
    ends = [
        size if start == 0 else start + size
        for start, size in zip(starts, sizes, strict=True)
    ]
    part = _cut(nodes, value, shape, starts, ends, [1] * len(shape))
    return nodes.reshape(part, equation.outvars[0].aval.shape)


def _pad(nodes: Nodes, equation, value: Value, filling: Value) -> Value:
    before, after, between = zip(*equation.params["padding_config"], strict=True)
    if any(between) or min(*before, *after) < 0:
        raise errors.DpaError(
            "padding between pixels, or by less than nothing, has no counterpart in "
            "ONNX; StableHLO has it"
        )
    return nodes.add("Pad", value, integers([*before, *after]), filling)


def _reverse(nodes: Nodes, equation, value: Value) -> Value:
    axes = equation.params["dimensions"]
    ends = [np.iinfo(np.int64).min] * len(axes)
    numbers = ([-1] * len(axes), ends, axes, [-1] * len(axes))
    return nodes.add("Slice", value, *map(integers, numbers))


def _cumulate(nodes: Nodes, equation, value: Value) -> Value:
    axis = Value(array=np.array(equation.params["axis"], np.int64))
    backwards = int(equation.params["reverse"])
    return nodes.add("CumSum", value, axis, reverse=backwards)


def _dot(nodes: Nodes, equation, left: Value, right: Value) -> Value:
    (summed_left, summed_right), (batch_left, batch_right) = equation.params[
        "dimension_numbers"
    ]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names = [next(letters) for _ in equation.invars[0].aval.shape]
    others = [next(letters) for _ in equation.invars[1].aval.shape]
    for i, j in zip((*batch_left, *summed_left), (*batch_right, *summed_right)):
        others[j] = names[i]
    known = (*batch_left, *summed_left), (*batch_right, *summed_right)
    result = [
        *(names[i] for i in batch_left),
        *(name for i, name in enumerate(names) if i not in known[0]),
        *(name for i, name in enumerate(others) if i not in known[1]),
    ]
    sides = "".join(names), "".join(others)
    return nodes.add(
        "Einsum", left, right, equation=f"{sides[0]},{sides[1]}->{''.join(result)}"
    )


def _convolve(nodes: Nodes, equation, x: Value, kernel: Value) -> Value:
    """Adds a convolution; ONNX knows `[B, C, H, W]` alone."""
    params = equation.params
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise errors.DpaError(
            "transposed convolutions have no counterpart in ONNX here; StableHLO has"
        )
    numbers = params["dimension_numbers"]
    before, after = zip(*params["padding"], strict=True)
    found = nodes.add(
        "Conv",
        _transposed(nodes, x, numbers.lhs_spec),
        _transposed(nodes, kernel, numbers.rhs_spec),
        strides=list(params["window_strides"]),
        pads=[*before, *after],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return _transposed(nodes, found, np.argsort(numbers.out_spec).tolist())


_OTHERS: dict[str, Callable[..., Value | list[Value]]] = {
    "reshape": _reshape,
    "squeeze": _reshape,
    "transpose": _transpose,
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "concatenate": _concatenate,
    "slice": _slice,
    "split": _split,
    "gather": _gather,
    "pad": _pad,
    "rev": _reverse,
    "cumsum": _cumulate,
    "dot_general": _dot,
    "conv_general_dilated": _convolve,
}
