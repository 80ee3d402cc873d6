"""Which images a step sees, and how they get to the devices."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dpa_jax import errors
from dpa_jax.devices import parallel
from dpa_jax.devices.platform import Platform
from dpa_jax.images import tiles

# Bytes of images that are sent to this process's devices for one chunk, at most but for
# a single step: three such blocks are in memory at a time.
BLOCK_BYTES = 256 << 20


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


@dataclasses.dataclass(frozen=True)
class Order:
    """The order in which a run draws its images.

    Attributes:
      seed: of the run.
      count: of images.
      batch_size: of all devices together.
      batches: that each step takes, one after the other.
    """

    seed: int
    count: int
    batch_size: int
    batches: int = 1

    def indices(self, first: int, steps: int, platform: Platform) -> np.ndarray:
        """Returns what this process's devices see in some steps of a run.

        Returns:
          int32 `[devices, steps, part of a batch]`, of several batches `[devices,
          steps, batches, part]`.
        """
        rows = batch_indices(
            self.seed,
            self.count,
            self.batch_size,
            first * self.batches,
            steps * self.batches,
        )
        rows = rows[:, parallel.local_part(self.batch_size, platform)]
        if self.batches > 1:
            rows = rows.reshape(steps, self.batches, -1)
        return parallel.split(rows, platform, axis=-1)


def padded(indices: np.ndarray, steps: int) -> np.ndarray:
    """Fills up indices `[devices, k, ...]` to so many steps, which are not taken."""
    missing = steps - indices.shape[1]
    return np.pad(indices, [(0, 0), (0, missing)] + [(0, 0)] * (indices.ndim - 2))


@dataclasses.dataclass(frozen=True)
class Block:
    """The images of one chunk of steps, and where in them each step's are.

    Attributes:
      images: uint8 `[devices, K * images of a step, ...]`, each device's own, as
        `images.tiles` reshapes them.
      indices: int32 `[devices, K, ...]`.
    """

    images: np.ndarray
    indices: np.ndarray


def streamed_steps(bytes_of_image: int, order: Order, platform: Platform) -> int:
    """Returns how many steps of a chunk have their images in `BLOCK_BYTES`."""
    images = order.batch_size * order.batches // platform.group.count
    return max(1, BLOCK_BYTES // (images * bytes_of_image))


def stream(
    images: np.ndarray,
    rows: np.ndarray,
    order: Order,
    chunks: Sequence[tuple[int, int]],
    steps: int,
    platform: Platform,
) -> Iterator[Block]:
    """Yields the images of chunk after chunk, the next ones gathered meanwhile.

    Args:
      images: uint8 `[M, S, S, C]`, on the host; may be a memory map.
      rows: int `[N]`, which of them the run trains on.
      order: of these.
      chunks: the first step of the whole run and the number of steps of each.
      steps: of a block; shorter chunks are filled up.
      platform: whose devices are fed.
    """
    import grain

    from dpa_jax.data import image_set

    def gather(chunk: tuple[int, int]) -> Block:
        first, count = chunk
        drawn = order.indices(first, count, platform)
        wanted = rows[drawn.reshape(len(drawn), -1)]
        each = wanted.shape[1] // count  # images of a step on a device
        block = np.zeros((len(drawn), steps * each, *images.shape[1:]), images.dtype)
        for device, numbers in enumerate(wanted):
            block[device, : len(numbers)] = images[numbers]
        image_set.release(images)
        places = np.arange(steps * each, dtype=np.int32)
        places = places.reshape(steps, *drawn.shape[2:])
        return Block(
            tiles(block),
            np.broadcast_to(places, (len(drawn), *places.shape)),
        )

    pipeline = grain.MapDataset.source(list(chunks)).map(gather)
    # one block ahead is gathered while another travels
    options: Any = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    yield from pipeline.to_iter_dataset(options)
