"""JAX's primitives that take parts of arrays, as nodes of ONNX.

With a batch of any size JAX turns every `x[...]` into a gather, slices too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dpa_jax import errors
from dpa_jax.exporting.onnx_nodes import Nodes, Value, integers


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
    """Takes what indexing by slices and by numbers that are known does."""
    numbers, shape = equation.params["dimension_numbers"], equation.invars[0].aval.shape
    starts, ends = [0] * len(shape), list(equation.params["slice_sizes"])
    if indices.array is None:
        raise _irregular()
    numbered: dict[int, np.ndarray] = {}  # the axes that are not sliced
    places = np.moveaxis(indices.array, -1, 0)
    for axis, place in zip(numbers.start_index_map, places, strict=True):
        if axis in numbers.collapsed_slice_dims:
            numbered[axis], ends[axis] = place, shape[axis]
        elif (place != place.flat[0]).any():
            raise _irregular()
        else:
            starts[axis] = int(place.flat[0])
            ends[axis] += starts[axis]
    value = _cut(nodes, value, shape, starts, ends, [1] * len(shape))
    along = _grid(list(numbered.values()))
    for axis, chosen in zip(numbered, along, strict=True):
        value = nodes.add("Gather", value, integers(chosen), axis=axis)
    result = equation.outvars[0].aval.shape
    if indices.array.ndim == 1:
        return nodes.reshape(value, result)
    sliced = iter([axis for axis in range(len(shape)) if axis not in numbered])
    taken, kept = iter(numbered), numbers.offset_dims
    order = [next(sliced if i in kept else taken) for i in range(len(result))]
    return nodes.transpose(value, order)


def _grid(places: Sequence[np.ndarray]) -> list[list[int]]:
    """Returns the places along each axis, where all their combinations are meant."""
    if not places or places[0].ndim == 0:
        return [[int(place)] for place in places]
    if places[0].ndim != len(places):
        raise _irregular()
    along = [
        np.moveaxis(place, i, 0).reshape(place.shape[i], -1)[:, 0]
        for i, place in enumerate(places)
    ]
    if not np.array_equal(np.meshgrid(*along, indexing="ij"), places):
        raise _irregular()
    return [place.tolist() for place in along]


def _irregular() -> errors.DpaError:
    return errors.DpaError(
        "gathering at computed or irregular places has no counterpart in ONNX here; "
        "StableHLO has it"
    )


PRIMITIVES: dict[str, Callable[..., Value | list[Value]]] = {
    "slice": _slice,
    "split": _split,
    "gather": _gather,
}
