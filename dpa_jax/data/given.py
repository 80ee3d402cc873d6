"""Images that are given in Python, of whatever kind, as a prepared set."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dpa_jax import errors
from dpa_jax.data import arrays, decode, properties, sources
from dpa_jax.data.decode import Preprocessing
from dpa_jax.data.image_set import ImageSet
from dpa_jax.data.properties import Original


def as_image_set(
    images: Any,
    preprocessing: Preprocessing,
    *,
    labels: Sequence[int] | np.ndarray | None = None,
    groups: Sequence[str] | None = None,
    progress: sources.Progress | None = None,
    data_dir: str | None = None,
) -> ImageSet:
    """Prepares images as those of files are; a set that is prepared stays as it is.

    Args:
      images: a set; a location or several, as `data.load` takes them; a PIL image; an
        array: one image, `[H, W]`, `[H, W, 1]` or `[H, W, 3]`, or a stack, `[N, H, W]`,
        `[N, H, W, 1]` or `[N, H, W, 3]`, of any size; or a list of images, each an
        array, a PIL image or the path of a file. An array is uint8, 0 black to 255
        white, or float, 0 black to 1 white, and nothing else.
      preprocessing: what each goes through.
      labels: `[N]`, 0 normal and 1 abnormal; None for those of the source.
      groups: `[N]` names of what images share (patient, slide); likewise.
      progress: see `data.load`.
      data_dir: see there.

    Raises:
      DpaError: these are no images, or values are in no known range.
    """
    if isinstance(images, ImageSet):
        found = images
    elif _is_location(images) or (
        isinstance(images, list | tuple) and images and all(map(_is_location, images))
    ):
        found = sources.load(
            images, preprocessing, progress=progress, data_dir=data_dir
        )
    else:
        items = _items(images, preprocessing.channels)
        found = sources.from_items(items, _read, preprocessing, progress=progress)
    changes: dict[str, Any] = {}
    for name, values in (("labels", labels), ("groups", groups)):
        if values is None:
            continue
        count = len(values)
        if count != len(found):
            raise errors.DpaError(f"{len(found)} images, but {count} {name}")
        changes[name] = np.asarray(values, np.int8) if name == "labels" else values
    return dataclasses.replace(found, **changes) if changes else found


def _is_location(given: Any) -> bool:
    return isinstance(given, str | os.PathLike)


def _items(images: Any, channels: int) -> Sequence[Any]:
    """Returns the images that were given, one by one."""
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, list | tuple):
        found: list[Any] = []
        for i, item in enumerate(images):
            if _is_location(item) or isinstance(item, Image.Image):
                found.append(item)
                continue
            array = np.asarray(item)
            if not _is_one(array):
                raise errors.DpaError(
                    f"images[{i}]: each array of a list is one image, [H, W] or "
                    f"[H, W, channels], not {list(array.shape)}"
                )
            arrays.check_images(f"images[{i}]", array[None])
            found.append(array)
        if not found:
            raise errors.DpaError("no images were given")
        return found
    stack = np.asarray(images)
    if _is_one(stack):
        stack = stack[None]
    if stack.ndim == 3 and stack.shape[2] in (2, 4):
        raise errors.DpaError(
            f"images of shape {list(stack.shape)}: channels are 1 or 3, without alpha"
        )
    if stack.ndim == 3 and channels == 3 and len(stack) == 3:
        raise errors.DpaError(
            f"images of shape {list(stack.shape)}: is it one image with its channels "
            "first? Put them last, [H, W, 3]; grey images go into a list"
        )
    arrays.check_images("images", stack)
    return list(stack)


def _is_one(array: np.ndarray) -> bool:
    """Returns whether an array is one image: no stack is of images 1 or 3 px wide."""
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))


def _read(item: Any, name: str) -> tuple[Image.Image, Original]:
    """Returns an image as 8-bit grey or RGB, and what it was before."""
    if _is_location(item):
        return decode.read_described(item, os.fspath(item))
    if isinstance(item, Image.Image):
        if item.mode in decode.DEEP_MODES:
            return decode.deep_to_bytes(item, name)
        if item.mode == "F":
            raise decode.ImageError(
                name, "floating-point values; give an array of floats from 0 to 1"
            )
        upright = ImageOps.exif_transpose(item)
        return upright, properties.describe(upright)
    image = arrays.to_image(item)
    return image, properties.describe(image, 8 if item.dtype == np.uint8 else 0)
