"""What a source holds before anything is decoded: folders, files, manifests, arrays."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dpa_jax import errors
from dpa_jax.data import arrays, filesystems, manifest, properties, volumes
from dpa_jax.data.decode import ImageError, Preprocessing, decode_described, prepare
from dpa_jax.data.image_set import concatenated, taken
from dpa_jax.data.properties import Original

EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom"),
    *volumes.EXTENSIONS,
)


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a source holds before anything is decoded.

    `read(i)` gives image `i` and what it was before; `files` are those that images are
    read from.
    """

    paths: Sequence[str]
    read: Callable[[int], tuple[np.ndarray, Original]]
    files: Sequence[str]
    labels: np.ndarray | None = None
    groups: Sequence[str] | None = None
    columns: Mapping[str, Sequence | np.ndarray] | None = None


def of_location(place: str, preprocessing: Preprocessing) -> Listing:
    """Lists the images of a source that is no data set of TFDS."""
    where = os.path.expanduser(place)
    listed = None if os.path.isdir(where) else manifest.parse(where)
    if not os.path.exists(listed[0] if listed else where):
        raise errors.DpaError(f"there is no file or folder {where}")
    if os.path.isdir(where):
        return _files(list_images(where), preprocessing)
    if listed:
        found = manifest.read(*listed)
        splits = sorted(set(found.columns.get("split", ())))
        if len(splits) > 1:
            raise errors.UsageError(
                f"{where} holds the splits {', '.join(splits)}: name one, such as "
                f"{where}:{splits[0]}"
            )
        return _files(found.paths, preprocessing, found)
    if where.lower().endswith(".npz"):
        return _arrays(where, preprocessing)
    return _files([where], preprocessing)


def joined(listings: Sequence[Listing]) -> Listing:
    """Puts listings one after the other; see `image_set.joined`."""
    if len(listings) == 1:
        return listings[0]
    starts = np.cumsum([0, *(len(listing.paths) for listing in listings)])

    def read(i: int) -> tuple[np.ndarray, Original]:
        number = int(np.searchsorted(starts, i, "right")) - 1
        return listings[number].read(i - int(starts[number]))

    columns = [listing.columns or {} for listing in listings]
    common = [name for name in columns[0] if all(name in c for c in columns)]

    def every(parts: Sequence[Any]) -> Any:
        return None if any(part is None for part in parts) else concatenated(parts)

    return Listing(
        [path for listing in listings for path in listing.paths],
        read,
        [file for listing in listings for file in listing.files],
        every([listing.labels for listing in listings]),
        every([listing.groups for listing in listings]),
        {name: concatenated([c[name] for c in columns]) for name in common} or None,
    )


def list_images(folder: str | os.PathLike) -> list[str]:
    """Lists the image files in a folder and its subfolders, sorted by path.

    Images are known by their extension, in whatever case; links are followed.

    Raises:
      DpaError: there is no such folder, it holds no images, or a part of it may not be
        read.
    """
    files = filesystems.list_folder(folder)
    found = [path for path in files if path.lower().endswith(EXTENSIONS)]
    if not found:
        raise errors.DpaError(
            f"{os.fspath(folder)} holds no images: files that end in "
            f"{', '.join(EXTENSIONS)} are looked for, in subfolders too"
        )
    return found


def _files(
    paths: Sequence[str],
    preprocessing: Preprocessing,
    known: manifest.Manifest | None = None,
) -> Listing:
    """Lists images and the slices of volumes, with what a manifest says of them."""
    labels, groups, columns = None, None, None
    if known is not None:
        labels, groups, columns = known.labels, known.groups, known.columns or None
    if not any(map(volumes.is_volume, paths)):
        return Listing(
            paths,
            lambda i: decode_described(paths[i], preprocessing),
            paths,
            labels,
            groups,
            columns,
        )
    if "slice" in (columns or {}):
        raise errors.UsageError(
            "a manifest that lists volumes may have no column slice: rename it"
        )
    counts = [_count_slices(path, preprocessing.plane) for path in paths]
    file = [f for f, count in enumerate(counts) for _ in range(count)]
    number = [n for count in counts for n in range(count)]
    cache = volumes.Cache(preprocessing.plane)
    names = [
        f"{paths[f]}/{n:03d}" if volumes.is_volume(paths[f]) else paths[f]
        for f, n in zip(file, number, strict=True)
    ]

    def read(i: int) -> tuple[np.ndarray, Original]:
        path = paths[file[i]]
        if not volumes.is_volume(path):
            return decode_described(path, preprocessing)
        image = Image.fromarray(cache.slice(path, number[i]))
        return prepare(image, preprocessing, names[i]), properties.describe(image)

    return Listing(
        names,
        read,
        paths,
        None if labels is None else labels[file],
        [(groups or paths)[f] for f in file],
        {
            **{name: taken(values, file) for name, values in (columns or {}).items()},
            "slice": np.array(number),
        },
    )


def _count_slices(path: str, plane: str) -> int:
    """Returns how many images a file holds: 1 of one that cannot be read.

    Reading that one then says what is wrong, or leaves it out, as with images.
    """
    if not volumes.is_volume(path):
        return 1
    try:
        return volumes.shape(path, plane)[0]
    except ImageError:
        return 1


def _arrays(location: str, preprocessing: Preprocessing) -> Listing:
    found = arrays.read(location)
    bits = 8 if found.images.dtype == np.uint8 else 0

    def read(i: int) -> tuple[np.ndarray, Original]:
        image = found.image(i)
        original = properties.describe(image, bits)
        return prepare(image, preprocessing, found.paths[i]), original

    return Listing(
        found.paths,
        read,
        [location],
        found.labels,
        found.groups,
        found.columns or None,
    )
