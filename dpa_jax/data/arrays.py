"""Reads an .npz of images and checks it before anything is made of it."""

import dataclasses
import os
import struct
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from dpa_jax import errors
from dpa_jax.data import labels as label_names
from dpa_jax.data.image_set import release

_BLOCK = 2**20  # bytes read at once
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclasses.dataclass(frozen=True)
class Arrays:
    """The images of an .npz, mapped if they can be, and what is known about each.

    See `read`.
    """

    images: np.ndarray
    paths: list[str]
    labels: np.ndarray | None
    groups: list[str] | None
    columns: Mapping[str, Sequence | np.ndarray]

    def image(self, index: int) -> Image.Image:
        """Returns an image as 8-bit grey or RGB."""
        image = to_image(np.array(self.images[index]))
        release(self.images)
        return image


def read(location: str) -> Arrays:
    """Reads `images` and, where there are any, `labels`, `groups`, `paths` and others.

    Args:
      location: an .npz without pickled objects. `images` is `[N, H, W]`,
        `[N, H, W, 1]` or `[N, H, W, 3]`, uint8 or float in [0, 1]; `labels` `[N]` holds
        0 and 1, booleans, or normal and abnormal; `groups` and `paths` `[N]` strings or
        numbers. Others that are `[N]` become columns, and the rest is ignored.
        Images that are compressed in it are read into memory, all of them.

    Raises:
      DpaError: naming the file and the array at fault.
    """
    fields = ("labels", "groups", "paths")
    try:
        # Opened here, as NumPy leaves a file open that it finds to be damaged.
        with open(location, "rb") as file, np.load(file, allow_pickle=False) as archive:
            label_names.check_fields(location, archive.files, "images", fields)
            known = [name for name in fields if name in archive.files]
            images = _map_images(location)
            if images is None:
                images = archive["images"]
            columns = {name: archive[name] for name in known}
            rest = set(archive.files) - {"images", *fields}
            others = {name: archive[name] for name in sorted(rest)}
    except errors.DpaError:
        raise
    except PermissionError as error:
        raise errors.DpaError(
            f"{location}: cannot be read: {error.strerror}"
        ) from error
    except Exception as error:  # of zipfile, zlib or NumPy, on damaged bytes
        raise errors.DpaError(f"{location}: not an .npz of arrays: {error}") from error
    check_images(location, images)
    for name, values in columns.items():
        if values.shape != images.shape[:1]:
            raise errors.DpaError(
                f"{location}: {len(images)} images, but {name} is of shape "
                f"{list(values.shape)}"
            )
    strings = {name: _strings(values) for name, values in columns.items()}
    labels = None
    if "labels" in columns:
        if columns["labels"].dtype == bool:
            strings["labels"] = _strings(columns["labels"].astype(np.int8))
        labels = np.array(
            [
                label_names.parse_label(value, f"{location}, labels[{i}]")
                for i, value in enumerate(strings["labels"])
            ],
            np.int8,
        )
    return Arrays(
        images,
        strings.get("paths") or [f"{location}[{i}]" for i in range(len(images))],
        labels,
        strings.get("groups"),
        {
            name: values
            if values.dtype.kind in "iuf"
            else label_names.column(name, _strings(values))
            for name, values in others.items()
            if values.shape == images.shape[:1]
        },
    )


def to_image(values: np.ndarray) -> Image.Image:
    """Returns an image, `[H, W]`, `[H, W, 1]` or `[H, W, 3]`, as 8-bit grey or RGB.

    Args:
      values: uint8, or float in [0, 1]; see `check_images`.
    """
    if values.dtype != np.uint8:
        values = np.rint(255 * values.astype(np.float64)).astype(np.uint8)
    return Image.fromarray(values[..., 0] if values.shape[2:] == (1,) else values)


def _map_images(location: str) -> np.ndarray | None:
    """Maps the images from the file; None if they are compressed in it."""
    with zipfile.ZipFile(location) as packed, packed.open("images.npy") as member:
        entry = packed.getinfo("images.npy")
        version = np.lib.format.read_magic(member)
        shape, by_columns, dtype = _HEADERS[version](member)
        if entry.compress_type != zipfile.ZIP_STORED or by_columns or dtype.hasobject:
            return None
        start = member.tell()
        while member.read(_BLOCK):
            pass  # zipfile compares the checksum at the end
    with open(location, "rb") as file:
        file.seek(entry.header_offset)
        name, extra = struct.unpack("<26x2H", file.read(30))
    offset = entry.header_offset + 30 + name + extra + start
    return np.memmap(location, dtype, "r", offset, shape)


def _strings(values: np.ndarray) -> list[str]:
    return [os.fsdecode(v) if isinstance(v, bytes) else str(v) for v in values.tolist()]


def check_images(location: str, images: np.ndarray) -> None:
    """Raises a DpaError that names `location` if an array holds no images."""
    if (
        images.ndim not in (3, 4)
        or 0 in images.shape
        or images.shape[3:] not in ((), (1,), (3,))
    ):
        raise errors.DpaError(
            f"{location}: images must be [N, H, W], [N, H, W, 1] or [N, H, W, 3] "
            f"without a 0, not {list(images.shape)}"
        )
    if images.dtype == np.uint8:
        return
    if images.dtype.kind != "f":
        raise errors.DpaError(
            f"{location}: images must be uint8, or float in [0, 1], not {images.dtype}"
        )
    for i, image in enumerate(images):
        release(images)
        if not np.isfinite(image).all():
            raise errors.DpaError(f"{location}: images[{i}] has NaN or infinite values")
        if image.min() < 0 or image.max() > 1:
            hint = ""
            if -1 <= image.min() < 0 and image.max() <= 1:
                hint = (
                    ": (x + 1) / 2 brings those that were normalised to [-1, 1] to it"
                )
            raise errors.DpaError(
                f"{location}: images[{i}] has values from {image.min():g} to "
                f"{image.max():g}; float images must lie in [0, 1], 0 black{hint}"
            )
