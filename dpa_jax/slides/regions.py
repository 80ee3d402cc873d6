"""Regions of a slide as training sees them: normalised, then reduced."""

import contextlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from dpa_jax.data import filesystems
from dpa_jax.slides import stain
from dpa_jax.slides.reader import Slide, open_slide


@contextlib.contextmanager
def opened(path: str, mpp: float | None = None) -> Iterator[Slide]:
    """Opens a slide by its path or URL; see `reader.open_slide`."""
    with filesystems.local_copy(path) as local, open_slide(local, mpp) as slide:
        slide.path = path
        yield slide


def read_region(
    slide: Slide,
    x: int,
    y: int,
    width: int,
    height: int,
    magnification: int,
    target: stain.StainProfile | None,
) -> np.ndarray:
    """Reads a region as training sees it: stains normalised at x40, then reduced.

    Args:
      slide: an open slide; one scanned below x40 is read at its own resolution.
      x: left edge in level-0 pixels.
      y: upper edge in level-0 pixels.
      width: in x40 pixels.
      height: in x40 pixels.
      magnification: of the result.
      target: the stains to normalise to, or None.

    Returns:
      uint8 `[height * magnification / 40, width * magnification / 40, 3]`.

    Raises:
      StainError: the stains of the region cannot be estimated.
      DpaError: the region cannot be read.
    """
    region = x, y, width * slide.scale, height * slide.scale
    out = width * magnification // 40, height * magnification // 40
    if target is None:
        return slide.read(*region, out)
    finest = max(magnification / 40, min(1.0, slide.scale))
    image = slide.read(*region, (round(width * finest), round(height * finest)))
    try:
        image = stain.normalize(image, target)
    except stain.StainError as error:
        raise stain.StainError(f"{slide.path} at {x},{y}: {error}") from None
    if image.shape[1::-1] == out:
        return image
    return np.asarray(Image.fromarray(image).resize(out, Image.Resampling.BILINEAR))
