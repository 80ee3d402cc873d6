"""Decoded images in a file, kept till the data set is written, so that it resumes."""

import hashlib
import pathlib
import zlib
from collections.abc import Collection, Sequence

import numpy as np

from dpa_jax.data.decode import Preprocessing


class ImageCache:
    """Decoded images side by side in a file, each with what it was made of.

    A record begins with a checksum of its rest, so that one that was half written when
    the process or the machine stopped is not taken for an image.

    Attributes:
      preprocessing: that the images went through.
      sizes: by the name of each image that was found or added, the width and height of
        its file in pixels.
    """

    def __init__(
        self, folder: pathlib.Path, names: Sequence[str], preprocessing: Preprocessing
    ):
        """Opens a cache, or makes an empty one.

        Args:
          folder: where; made if need be.
          names: of all images that the cache has room for.
          preprocessing: that its images went through.
        """
        self.preprocessing = preprocessing
        self.sizes: dict[str, tuple[int, int]] = {}
        size, channels = preprocessing.size, preprocessing.channels
        self._record = np.dtype(
            [
                ("checksum", "<u4"),
                ("stamp", "<u8"),
                ("size", "<u4", 2),
                ("pixels", "u1", (size, size, channels)),
            ]
        )
        self._index = {name: i for i, name in enumerate(names)}
        key = repr((list(names), preprocessing)).encode()
        self._path = folder / f"{hashlib.sha256(key).hexdigest()[:16]}.images"
        folder.mkdir(parents=True, exist_ok=True)
        is_new = not self._path.exists()
        with open(self._path, "ab") as file:  # longer, but filled with nothing yet
            file.truncate(len(names) * self._record.itemsize)
        self._records = np.memmap(self._path, self._record, "r")
        # at once, for one look-up each is slow, and even these are where there are none
        self._stamps = [0] * len(names) if is_new else self._records["stamp"].tolist()

    def find(self, name: str, stamps: Collection[int]) -> bool:
        """Returns whether an image is there, made of a file of one of these stamps."""
        index = self._index[name]
        if self._stamps[index] not in stamps:
            return False
        record = self._records[index]
        is_whole = bool(record["checksum"] == _sum(record))
        if is_whole:
            self.sizes[name] = tuple(record["size"].tolist())
        return is_whole

    def add(
        self, name: str, image: np.ndarray, size: tuple[int, int], stamp: int
    ) -> None:
        """Stores an image, uint8 `[S, S, C]`, with the size and stamp of its file."""
        record = np.array((0, stamp, size, image), self._record)
        record["checksum"] = _sum(record)
        # not through the map, where a full disk ends the process
        with open(self._path, "r+b") as file:
            file.seek(self._index[name] * self._record.itemsize)
            file.write(record.tobytes())
        self.sizes[name] = size

    def image(self, name: str) -> np.ndarray:
        """Returns an image, uint8 `[S, S, C]`."""
        return self._records[self._index[name]]["pixels"]


def _sum(record: np.ndarray) -> int:
    """Returns the checksum of all of a record but its first field, the checksum."""
    return zlib.crc32(record.tobytes()[4:])
