"""JAX's primitives that move, sum or multiply whole arrays, as nodes of ONNX."""

import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dpa_jax import errors
from dpa_jax.exporting.onnx_nodes import Nodes, Value, integers

_REDUCTIONS = {
    **{"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax"},
    **{"reduce_min": "ReduceMin", "reduce_prod": "ReduceProd"},
}


def _reshape(nodes: Nodes, equation: Any, value: Value) -> Value:
    return nodes.reshape(value, equation.outvars[0].aval.shape)


def _transpose(nodes: Nodes, equation: Any, value: Value) -> Value:
    return _transposed(nodes, value, equation.params["permutation"])


def _transposed(nodes: Nodes, value: Value, order: Sequence[int]) -> Value:
    if value.array is not None:
        return Value(array=value.array.transpose(order))
    return nodes.add("Transpose", value, perm=list(order))


def _reduce(nodes: Nodes, equation: Any, value: Value) -> Value:
    kind = _REDUCTIONS[equation.primitive.name]
    return nodes.add(kind, value, integers(equation.params["axes"]), keepdims=0)


def _concatenate(nodes: Nodes, equation: Any, *values: Value) -> Value:
    return nodes.add("Concat", *values, axis=equation.params["dimension"])


def _slice(nodes: Nodes, equation: Any, value: Value) -> Value:
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


def _split(nodes: Nodes, equation: Any, value: Value) -> list[Value]:
    shape, axis = equation.invars[0].aval.shape, equation.params["axis"]
    parts, start = [], 0
    for size in map(int, equation.params["sizes"]):
        starts, ends = [0] * len(shape), list(shape)
        starts[axis], ends[axis] = start, start + size
        parts.append(_cut(nodes, value, shape, starts, ends, [1] * len(shape)))
        start += size
    return parts


def _gather(nodes: Nodes, equation: Any, value: Value, indices: Value) -> Value:
    """Takes what indexing by slices and numbers that are known does."""
    numbers, sizes = (
        equation.params["dimension_numbers"],
        equation.params["slice_sizes"],
    )
    shape, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    starts, ends, chosen = [0] * len(shape), list(sizes), {}
    for i, axis in enumerate(numbers.start_index_map):
        if indices.array is None:
            break
        places = indices.array[..., i]
        if axis in numbers.collapsed_slice_dims:
            chosen[axis], ends[axis] = places, shape[axis]
        elif (places == places.flat[0]).all():
            starts[axis] = int(places.flat[0])
            ends[axis] = starts[axis] + sizes[axis]
        else:
            break
    else:
        along = _grid(list(chosen.values()))
        if along is not None:
            value = _cut(nodes, value, shape, starts, ends, [1] * len(shape))
            for axis, places in zip(chosen, along, strict=True):
                value = nodes.add("Gather", value, integers(places), axis=axis)
            if indices.array.ndim == 1:
                return nodes.reshape(value, result)
            others = iter([i for i in range(len(shape)) if i not in chosen])
            taken, kept = iter(chosen), numbers.offset_dims
            order = [next(others if i in kept else taken) for i in range(len(result))]
            return _transposed(nodes, value, order)
    raise errors.DpaError(
        "gathering at computed or irregular places has no counterpart in ONNX here; "
        "StableHLO has it"
    )


def _grid(places: Sequence[np.ndarray]) -> list[list[int]] | None:
    """Returns the places along each axis if all their combinations are meant."""
    if not places or places[0].ndim == 0:
        return [[int(place)] for place in places]
    if places[0].ndim != len(places):
        return None
    along = [
        np.moveaxis(place, i, 0).reshape(place.shape[i], -1)[:, 0]
        for i, place in enumerate(places)
    ]
    is_grid = np.array_equal(np.meshgrid(*along, indexing="ij"), places)
    return [place.tolist() for place in along] if is_grid else None


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
        _transposed(nodes, x, numbers.lhs_spec),
        _transposed(nodes, kernel, numbers.rhs_spec),
        strides=list(params["window_strides"]),
        pads=[*before, *after],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return _transposed(nodes, found, np.argsort(numbers.out_spec).tolist())


PRIMITIVES: dict[str, Callable[..., Value | list[Value]]] = {
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
