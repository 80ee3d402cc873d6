"""JAX's primitives that move, sum or multiply whole arrays, as nodes of ONNX."""

import string
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper

from dpa_jax import errors
from dpa_jax.exporting import onnx_indexing
from dpa_jax.exporting.onnx_nodes import Nodes, Value, integers

_REDUCTIONS = {
    **{"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax"},
    **{"reduce_min": "ReduceMin", "reduce_prod": "ReduceProd"},
}


def _reshape(nodes: Nodes, equation: Any, value: Value) -> Value:
    return nodes.reshape(value, equation.outvars[0].aval.shape)


def _transpose(nodes: Nodes, equation: Any, value: Value) -> Value:
    return nodes.transpose(value, equation.params["permutation"])


def _reduce(nodes: Nodes, equation: Any, value: Value) -> Value:
    kind = _REDUCTIONS[equation.primitive.name]
    return nodes.add(kind, value, integers(equation.params["axes"]), keepdims=0)


def _concatenate(nodes: Nodes, equation: Any, *values: Value) -> Value:
    return nodes.add("Concat", *values, axis=equation.params["dimension"])


def _pad(nodes: Nodes, equation: Any, value: Value, filling: Value) -> Value:
    before, after, between = zip(*equation.params["padding_config"], strict=True)
    if any(between) or min(*before, *after) < 0:
        raise errors.DpaError(
            "padding between pixels, or by less than nothing, has no counterpart in "
            "ONNX; StableHLO has it"
        )
    return nodes.add("Pad", value, integers([*before, *after]), filling)


def _reverse(nodes: Nodes, equation: Any, value: Value) -> Value:
    axes = equation.params["dimensions"]
    ends = [np.iinfo(np.int64).min] * len(axes)
    numbers = ([-1] * len(axes), ends, axes, [-1] * len(axes))
    return nodes.add("Slice", value, *map(integers, numbers))


def _cumulate(nodes: Nodes, equation: Any, value: Value) -> Value:
    axis = Value(array=np.array(equation.params["axis"], np.int64))
    backwards = int(equation.params["reverse"])
    return nodes.add("CumSum", value, axis, reverse=backwards)


def _dot(nodes: Nodes, equation: Any, left: Value, right: Value) -> Value:
    summed, shared = equation.params["dimension_numbers"]
    letters = iter(string.ascii_lowercase)
    first, second = (
        [next(letters) for _ in variable.aval.shape] for variable in equation.invars
    )
    for pair in (summed, shared):
        for i, j in zip(*pair, strict=True):
            second[j] = first[i]
    # what the two share, then what only one of them has
    kept = [first[i] for i in shared[0]]
    kept += [name for name in first if name not in second]
    kept += [name for name in second if name not in first]
    terms = f"{''.join(first)},{''.join(second)}->{''.join(kept)}"
    return nodes.add("Einsum", left, right, equation=terms)


def _convolve(nodes: Nodes, equation: Any, x: Value, kernel: Value) -> Value:
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
        nodes.transpose(x, numbers.lhs_spec),
        nodes.transpose(kernel, numbers.rhs_spec),
        strides=list(params["window_strides"]),
        pads=[*before, *after],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return nodes.transpose(found, np.argsort(numbers.out_spec).tolist())


def _size(nodes: Nodes, equation: Any) -> Value:
    """Returns the number of images as a number to compute with."""
    number = nodes.reshape(nodes.size(equation.params["dim"]), ())
    kind = helper.np_dtype_to_tensor_dtype(equation.outvars[0].aval.dtype)
    return nodes.add("Cast", number, to=kind)


PRIMITIVES: dict[str, Callable[..., Value | list[Value]]] = {
    "dim_as_value": _size,
    "reshape": _reshape,
    "squeeze": _reshape,
    "transpose": _transpose,
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "concatenate": _concatenate,
    **onnx_indexing.PRIMITIVES,
    "pad": _pad,
    "rev": _reverse,
    "cumsum": _cumulate,
    "dot_general": _dot,
    "conv_general_dilated": _convolve,
}
