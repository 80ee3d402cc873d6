"""Which images a step sees, and how they get to the devices."""

import functools
from collections.abc import Iterator

import numpy as np

from dpa_jax import errors, parallel


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns the order of an epoch, int64 `[count]`: a function of these alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def batch_indices(
    seed: int, count: int, batch_size: int, first: int, steps: int
) -> np.ndarray:
    """Returns the images of some steps of a run.

    Every epoch is shuffled anew and its incomplete last batch dropped.

    Args:
      seed: of the run.
      count: how many images there are, at least `batch_size`.
      batch_size: of all devices together.
      first: the step of the whole run to begin with.
      steps: how many.

    Returns:
      int32 `[steps, batch_size]`.

    Raises:
      UsageError: there are fewer images than a batch holds.
    """
    per_epoch = count // batch_size
    if not per_epoch:
        raise errors.UsageError(
            f"batch_size is {batch_size}, but there are only {count} training images; "
            f"--config.batch_size={count} would use them all in every step"
        )
    rows = []
    for step in range(first, first + steps):
        epoch, place = divmod(step, per_epoch)
        order = epoch_order(seed, epoch, count)
        rows.append(order[place * batch_size : (place + 1) * batch_size])
    return np.stack(rows).astype(np.int32)


def local_indices(
    seed: int, count: int, batch_size: int, first: int, steps: int, batches: int = 1
) -> np.ndarray:
    """Returns this process's part of what some steps of a run see.

    Args:
      seed: see `batch_indices`, as for all that is not named here.
      count: see there.
      batch_size: see there.
      first: see there.
      steps: see there.
      batches: that each step takes, one after the other.

    Returns:
      int32 `[steps, part of a batch]`, of several batches `[steps, batches, part]`.
    """
    rows = batch_indices(seed, count, batch_size, first * batches, steps * batches)
    rows = rows[:, parallel.local_part(batch_size)]
    return rows if batches == 1 else rows.reshape(steps, batches, -1)


def stream(
    images: np.ndarray,
    seed: int,
    batch_size: int,
    chunks: list[tuple[int, int]],
    batches: int = 1,
) -> Iterator[np.ndarray]:
    """Yields the images of chunk after chunk, the next ones gathered meanwhile.

    Args:
      images: uint8 `[N, S, S, C]`, on the host; may be a memory map.
      seed: of the run.
      batch_size: of all devices together.
      chunks: the first step of the whole run and the number of steps of each.
      batches: see `local_indices`.

    Yields:
      uint8 `[K, S, S, C]`, what `local_indices` names of a chunk, in that order.
    """
    import grain

    def gather(chunk: tuple[int, int]) -> np.ndarray:
        first, steps = chunk
        rows = local_indices(seed, len(images), batch_size, first, steps, batches)
        return images[rows.ravel()]

    pipeline = grain.MapDataset.source(chunks).map(gather)
    # two blocks ahead: one being gathered while another travels
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    yield from pipeline.to_iter_dataset(options)
