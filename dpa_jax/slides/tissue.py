"""Where the tissue is on a slide, and the grid of cells that lie wholly in it."""

import numpy as np

from dpa_jax.errors import DpaError, needing
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
    with needing("wsi", "finding tissue"):
        from skimage import filters, morphology, segmentation
    red, green, blue = np.moveaxis(
        slide.overview(MASK_PIXEL * slide.scale).astype(np.uint32), -1, 0
    )
    grey = (299 * red + 587 * green + 114 * blue + 500) // 1000  # ITU-R 601 luma
    mask = grey <= filters.threshold_otsu(grey)
    light = grey[~mask]
    if not light.size or light.mean() - grey[mask].mean() < MIN_CONTRAST:
        mask[:] = False
    mask = morphology.opening(segmentation.clear_border(mask), np.ones((3, 3)))
    if not mask.any():
        raise DpaError(f"{slide.path}: no tissue found; the slide looks empty")
    return mask


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
