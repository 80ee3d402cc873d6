"""Data parallelism: the only file that names pmap, shard_map and shardings.

A program is one function of a device's share of the data. On one device it is jitted,
on several of one process mapped by `jax.pmap`, on those of several processes by jit
over shard_map: a pmap that is compiled ahead of time does not reach beyond its process.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from dpa_jax import errors
from dpa_jax.devices.platform import Platform
from dpa_jax.devices.processes import ProcessGroup

AXIS = "devices"
_EXCHANGED = 64 << 20  # bytes of an array that a process sends to the others at once


def check_batch(batch_size: int, devices: int) -> None:
    """Refuses a batch that the devices cannot share equally.

    Raises:
      UsageError: with the nearest sizes that they can.
    """
    if batch_size % devices:
        lower = batch_size // devices * devices
        near = [size for size in (lower, lower + devices) if size]
        raise errors.UsageError(
            f"batch_size {batch_size} cannot be shared by {devices} devices; "
            f"the nearest that can: {' or '.join(map(str, near))}"
        )


def _sharding(platform: Platform, sharded: bool) -> Any:
    if len(platform.devices) == 1:
        return SingleDeviceSharding(platform.devices[0])
    mesh = Mesh(np.array(platform.devices), (AXIS,))
    return NamedSharding(mesh, PartitionSpec(AXIS) if sharded else PartitionSpec())


def replicate(tree: Any, platform: Platform) -> Any:
    """Puts arrays on every device; each process gives the same ones."""
    return _put(tree, _sharding(platform, sharded=False))


def shard(tree: Any, platform: Platform) -> Any:
    """Spreads arrays over the devices.

    Args:
      tree: arrays whose leading axis is that of this process's devices.
      platform: of the program that takes them.
    """
    return _put(tree, _sharding(platform, sharded=True))


def _put(tree: Any, sharding: Any) -> Any:
    def put(leaf):
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(put, tree)


def split(array: np.ndarray, platform: Platform, axis: int) -> np.ndarray:
    """Divides what this process reads of a batch among its devices.

    Args:
      array: with this process's images along `axis`.
      platform: whose local devices.
      axis: of the batch.

    Returns:
      The array with a leading axis of devices, as `shard` takes it.
    """
    return np.stack(np.split(array, len(platform.local_devices), axis))


def abstract(tree: Any, platform: Platform, *, sharded: bool = False) -> Any:
    """Returns arrays' shapes as `compile_program` takes them.

    Args:
      tree: arrays or shapes, with the axis of devices where they are sharded: of this
        process's.
      platform: where they will lie.
      sharded: whether they are spread over the devices.
    """
    sharding = _sharding(platform, sharded)

    def describe(leaf):
        shape = leaf.shape
        if sharded:
            shape = (len(platform.devices), *shape[1:])
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


def compile_program(
    make: Callable[[str | None], Callable[..., Any]],
    platform: Platform,
    arguments: tuple[Any, ...],
    sharded: tuple[bool, ...],
    *,
    mapped_by: str = "",
) -> Any:
    """Compiles a function for all devices, its first argument donated.

    Args:
      make: given the name of the axis of devices, or None on a single one, returns the
        function of one device's share; its results must be the same on each.
      platform: to compile for, at hand or not.
      arguments: what it will be called with, or `abstract` of it.
      sharded: which arguments are spread over the devices; the rest are replicated.
      mapped_by: `pmap` or `shard_map` over several devices; by default the first but of
        several processes.

    Returns:
      The compiled function.
    """
    arguments = tuple(
        abstract(argument, platform, sharded=False)
        if not is_sharded
        else jax.tree.map(_structure, argument)
        for argument, is_sharded in zip(arguments, sharded, strict=True)
    )
    # Pallas asks the default device what to compile for, be it at hand or not
    with jax.default_device(platform.local_devices[0]):
        return _compiled(make, platform, arguments, sharded, mapped_by)


def _compiled(make, platform, arguments, sharded, mapped_by):
    options = dict(platform.options) or None
    if len(platform.devices) == 1:
        function = _without_device_axis(make(None), sharded)
        jitted = jax.jit(function, donate_argnums=0, compiler_options=options)
        return jitted.lower(*arguments).compile()
    if mapped_by == "pmap" or (not mapped_by and platform.group.count == 1):
        mapped = jax.pmap(
            make(AXIS),
            AXIS,
            in_axes=tuple(0 if s else None for s in sharded),
            out_axes=None,
            donate_argnums=0,
            devices=platform.devices,
        )
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments
        )
        return mapped.lower(*shapes).compile(options)
    function = jax.shard_map(
        _without_device_axis(make(AXIS), sharded),
        mesh=Mesh(np.array(platform.devices), (AXIS,)),
        in_specs=tuple(PartitionSpec(AXIS) if s else PartitionSpec() for s in sharded),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    jitted = jax.jit(function, donate_argnums=0, compiler_options=options)
    return jitted.lower(*arguments).compile()


def _structure(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _without_device_axis(function, sharded: tuple[bool, ...]):
    """Takes the axis of devices, of one in each share, from what is sharded."""

    def share(*arguments):
        return function(
            *(
                jax.tree.map(lambda a: a[0], argument) if is_sharded else argument
                for argument, is_sharded in zip(arguments, sharded, strict=True)
            )
        )

    return share


def local_part(batch_size: int, platform: Platform) -> slice:
    """Returns which of a batch's images this process reads."""
    part = batch_size // platform.group.count
    first = platform.group.index * part
    return slice(first, first + part)


# --- arrays that each process holds a part of


def gather_from_processes(part: np.ndarray, group: ProcessGroup) -> np.ndarray:
    """Joins what every process holds of an array along its first axis, in order."""
    if group.count == 1:
        return part
    from jax.experimental import multihost_utils

    counts = multihost_utils.process_allgather(np.array([len(part)])).ravel()
    padded = np.zeros((counts.max(), *part.shape[1:]), part.dtype)
    padded[: len(part)] = part
    gathered = multihost_utils.process_allgather(padded)
    return np.concatenate([p[:c] for p, c in zip(gathered, counts, strict=True)])


def parts(count: int, group: ProcessGroup) -> list[slice]:
    """Divides `count` things among the processes, in order."""
    ends = [count * i // group.count for i in range(group.count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def fill_from_processes(array: np.ndarray, group: ProcessGroup) -> None:
    """Completes an array of which each process has filled its own of the `parts`."""
    places = parts(len(array), group)
    # in blocks, since what is exchanged lies on the devices meanwhile
    block = max(1, _EXCHANGED // max(1, array[:1].nbytes))
    for first in range(0, max(p.stop - p.start for p in places), block):

        def within(place, first=first):
            start = min(place.start + first, place.stop)
            return slice(start, min(start + block, place.stop))

        pieces = [within(place) for place in places]
        joined = gather_from_processes(array[pieces[group.index]], group)
        ends = np.cumsum([piece.stop - piece.start for piece in pieces])
        for piece, end in zip(pieces, ends, strict=True):
            array[piece] = joined[end - (piece.stop - piece.start) : end]


def gather_lines(lines: Sequence[str], group: ProcessGroup) -> list[str]:
    """Joins lines of text of every process, in order."""
    text = "".join(line + "\n" for line in lines).encode()
    joined = gather_from_processes(np.frombuffer(text, np.uint8), group)
    return joined.tobytes().decode().splitlines()
