"""What an image was before it was prepared, and how bright it is after."""

from typing import NamedTuple

import numpy as np
from PIL import Image

_SAMPLE = 64  # pixels a side, at most, whose values and colour are measured
_THUMBNAIL = 16  # pixels a side, at most
_SIDE = 64  # pixels a side, at most, of which intensities are measured
_CHROMA = 8  # grey levels by which the channels of a colour image differ at least


class Original(NamedTuple):
    """An image as its file or array has it; numbers alone, NaN what is not known.

    Attributes:
      width: in pixels, upright.
      height: likewise.
      bits: of a grey value or of each channel; 0 where values are floats.
      low: the least value, as a share of what `bits` can hold; of 8 bits that of a
        sample, evenly spaced.
      high: the largest one, likewise.
      pages: of the file.
      colour: 1 if its channels differ, else 0.
    """

    width: float
    height: float
    bits: float
    low: float
    high: float
    pages: float
    colour: float


def describe(image: Image.Image, bits: int = 8, pages: int = 1) -> Original:
    """Returns what an upright 8-bit image is.

    Args:
      image: of any 8-bit mode of Pillow.
      bits: that its values had before they were brought to 8.
      pages: of its file.
    """
    width, height = image.size
    small = image.resize(
        (min(_SAMPLE, width), min(_SAMPLE, height)), Image.Resampling.NEAREST
    )
    if small.mode not in ("L", "RGB"):
        small.info.pop("transparency", None)  # dropped later too; Pillow warns of it
        small = small.convert("RGB")
    pixels = np.asarray(small)
    is_colour = pixels.ndim == 3 and np.ptp(pixels, axis=2).mean() >= _CHROMA
    low, high = pixels.min() / 255, pixels.max() / 255
    return Original(width, height, bits, low, high, pages, float(is_colour))


def intensities(images: np.ndarray) -> np.ndarray:
    """Measures how bright images are.

    Args:
      images: uint8 `[N, S, S, C]`.

    Returns:
      float32 `[N, 3]`, 0 to 255: the 1st percentile, the mean, the 99th percentile.
    """
    step = -(-images.shape[1] // _SIDE)
    pixels = images[:, ::step, ::step].reshape(len(images), -1)
    ordered = np.sort(pixels, axis=1)
    last = ordered.shape[1] - 1
    low, high = (ordered[:, round(share * last)] for share in (0.01, 0.99))
    return np.stack([low, pixels.mean(axis=1), high], axis=1, dtype=np.float32)


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Returns images as few grey pixels, each the mean of a part.

    Args:
      images: uint8 `[N, S, S, C]`.

    Returns:
      float32 `[N, R, R]`, R being S or 16.
    """
    side = images.shape[1]
    count = min(side, _THUMBNAIL)
    edges = np.linspace(0, side, count + 1).astype(int)
    sizes = np.diff(edges).astype(np.float32)
    small = images.mean(axis=3, dtype=np.float32)
    small = np.add.reduceat(small, edges[:-1], axis=1) / sizes[:, None]
    return np.add.reduceat(small, edges[:-1], axis=2) / sizes
