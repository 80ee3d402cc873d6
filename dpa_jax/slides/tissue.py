"""Where the tissue is on a slide, and the grid of cells that lie wholly in it."""

import numpy as np
from scipy import ndimage

from dpa_jax.errors import DpaError
from dpa_jax.slides.reader import Slide

MASK_PIXEL = 256  # x40 pixels a side per mask pixel: level 8 of a Camelyon16 slide
CELL = 768  # x40 pixels a side of a patch
# A blank slide has noise that Otsu's threshold would split too.
MIN_CONTRAST = 8  # grey levels between the mean of tissue and of background


def tissue_mask(slide: Slide) -> np.ndarray:
    """Finds the tissue at a low resolution (method of the paper, section on data).

    Grey values below Otsu's threshold, without what touches the border of the slide,
    opened with a 3x3 square.

    Args:
      slide: an open slide with a known resolution.

    Returns:
      bool `[H, W]`, one pixel for each `MASK_PIXEL` x40 pixels.

    Raises:
      DpaError: there is no tissue.
    """
    red, green, blue = np.moveaxis(
        slide.overview(MASK_PIXEL * slide.scale).astype(np.uint32), -1, 0
    )
    grey = (299 * red + 587 * green + 114 * blue + 500) // 1000  # ITU-R 601 luma
    threshold = otsu_threshold(grey)
    mask = np.zeros(grey.shape, bool)
    if threshold is not None:
        mask = grey <= threshold
        if grey[~mask].mean() - grey[mask].mean() < MIN_CONTRAST:
            mask[:] = False
    mask = ndimage.binary_opening(clear_border(mask), np.ones((3, 3), bool))
    if not mask.any():
        raise DpaError(f"{slide.path}: no tissue found; the slide looks empty")
    return mask


def otsu_threshold(grey: np.ndarray) -> int | None:
    """Returns the grey value that best splits an image in two (Otsu 1979).

    Args:
      grey: integers from 0 to 255, any shape.

    Returns:
      The largest value of the dark class where the variance between the two classes
      is greatest (the first of equals), or None if all pixels are equal.
    """
    counts = np.bincount(grey.ravel(), minlength=256).astype(np.float64)
    dark = np.cumsum(counts)
    light = dark[-1] - dark
    total = np.cumsum(counts * np.arange(256))
    both = (dark > 0) & (light > 0)
    if not both.any():
        return None
    dark, light = dark[both], light[both]
    difference = (total[-1] - total[both]) / light - total[both] / dark
    return int(np.flatnonzero(both)[np.argmax(dark * light * difference**2)])


def clear_border(mask: np.ndarray) -> np.ndarray:
    """Removes the regions (connected by edges or corners) that touch the border."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    keep = np.ones(count + 1, bool)
    edges = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    keep[np.concatenate(edges)] = False
    keep[0] = False
    return keep[labels]


def tissue_cells(mask: np.ndarray, scale: float) -> np.ndarray:
    """Lists the grid cells that lie wholly in tissue.

    Args:
      mask: the tissue, from `tissue_mask`.
      scale: level-0 pixels per x40 pixel.

    Returns:
      int64 `[N, 2]`: x and y of the upper left corner in level-0 pixels, row by row.
    """
    side = CELL // MASK_PIXEL
    rows, columns = (n // side for n in mask.shape)
    cells = mask[: rows * side, : columns * side].reshape(rows, side, columns, side)
    row, column = np.nonzero(cells.all(axis=(1, 3)))
    return np.rint(np.stack([column, row], 1) * CELL * scale).astype(np.int64)
