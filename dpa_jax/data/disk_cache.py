"""Decoded images larger than memory: a file in the cache, made once and mapped."""

import contextlib
import hashlib
import json
import math
import mmap
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import PIL

from dpa_jax import errors
from dpa_jax.storage import json_files
from dpa_jax.weights import files, formats

_VERSION = 1  # raised with every change of what decoding makes of an image

Notes = dict[str, Any]


class Writable(Protocol):
    """What takes decoded images by their number: an array, or a file."""

    def __setitem__(self, index: int, image: np.ndarray, /) -> None:
        """Stores image `index`, uint8 `[S, S, C]`."""


def fill(
    shape: tuple[int, ...],
    decode: Callable[[Any], Notes],
    memory: int | None,
    identity: Callable[[], Any],
    log: Callable[[str], None] | None,
) -> tuple[np.ndarray, Notes]:
    """Returns decoded images, in memory or, above a limit, mapped from a file.

    The file is named by a digest of `identity`, so that it is made once and found
    again by later runs. Processes that want the same file wait for the one that makes
    it.

    Args:
      shape: `[N, S, S, C]`.
      decode: stores all images in the `Writable` that it is given, and returns what
        else is worth keeping, as JSON holds it. Not called where the file exists.
      memory: bytes that the images may take in memory; None for no limit.
      identity: returns what the images depend on, as JSON holds it.
      log: called with a line that says where the file is.

    Returns:
      uint8 `[N, S, S, C]`, read-only where it is mapped, and what `decode` returned.

    Raises:
      DpaError: the disk has no room for the file, or it cannot be written.
    """
    size = math.prod(shape)
    if memory is None or size <= memory:
        images = np.empty(shape, np.uint8)
        return images, decode(images)
    key = json.dumps([_VERSION, PIL.__version__, shape, identity()])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    path = files.cache_dir() / "images" / f"{name}.uint8"
    notes = _read_notes(path, size)
    if log is not None:
        log(
            f"{size / 2**30:.1f} GiB of decoded images, more than the "
            f"{memory / 2**30:.1f} GiB they may take in memory, are "
            f"{'written to' if notes is None else 'read from'} {path}, "
            "which may be deleted when no run needs it"
        )
    if notes is None:
        notes = _make(path, size, decode)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8).reshape(shape), notes


def stamps(paths: Iterable[str]) -> list[tuple[str, int, int]]:
    """Returns path, size and time of change of files, in bytes and nanoseconds.

    Raises:
      DpaError: one of them cannot be found.
    """
    found = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise errors.DpaError(
                f"{path}: cannot be read: {error.strerror}"
            ) from error
        found.append((os.path.abspath(path), status.st_size, status.st_mtime_ns))
    return found


def _read_notes(path: pathlib.Path, size: int) -> Notes | None:
    """Returns the notes on a complete file of images; None if there is none."""
    notes = path.with_suffix(".json")
    if not (path.exists() and path.stat().st_size == size and notes.exists()):
        return None
    return json_files.read(notes, {}, f"delete it and {path.name}")


def _make(path: pathlib.Path, size: int, decode: Callable[[Any], Notes]) -> Notes:
    """Decodes images into a file, which gets its name when it is complete."""
    partial = path.with_suffix(".partial")
    with _locked(partial) as descriptor:
        # Another process may have made it while this one waited for the lock.
        notes = _read_notes(path, size)
        if notes is not None:
            return notes
        with _writing(path):
            os.ftruncate(descriptor, 0)  # what a killed process left
            free = shutil.disk_usage(path.parent).free
            if free < size:
                raise errors.DpaError(
                    f"{path.parent} has {free} bytes free, but the decoded images need "
                    f"{size}: DPA_JAX_CACHE names a folder on a larger disk"
                )
            os.ftruncate(descriptor, size)
        notes = decode(_File(descriptor, path))
        with formats.replacing(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(notes), encoding="utf-8")
        with _writing(path):
            os.fsync(descriptor)
            os.replace(partial, path)
        return notes


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[int]:
    """Opens a file for one process at a time; it is gone at the end, or renamed."""
    import fcntl  # here, since Windows has none

    while True:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held the lock has removed or renamed the file since.
            if not path.exists() or not os.path.samestat(
                path.stat(), os.fstat(descriptor)
            ):
                continue
            try:
                yield descriptor
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


class _File:
    """Stores images by plain writes: pages of a map would count as memory in use."""

    def __init__(self, descriptor: int, path: pathlib.Path):
        self._descriptor, self._path = descriptor, path

    def __setitem__(self, index: int, image: np.ndarray) -> None:
        rest = memoryview(image.tobytes())
        place = index * len(rest)
        with _writing(self._path):
            while rest:
                written = os.pwrite(self._descriptor, rest, place)
                rest, place = rest[written:], place + written


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """Names the file whose writing failed, such as for a disk that is full.

    Raises:
      DpaError: the body raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise errors.DpaError(f"cannot write {path}: {error.strerror}") from error
