"""Images in two places that must have none in common: trained on and tested on, say.

Images are the same whose pixels are, in the centre that is scored: of larger images a
run trains on random crops. (Where it equalises the histogram of the larger one, the
pixels of the centre are others, and this cannot tell.)
"""

import hashlib
import os
import pathlib

import numpy as np

from dpa_jax import console, errors
from dpa_jax.data.image_set import ImageSet
from dpa_jax.weights import formats

FILE = "training_images.npz"
_NAMED = 5  # of the images at fault


def digests(images: np.ndarray, size: int = 0) -> list[str]:
    """Returns the SHA-256 of each image's pixels, in hexadecimal.

    Args:
      images: uint8 `[N, S, S, C]`.
      size: of their centres, which are taken; 0 for whole images.
    """
    size = size or images.shape[1]
    edge = (images.shape[1] - size) // 2
    centres = images[:, edge : edge + size, edge : edge + size]
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in centres]


def fingerprints(images: ImageSet, size: int = 0) -> list[str]:
    """Returns `digests` of all images of a set."""
    return [found for block in images.blocks() for found in digests(block, size)]


def same(ours: ImageSet, others: ImageSet, size: int = 0) -> dict[int, int]:
    """Returns which images equal one of another set, by index, and the index of that.

    Args:
      ours: of at least `size` pixels.
      others: of at least `size` pixels.
      size: of the centres that are compared; 0 for that of `ours`.
    """
    size = size or ours.base.shape[1]
    known = {digest: i for i, digest in enumerate(fingerprints(others, size))}
    found = enumerate(fingerprints(ours, size))
    return {i: known[digest] for i, digest in found if digest in known}


def hashes(images: np.ndarray, size: int) -> np.ndarray:
    """Returns the first 64 bits of each of `digests`: uint64 `[N]`."""
    return np.array([int(d[:16], 16) for d in digests(images, size)], np.uint64)


def hashes_of(images: ImageSet, size: int) -> np.ndarray:
    """Returns `hashes` of all images of a set."""
    return np.concatenate([hashes(block, size) for block in images.blocks()])


def record(folder: pathlib.Path, found: np.ndarray, size: int) -> None:
    """Writes the hashes of a run's training images to its workdir.

    Args:
      folder: the workdir.
      found: uint64 `[N]`, see `hashes`.
      size: of the centres that they are of.
    """
    with formats.replacing(folder / FILE) as temporary:
        with open(temporary, "wb") as file:
            np.savez(file, hashes=np.sort(found), size=np.int64(size))


def check(folder: str | os.PathLike, images: ImageSet, what: str) -> None:
    """Refuses images that a run was trained on.

    Says so, and does nothing, where a run keeps no hashes of its training images: it
    was imported, or trained by an older version.

    Args:
      folder: the workdir.
      images: read as the run scores them.
      what: they are, such as `test images`.

    Raises:
      DpaError: some were trained on; the first are named.
    """
    path = pathlib.Path(folder) / FILE
    if not path.exists():
        console.print_line(
            f"{folder} has no {FILE} (imported, or trained by an older version): "
            f"whether it was trained on {what} is not checked"
        )
        return
    kept = formats.read_npz(path, lambda name: True)
    kinds = {name: (str(array.dtype), array.ndim) for name, array in kept.items()}
    if kinds != {"hashes": ("uint64", 1), "size": ("int64", 0)}:
        raise errors.DpaError(
            f"{path}: damaged; restore it from a copy, or delete it to go without it"
        )
    ours = hashes_of(images, int(kept["size"]))
    found = np.flatnonzero(np.isin(ours, kept["hashes"])).tolist()
    names = [images.paths[i] for i in found]
    if names:
        raise errors.DpaError(
            f"{folder} was trained on {len(names)} of the {len(images)} {what}: "
            f"{_listed(names)}; leave them out"
        )


def check_labels(images: ImageSet) -> None:
    """Refuses labelled images of which one is both normal and abnormal.

    Raises:
      DpaError: some are; the first are named.
    """
    assert images.labels is not None
    normal, abnormal = (images.select(images.labels == label) for label in (0, 1))
    pairs = same(abnormal, normal)
    if pairs:
        names = [
            f"{abnormal.paths[i]}, which is {normal.paths[j]}" for i, j in pairs.items()
        ]
        raise errors.DpaError(
            f"{len(pairs)} of {len(abnormal)} abnormal images are among the "
            f"{len(normal)} normal ones too, pixel by pixel: {_listed(names)}"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)
    return ", ".join(names[:_NAMED]) + more
