"""Masks of abnormal pixels, brought to the size of the images that are scored."""

import functools
import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dpa_jax import errors
from dpa_jax.data import volumes
from dpa_jax.data.decode import ImageError, Preprocessing, cut
from dpa_jax.data.image_set import ImageSet

_FORMATS = ("PNG", "TIFF", "BMP")


def read(path: str | os.PathLike) -> np.ndarray:
    """Reads a mask: every value but 0 is abnormal.

    Args:
      path: of a PNG, TIFF or BMP, in grey, RGB or indexed; alpha is dropped. JPEG does
        not keep zeros.

    Returns:
      bool `[H, W]`.

    Raises:
      ImageError: the file is of another kind, or damaged.
    """
    name = os.fspath(path)
    try:
        with Image.open(path, formats=_FORMATS) as opened:
            image = ImageOps.exif_transpose(opened)
            bands = image.getbands()
            values = np.asarray(image).reshape(image.height, image.width, len(bands))
    except UnidentifiedImageError:
        raise ImageError(name, "a mask must be PNG, TIFF or BMP") from None
    except FileNotFoundError as error:
        raise errors.DpaError(f"{name}: cannot be read: {error.strerror}") from error
    except Exception as error:  # whatever a decoder raises on damaged bytes
        raise ImageError(name, str(error) or type(error).__name__) from error
    kept = [band != "A" for band in bands]
    return np.asarray(np.any(values[..., kept], axis=-1))


def prepare(mask: np.ndarray, preprocessing: Preprocessing, name: str) -> np.ndarray:
    """Resizes and cuts a mask as its image is, taking the nearest pixel.

    Args:
      mask: bool `[H, W]`.
      preprocessing: of the image.
      name: what errors call it.

    Returns:
      bool `[size, size]`.
    """
    nearest = Image.Resampling.NEAREST
    image = cut(Image.fromarray(mask), preprocessing, name, nearest)
    return np.asarray(image.resize((preprocessing.size,) * 2, nearest))


def load(
    images: ImageSet,
    preprocessing: Preprocessing,
    location: str = "",
    data_dir: str | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Loads the masks of labelled images, if their source has any.

    Args:
      images: with labels; the column mask of a manifest holds the file of each, or
        nothing. The mask of a volume is a volume.
      preprocessing: as the images were loaded with.
      location: that the images were loaded from. Masks of a TFDS data set are its
        features mask and has_mask.
      data_dir: where TFDS keeps its data.

    Returns:
      bool `[N, S, S]`, True where abnormal, and bool `[N]`, which images that is known
      of: those with a mask, and the normal ones. None if there are no masks.

    Raises:
      DpaError: a mask cannot be read, is of another size than its image, or shows
        abnormal pixels of an image that is labelled normal.
    """
    labels = images.labels
    assert labels is not None
    if location.startswith("tfds:"):
        from dpa_jax.data import tfds_source

        found = tfds_source.load_masks(location, preprocessing, data_dir)
        if found is None:
            return None
        masks, has_mask = found
    else:
        files = [str(file) for file in (images.columns or {}).get("mask", ())]
        if not any(files):
            return None
        masks = np.zeros((len(images), preprocessing.size, preprocessing.size), bool)
        has_mask = np.array([bool(file) for file in files])
        volume = functools.lru_cache(1)(_of_volume)
        for i, (path, file) in enumerate(zip(images.paths, files, strict=True)):
            if not file:
                continue
            if volumes.is_volume(file):
                scan, _, number = path.rpartition("/")
                if not volumes.is_volume(scan):
                    raise errors.DpaError(
                        f"{file} is the mask of a volume, which {path} is not"
                    )
                mask = volume(scan, file, preprocessing.plane)[int(number)]
            else:
                mask = _of_image(path, file)
            masks[i] = prepare(mask, preprocessing, file)
    wrong = np.flatnonzero((labels == 0) & masks.any(axis=(1, 2)))
    if wrong.size:
        raise errors.DpaError(
            f"{images.paths[wrong[0]]} is labelled normal, but its mask has abnormal "
            "pixels"
        )
    return masks, has_mask | (labels == 0)


def _of_image(path: str, file: str) -> np.ndarray:
    """Reads the mask of an image and compares their sizes, but for DICOM."""
    if not os.path.isfile(path):
        raise errors.DpaError(f"{file} is the mask of an image, which {path} is not")
    mask = read(file)
    try:
        with Image.open(path) as opened:
            size = opened.size
    except UnidentifiedImageError:
        return mask
    if sorted(size) != sorted(mask.shape):  # an image may lie on its side
        raise errors.DpaError(
            f"{file} is a mask of {mask.shape[1]}x{mask.shape[0]} pixels, but its "
            f"image has {size[0]}x{size[1]}"
        )
    return mask


def _of_volume(path: str, file: str, plane: str) -> np.ndarray:
    """Reads the mask of a volume and compares their shapes."""
    mask, expected = volumes.read_mask(file, plane), volumes.shape(path, plane)
    if mask.shape != expected:
        raise errors.DpaError(
            f"{file} is a mask of {mask.shape} voxels, but {path} has {expected}"
        )
    return mask
