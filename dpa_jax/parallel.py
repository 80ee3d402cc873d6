"""Data parallelism: the only file that names pmap, devices and processes."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dpa_jax import errors

AXIS = "devices"
_EXCHANGED = 64 << 20  # bytes of an array that a process sends to the others at once


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Joins the processes of one run; call it before anything else touches JAX.

    Args:
      coordinator: `HOST:PORT` of process 0; None lets JAX ask the cluster (Slurm, Open
        MPI, Kubernetes, a TPU slice).
      processes: how many there are.
      process: which this is, from 0.

    Raises:
      UsageError: only some of the three are given, or the others did not answer.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise errors.UsageError(
            "--coordinator, --processes and --process go together; "
            "without them --distributed asks the cluster"
        )
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        raise errors.UsageError(
            f"the processes of this run did not find each other: {error}; "
            "give --coordinator=HOST:PORT, --processes and --process to each"
        ) from error


def process() -> int:
    """Returns which of the processes this is, from 0."""
    return jax.process_index()


def is_main_process() -> bool:
    """Says whether this process is the one that writes checkpoints and logs."""
    return jax.process_index() == 0


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


def local_part(batch_size: int) -> slice:
    """Returns which of a batch's images this process reads."""
    part = batch_size // jax.process_count()
    return slice(jax.process_index() * part, (jax.process_index() + 1) * part)


def _sharding(*axes: str | None) -> NamedSharding:
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec(*axes))


def replicate(tree: Any) -> Any:
    """Puts arrays on every local device, as programs made here take them."""
    if jax.local_device_count() == 1:
        return jax.device_put(tree, jax.local_devices()[0])
    return jax.device_put(tree, _sharding())


def distribute(tree: Any, axis: int = 0) -> Any:
    """Spreads this process's part of a batch over its devices.

    Args:
      tree: arrays with this process's images along `axis`.
      axis: the batch axis.

    Returns:
      Arrays as `compile_program` takes them: of several devices with a leading axis.
    """
    count = jax.local_device_count()
    if jax.device_count() == 1:
        return jax.device_put(tree, jax.local_devices()[0])

    def split(array):
        return np.stack(np.split(np.asarray(array), count, axis))

    return jax.device_put(jax.tree.map(split, tree), _sharding(AXIS))


def compile_program(
    make: Callable[[str | None], Callable[..., Any]],
    arguments: tuple[Any, ...],
    mapped: tuple[bool, ...],
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compiles a function for all devices, its first argument donated.

    Args:
      make: given the name of the axis of devices, or None on a single one, returns the
        function; over several devices its results must be the same on each.
      arguments: what it will be called with, or `jax.ShapeDtypeStruct`s of it.
      mapped: which arguments are spread over the devices; the rest are replicated.
      options: XLA's, by name.

    Returns:
      The compiled function.
    """
    if jax.device_count() == 1:
        compiled = jax.jit(make(None), donate_argnums=0, compiler_options=options)
        return compiled.lower(*arguments).compile()
    program = jax.pmap(
        make(AXIS),
        AXIS,
        in_axes=tuple(0 if m else None for m in mapped),
        out_axes=None,
        donate_argnums=0,
    )
    if jax.process_count() > 1:
        # of several processes pmap itself makes local arrays global ones, so that it
        # has to be called, and compiles then, without options
        return program
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
    return program.lower(*shapes).compile(options)


def gather_from_processes(part: np.ndarray) -> np.ndarray:
    """Joins what every process holds of an array along its first axis, in order."""
    if jax.process_count() == 1:
        return part
    from jax.experimental import multihost_utils

    counts = multihost_utils.process_allgather(np.array([len(part)])).ravel()
    padded = np.zeros((counts.max(), *part.shape[1:]), part.dtype)
    padded[: len(part)] = part
    parts = multihost_utils.process_allgather(padded)
    return np.concatenate([p[:c] for p, c in zip(parts, counts, strict=True)])


def parts(count: int) -> list[slice]:
    """Divides `count` things among the processes, in order."""
    ends = [count * i // jax.process_count() for i in range(jax.process_count() + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def fill_from_processes(array: np.ndarray) -> None:
    """Completes an array of which each process has filled its own of the `parts`."""
    if jax.process_count() == 1:
        return
    places = parts(len(array))
    mine = places[jax.process_index()]
    # in blocks, since what is exchanged lies on the devices meanwhile
    block = max(1, _EXCHANGED // max(1, array[:1].nbytes))
    for first in range(0, max(p.stop - p.start for p in places), block):

        def within(place, first=first):
            start = min(place.start + first, place.stop)
            return slice(start, min(start + block, place.stop))

        pieces = [within(place) for place in places]
        joined = gather_from_processes(array[within(mine)])
        ends = np.cumsum([piece.stop - piece.start for piece in pieces])
        for piece, end in zip(pieces, ends, strict=True):
            array[piece] = joined[end - (piece.stop - piece.start) : end]


def gather_lines(lines: Sequence[str]) -> list[str]:
    """Joins what every process has to say, one text a line, in order."""
    said = "".join(line + "\n" for line in lines).encode()
    joined = gather_from_processes(np.frombuffer(said, np.uint8))
    return joined.tobytes().decode().splitlines()


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
