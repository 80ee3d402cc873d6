"""Loads the images of a source: decodes what it lists, in threads and processes."""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dpa_jax import errors
from dpa_jax.data import disk_cache, listing
from dpa_jax.data.decode import ImageError, Preprocessing, prepare
from dpa_jax.data.image_set import ImageSet, Skipped, joined
from dpa_jax.data.listing import Listing
from dpa_jax.data.properties import Original
from dpa_jax.devices import parallel
from dpa_jax.devices.processes import ProcessGroup

_BLOCK = 16  # images that a thread takes at once, at most

Progress = Callable[[int, int], None]


def load(
    location: str | os.PathLike | Sequence[str | os.PathLike],
    preprocessing: Preprocessing,
    *,
    skip_corrupt: bool = False,
    workers: int = 0,
    progress: Progress | None = None,
    data_dir: str | None = None,
    group: ProcessGroup | None = None,
    memory: int | None = None,
    log: Callable[[str], None] | None = None,
) -> ImageSet:
    """Loads all images of a source.

    Args:
      location: one of
        a folder: its images and those of its subfolders, sorted by path, hidden ones
          ignored;
        an image, or a NIfTI volume, .nii or .nii.gz, wherever an image may be: its
          slices, see `volumes.read`, called FILE/NUMBER. A volume is a group, unless
          its manifest gives it another, and the column `slice` tells the number;
        a manifest, .csv: columns path, relative to the manifest's folder, and if wanted
          label (normal or 0, abnormal or 1) and group; any others become `columns`.
          FILE.csv:SPLIT takes the rows of one value of its column split;
        arrays, .npz: `images`, uint8 or float in [0, 1], `[N, H, W]` or `[N, H, W, C]`
          with 1 or 3 channels, and if wanted `labels`, `groups` and `paths`, each
          `[N]`; any other arrays of that shape become `columns`;
        `tfds:NAME[/CONFIG]:SPLIT`.
        Of several, in the order given, labels, groups and each column are kept if all
        have them.
      preprocessing: what each image goes through, those of an .npz too.
      skip_corrupt: whether to leave out images whose content cannot be used and list
        them in `skipped`, rather than to stop. Files that are missing or may not be
        read stop the run all the same.
      workers: threads that decode; 0 for one for each core.
      progress: called with the numbers of images done and in all as they come in.
      data_dir: where TFDS keeps its data; None for its own default.
      group: of processes, each of which decodes a part and sends it to the others; all
        of them must call this then, with the same `memory`. From TFDS, whose
        images are stored as small arrays, each reads all, and so it does above
        `memory`.
      memory: bytes that the decoded images may take in memory; None for no limit.
        Larger ones are decoded once into a file in the cache and mapped, read-only;
        the file is used again until an image or the preprocessing changes.
      log: called with a line that says where that file is.

    Returns:
      The images, in the order of the source.

    Raises:
      DpaError: the source is missing, empty, cannot be read, or is malformed; or an
        image cannot be used.
    """
    if isinstance(location, str | os.PathLike):
        location = [location]
    if not location:
        raise errors.DpaError("no images were given")
    found = []
    places = [os.fspath(one) for one in location]
    for is_tfds, group_of in itertools.groupby(places, lambda p: p.startswith("tfds:")):
        if not is_tfds:
            parts = [listing.of_location(place, preprocessing) for place in group_of]
            found.append(
                _gather(
                    *(listing.joined(parts), preprocessing, skip_corrupt, workers),
                    *(progress, group, memory, log),
                )
            )
            continue
        for place in group_of:
            name, _, split = place.removeprefix("tfds:").partition(":")
            if not name or not split:
                raise errors.UsageError(f"{place} is not tfds:NAME[/CONFIG]:SPLIT")
            from dpa_jax.data.tfds_source import load_tfds

            options = {"memory": memory, "log": log}
            found.append(
                load_tfds(name, split, preprocessing, data_dir, progress, **options)
            )
    return joined(found)


def from_items(
    items: Sequence[Any],
    read: Callable[[Any, str], tuple[Image.Image, Original]],
    preprocessing: Preprocessing,
    *,
    labels: np.ndarray | None = None,
    groups: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> ImageSet:
    """Prepares images in memory as those of a file are.

    Args:
      items: one for each image.
      read: returns the 8-bit image of an item, whose name it is given for errors, and
        what it was before.
      preprocessing: what each goes through.
      labels: `[N]`, 0 normal and 1 abnormal.
      groups: `[N]` names of what images share (patient, slide).
      progress: see `load`.
    """
    paths = [f"images[{i}]" for i in range(len(items))]

    def prepared(i: int) -> tuple[np.ndarray, Original]:
        image, original = read(items[i], paths[i])
        return prepare(image, preprocessing, paths[i]), original

    listed = Listing(paths, prepared, [], labels, groups)
    return _gather(listed, preprocessing, False, 0, progress)


def _gather(
    listed: Listing,
    preprocessing: Preprocessing,
    skip_corrupt: bool,
    workers: int,
    progress: Progress | None,
    group: ProcessGroup | None = None,
    memory: int | None = None,
    log: Callable[[str], None] | None = None,
) -> ImageSet:
    """Decodes a listing into one array, or into a file that is mapped as one."""
    if workers < 0:
        raise errors.UsageError(f"workers must be 0 or more, not {workers}")
    count, size = len(listed.paths), preprocessing.size
    threads = workers or os.cpu_count() or 1

    unknown = np.full(len(Original._fields), np.nan, np.float32)
    originals = np.tile(unknown, (count, 1))

    def read(images: disk_cache.Writable, indices: range) -> tuple[dict[int, str], int]:
        return _decode(
            *(listed, images, originals, skip_corrupt, threads, progress, indices)
        )

    def check(failed: dict[int, str], done: int) -> None:
        if failed and (len(failed) == count or not skip_corrupt):
            raise _unusable(listed.paths, failed, done)

    def decode_all(images: Any) -> disk_cache.Notes:
        if group and group.count > 1 and isinstance(images, np.ndarray):
            failed, done = _decode_shared(read, images, originals, group)
        else:
            failed, done = read(images, range(count))
        check(failed, done)  # here, so that no file is kept of what cannot be used
        return {"failed": list(failed.items()), "originals": originals.tolist()}

    images, notes = disk_cache.fill(
        (count, size, size, preprocessing.channels),
        decode_all,
        memory,
        lambda: [dataclasses.astuple(preprocessing), disk_cache.stamps(listed.files)],
        log,
    )
    failed = {i: reason for i, reason in notes["failed"]}
    check(failed, count)
    # a file of the cache that an older version made says nothing of them
    kept = notes.get("originals")
    found = ImageSet(
        images,
        listed.paths,
        listed.labels,
        listed.groups,
        [Skipped(listed.paths[i], failed[i]) for i in sorted(failed)],
        listed.columns,
        originals=None if kept is None else np.array(kept, np.float32),
    )
    return found.select([i for i in range(count) if i not in failed])


def _decode_shared(
    read, images: np.ndarray, originals: np.ndarray, group: ProcessGroup
) -> tuple[dict[int, str], int]:
    """Decodes this process's part of the images and receives the others'."""
    mine = parallel.parts(len(images), group)[group.index]
    failed, done = read(images, range(mine.start, mine.stop))
    rows = originals[mine.start : mine.stop].tolist()
    own = json.dumps({"failed": list(failed.items()), "done": done, "rows": rows})
    every = [json.loads(line) for line in parallel.gather_lines([own], group)]
    parallel.fill_from_processes(images, group)
    originals[:] = [row for one in every for row in one["rows"]]
    failed = {i: reason for one in every for i, reason in one["failed"]}
    return failed, sum(one["done"] for one in every)


def _decode(
    listed: Listing,
    images: disk_cache.Writable,
    originals: np.ndarray,
    skip_corrupt: bool,
    workers: int,
    progress: Progress | None,
    indices: range,
) -> tuple[dict[int, str], int]:
    """Decodes the `indices` images of a listing into their places.

    Threads, as Pillow lets go of the interpreter while it decodes and resizes, and a
    fork is not safe once JAX has started.

    Returns:
      Why images cannot be used, by their number, and how many were looked at.
    """

    def read(block: range) -> tuple[int, dict[int, str]]:
        failed = {}
        for i in block:
            try:
                images[i], originals[i] = listed.read(i)
            except ImageError as error:
                failed[i] = error.reason
        return len(block), failed

    failed: dict[int, str] = {}
    done, count = 0, len(indices)
    with warnings.catch_warnings():
        # Of what Pillow only warns of here, `decode` makes an error; pydicom raises one
        # itself where it cannot read on, and has coped with what it warns of.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module="pydicom")
        pool = concurrent.futures.ThreadPoolExecutor(workers)
        length = max(1, min(_BLOCK, -(-count // workers)))
        futures = [
            pool.submit(read, indices[i : i + length]) for i in range(0, count, length)
        ]
        try:
            for future in concurrent.futures.as_completed(futures):
                if future.cancelled():
                    continue
                number, faults = future.result()
                done += number
                failed |= faults
                if progress is not None:
                    progress(done, count)
                if failed and not skip_corrupt:
                    # Blocks begin in order, so with those under way finished, the first
                    # bad image of all is among the failed.
                    for other in futures:
                        other.cancel()
        finally:
            pool.shutdown(cancel_futures=True)
    return failed, done


def _unusable(
    paths: Sequence[str], failed: dict[int, str], done: int
) -> errors.DpaError:
    """Returns the error that ends a run at its bad images: the first one in full."""
    first = min(failed)
    message = f"{paths[first]}: {failed[first]}"
    if len(paths) == 1:
        return errors.DpaError(message)
    if len(failed) == len(paths):
        return errors.DpaError(f"none of {done} images can be used; {message}")
    return errors.DpaError(
        f"{message} (with it, {len(failed)} of the {done} images read so far cannot be "
        "used; --config.data.skip_corrupt=true, or --skip-corrupt where images are "
        "scored, leaves such images out and lists them)"
    )
