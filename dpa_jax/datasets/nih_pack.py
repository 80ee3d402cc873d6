"""Decoded images on disk, kept until the data set is written, so that work resumes."""

import collections
import concurrent.futures
import hashlib
import io
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from dpa_jax.data.decode import ImageError, Preprocessing, decode, prepare
from dpa_jax.datasets.nih_configs import WHOLE
from dpa_jax.datasets.nih_source import Problem
from dpa_jax.errors import DpaError

_FLUSH = 256  # images between two records of what is done


_RECORD = np.dtype([("width", "<u4"), ("height", "<u4"), ("stamp", "<u8")])


class Pack:
    """Two files: the images side by side, and a record of each.

    A record holds the size of the file that the image came from, and its stamp; it is
    all zero if the image is not there yet. It is written after the image has reached
    the disk, so that the process may be killed at any moment.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        names: Sequence[str],
        preprocessing: Preprocessing,
    ):
        """Opens a pack, or makes an empty one.

        Args:
          folder: where; made if need be.
          names: of all images that the pack has room for.
          preprocessing: that its images went through.
        """
        key = repr((list(names), preprocessing)).encode()
        stem = hashlib.sha256(key).hexdigest()[:16]
        size, channels = preprocessing.size, preprocessing.channels
        self.preprocessing = preprocessing
        self._index = {name: i for i, name in enumerate(names)}
        self._shape = (size, size, channels)
        self._pending: list[tuple[int, tuple[int, int, int]]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{stem}.images"
        self._images = _sized(self._path, len(names) * size * size * channels)
        self._file = _sized(folder / f"{stem}.records", len(names) * _RECORD.itemsize)
        self._records = np.fromfile(self._file, _RECORD)

    def size(self, name: str) -> tuple[int, int]:
        """Returns the width and height of the file of an image; 0, 0 if not there."""
        record = self._records[self._index[name]]
        return int(record["width"]), int(record["height"])

    def has(self, name: str, stamps: Collection[int]) -> bool:
        """Returns whether an image is there, made of a file of one of these stamps."""
        record = self._records[self._index[name]]
        return self.size(name) != (0, 0) and int(record["stamp"]) in stamps

    def add(
        self, name: str, image: np.ndarray, size: tuple[int, int], stamp: int
    ) -> None:
        """Stores an image, uint8 `[S, S, C]`, with the size and stamp of its file."""
        index = self._index[name]
        self._images.seek(index * image.size)
        self._images.write(image.tobytes())
        self._pending.append((index, (*size, stamp)))
        if len(self._pending) == _FLUSH:
            self.flush()

    def drop(self, name: str) -> None:
        """Forgets an image, for its file has changed."""
        if self.size(name) != (0, 0):
            self._pending.append((self._index[name], (0, 0, 0)))

    def flush(self) -> None:
        """Records on disk what was added and dropped."""
        _sync(self._images)
        for index, record in self._pending:
            self._records[index] = record
            self._file.seek(index * _RECORD.itemsize)
            self._file.write(self._records[index].tobytes())
        _sync(self._file)
        self._pending.clear()

    def reader(self) -> Callable[[str], np.ndarray]:
        """Returns a function from names to images, uint8 `[S, S, C]`."""
        shape = (len(self._index), *self._shape)
        images = np.memmap(self._path, np.uint8, "r", shape=shape)
        return lambda name: images[self._index[name]]

    def __enter__(self) -> "Pack":
        """Returns itself, to be closed at the end of the block."""
        return self

    def __exit__(self, *_) -> None:
        """Records what was added and closes the files."""
        with self._images, self._file:
            self.flush()


def fill(
    items: Iterable[tuple[str, str | bytes, int]],
    lacking: Mapping[str, Sequence[Pack]],
    jobs: int,
    problem: Callable[[Problem], None],
    tick: Callable[[], None],
) -> None:
    """Decodes images on several threads and stores them.

    Threads, for Pillow decodes without holding the interpreter. As many files are
    in memory at once as four for each thread.

    Args:
      items: names with paths or contents, and the stamps of their files.
      lacking: by name the packs that should get it.
      jobs: number of threads.
      problem: called if an image cannot be decoded.
      tick: called after each image.
    """
    pending: collections.deque = collections.deque()

    def settle() -> None:
        name, stamp, future = pending.popleft()
        try:
            size, images = future.result()
            for pack, image in zip(lacking[name], images, strict=True):
                pack.add(name, image, size, stamp)
        except ImageError as error:
            problem(Problem(name, "unreadable", error.reason))
        except DpaError as error:
            problem(Problem(name, "unreadable", str(error)))
        tick()

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            for name, content, stamp in items:
                ways = [pack.preprocessing for pack in lacking[name]]
                pending.append((name, stamp, pool.submit(_decode, content, ways)))
                if len(pending) >= 4 * jobs:
                    settle()
            while pending:
                settle()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode(
    content: str | bytes, ways: Sequence[Preprocessing]
) -> tuple[tuple[int, int], list[np.ndarray]]:
    whole = Image.fromarray(decode(content, WHOLE)[:, :, 0])
    with (
        io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb")
    ) as file:
        if file.read(132).endswith(b"DICM"):  # which `decode` reads and Pillow does not
            raise ImageError("", "DICOM in a file named .png, and NIH's are PNG")
        with Image.open(file) as image:
            size = image.size
    return size, [prepare(whole, way, "") for way in ways]


def _sized(path: pathlib.Path, length: int) -> io.BufferedRandom:
    """Opens a file for reading and writing and makes it so long, without filling it."""
    path.touch()
    file = open(path, "r+b")
    file.truncate(length)
    return file


def _sync(file: io.BufferedRandom) -> None:
    file.flush()
    os.fsync(file.fileno())
