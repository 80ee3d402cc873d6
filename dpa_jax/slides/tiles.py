"""The tiles of a slide that are scored, read ahead by threads in bounded memory."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Generator, Sequence

import numpy as np
from PIL import Image

from dpa_jax.errors import DpaError, UsageError
from dpa_jax.prefetch import prefetch
from dpa_jax.slides import regions, stain, tissue
from dpa_jax.slides.reader import Slide, open_slide


@dataclasses.dataclass(frozen=True)
class TileGrid:
    """Tiles side by side over a slide, in cells that share one stain estimate.

    Attributes:
      tissue: bool `[rows, columns]`, which tiles are scored.
      side: x40 pixels a side of a tile.
      per_cell: tiles a side of a cell; a cell is about the size of a training patch.
      scale: level-0 pixels per x40 pixel.
    """

    tissue: np.ndarray
    side: int
    per_cell: int
    scale: float

    def cells(self) -> list[tuple[int, int]]:
        """Lists (row, column) of the upper left tile of each cell with tissue."""
        n = self.per_cell
        rows, columns = self.tissue.shape
        return [
            (row, column)
            for row in range(0, rows, n)
            for column in range(0, columns, n)
            if self.tissue[row : row + n, column : column + n].any()
        ]

    def tiles(self, cell: tuple[int, int]) -> np.ndarray:
        """Returns int `[N, 2]`, (row, column) of the tissue tiles of a cell."""
        row, column = cell
        n = self.per_cell
        window = self.tissue[row : row + n, column : column + n]
        return np.argwhere(window) + [row, column]

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Returns x and y of a tile's upper left corner in level-0 pixels."""
        side = self.side * self.scale
        return round(column * side), round(row * side)


def plan(slide: Slide, tile: int, magnification: int) -> TileGrid:
    """Lays tiles over a slide; those at least half in tissue are scored.

    Args:
      slide: an open slide.
      tile: pixels a side of a tile.
      magnification: at which the tiles are.

    Raises:
      DpaError: the slide has no tissue, no known resolution, or too coarse a one.
      UsageError: the tiles do not fit x40 pixels evenly.
    """
    if tile * 40 % magnification:
        raise UsageError(f"tiles of {tile} px at x{magnification} do not fit a grid")
    if magnification > 40 * slide.scale:
        raise DpaError(
            f"{slide.path} was scanned at x{40 * slide.scale:g}, below the "
            f"x{magnification} that the model was trained at"
        )
    side = tile * 40 // magnification
    mask = tissue.tissue_mask(slide)
    columns, rows = (int(n / (side * slide.scale) + 1e-9) for n in slide.size)
    if not rows or not columns:
        raise DpaError(f"{slide.path} is smaller than one tile")
    # The grid's last tile may reach beyond the mask's last whole pixel.
    extent = side / tissue.MASK_PIXEL
    height, width = int(np.ceil(rows * extent)), int(np.ceil(columns * extent))
    padded = np.zeros((max(height, mask.shape[0]), max(width, mask.shape[1])), np.uint8)
    padded[: mask.shape[0], : mask.shape[1]] = 255 * mask
    covered = Image.fromarray(padded).resize(
        (columns, rows), Image.Resampling.BOX, (0, 0, columns * extent, rows * extent)
    )
    inside = np.asarray(covered) >= 128
    if not inside.any():
        raise DpaError(f"{slide.path}: no tile lies in tissue")
    return TileGrid(inside, side, max(1, round(tissue.CELL / side)), slide.scale)


def read(
    slide: Slide,
    grid: TileGrid,
    tile: int,
    magnification: int,
    target: stain.StainProfile | None,
    cells: Sequence[tuple[int, int]],
    workers: int = 0,
) -> Generator[tuple[np.ndarray, np.ndarray | None], None, None]:
    """Reads cells ahead of the caller and gives the tiles of each, in order.

    Args:
      slide: an open slide; each thread opens its file for itself.
      grid: from `plan`.
      tile: pixels a side of a tile.
      magnification: at which the tiles are.
      target: the stains to normalise to, or None.
      cells: which to read.
      workers: threads; 0 for one per core. Twice as many cells are held at most.

    Yields:
      int `[N, 2]`, (row, column) of the tiles of a cell; and uint8
      `[N, tile, tile, 3]`, or None where the stains could not be estimated.

    Raises:
      DpaError: pixels cannot be decoded.
    """
    local, lock = threading.local(), threading.Lock()
    workers = workers or os.cpu_count() or 1
    with contextlib.ExitStack() as slides:

        def load(cell):
            if not hasattr(local, "slide"):
                with lock:
                    opened = open_slide(slide.file, slide.mpp)
                    local.slide = slides.enter_context(opened)
                local.slide.path = slide.path
            positions = grid.tiles(cell)
            return positions, _cell(
                local.slide, grid, cell, positions, tile, magnification, target
            )

        # Within the slides: no thread may read from one that is closed already.
        yield from prefetch(load, cells, workers, 2 * workers)


def _cell(slide, grid, cell, positions, tile, magnification, target):
    rows, columns = (
        min(grid.per_cell, n - start)
        for n, start in zip(grid.tissue.shape, cell, strict=True)
    )
    x, y = grid.corner(*cell)
    try:
        image = regions.read_region(
            slide, x, y, columns * grid.side, rows * grid.side, magnification, target
        )
    except stain.StainError:
        return None
    offsets = (positions - np.array(cell)) * tile
    return np.stack([image[r : r + tile, c : c + tile] for r, c in offsets])
