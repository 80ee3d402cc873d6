"""Scores of a slide's tiles as an overlay, a pyramidal TIFF, GeoJSON and CSV."""

import json
import pathlib
import warnings
from collections.abc import Mapping

import matplotlib
import numpy as np
from PIL import Image

from dpa_jax.errors import needing
from dpa_jax.scoring import colour_bar
from dpa_jax.scoring.maps import NORMAL
from dpa_jax.slides.reader import Slide
from dpa_jax.slides.tiles import TileGrid
from dpa_jax.storage import workdir
from dpa_jax.weights import formats

_LONGEST = 2048  # pixels of the overlay's longer side
_OPACITY = 0.5


def _colours(values: np.ndarray) -> np.ndarray:
    """Returns uint8 `[..., 3]` for values from 0 to 1, dark to bright."""
    return matplotlib.colormaps["inferno"](values, bytes=True)[..., :3]


def write_overlay(
    path: pathlib.Path,
    slide: Slide,
    grid: TileGrid,
    scores: np.ndarray,
    scale: tuple[float, float] | None = None,
) -> None:
    """Writes the heat map over the thumbnail as PNG, with a bar of its colours below.

    Args:
      path: the file.
      slide: an open slide.
      grid: the tiles.
      scores: float32 `[rows, columns]`, NaN where there is none.
      scale: the scores of the first and the last colour, those of the run's
        calibration; None for the 1st and the 99th percentile of this slide. The bar
        says how much of the median these span, which may be as good as nothing.
    """
    downsample = max(1.0, max(slide.size) / _LONGEST)
    image = slide.overview(downsample)
    side = grid.side * grid.scale / downsample
    rows, columns = (
        np.minimum((np.arange(n) / side).astype(int), limit)
        for n, limit in zip(image.shape, scores.shape, strict=False)
    )
    shown = scores[np.minimum(rows, scores.shape[0] - 1)][
        :, np.minimum(columns, scores.shape[1] - 1)
    ]
    # Beyond the last whole tile there is no score.
    shown[rows >= scores.shape[0]] = np.nan
    shown[:, columns >= scores.shape[1]] = np.nan
    low, middle, high = np.nanpercentile(scores, [1, 50, 99])
    spread = f"{(high - low) / middle:.2g} of its median" if middle else "median 0"
    caption = f"1st to 99th percentile of this slide, {spread}: not calibrated"
    if scale is not None:
        (low, high), caption = scale, NORMAL
    span = high - low if high > low else 1.0
    known = ~np.isnan(shown)
    heat = _colours((np.where(known, shown, low) - low) / span)
    mixed = np.rint((1 - _OPACITY) * image + _OPACITY * heat).astype(np.uint8)
    picture = np.where(known[..., None], mixed, image)
    bar = _colours(np.linspace(0, 1, 256))
    with formats.replacing(path) as temporary:
        result = Image.fromarray(colour_bar.add(picture, bar, low, high, caption))
        result.save(temporary, "PNG")


def write_scores(path: pathlib.Path, scores: np.ndarray, pixel: float) -> None:
    """Writes the scores as a pyramidal, tiled float32 TIFF, a pixel for each tile.

    Args:
      path: the file.
      scores: float32 `[rows, columns]`, NaN where there is none.
      pixel: micrometres a side of a tile, for the resolution tags.
    """
    import tifffile
    from skimage import measure

    levels = [scores]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no score in any of four
        while max(levels[-1].shape) > 64:
            levels.append(measure.block_reduce(levels[-1], 2, np.nanmean, np.nan))
    with (
        formats.replacing(path) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=True) as tiff,
    ):
        for i, level in enumerate(levels):
            tiff.write(
                level,
                tile=(64, 64),
                compression="deflate",
                photometric="minisblack",
                subfiletype=1 if i else 0,
                resolution=(1e4 / (pixel * 2**i),) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def write_regions(
    path: pathlib.Path, grid: TileGrid, scores: np.ndarray, threshold: float
) -> int:
    """Writes the outlines of the regions above a threshold as GeoJSON for QuPath.

    Args:
      path: the file; coordinates are level-0 pixels.
      grid: the tiles.
      scores: float32 `[rows, columns]`, NaN where there is none.
      threshold: tiles of a score above it belong to a region.

    Returns:
      The number of regions.

    Raises:
      DpaError: shapely is not installed.
    """
    with needing("wsi", "writing regions"):
        import shapely
    above = np.argwhere(scores > threshold)
    boxes = [
        shapely.box(*grid.corner(row, column), *grid.corner(row + 1, column + 1))
        for row, column in above.tolist()
    ]
    merged = shapely.union_all(boxes)
    regions = [p for p in shapely.get_parts(merged) if not p.is_empty]
    tree = shapely.STRtree(boxes)
    features = []
    for number, region in enumerate(regions, 1):
        inside = above[tree.query(region, "covers")]
        values = scores[inside[:, 0], inside[:, 1]]
        features.append(
            {
                "type": "Feature",
                "geometry": json.loads(shapely.to_geojson(region)),
                "properties": {
                    "objectType": "annotation",
                    "name": f"region {number}",
                    "classification": {"name": "Anomalous", "color": [200, 0, 0]},
                    "measurements": {
                        "tiles": len(values),
                        "mean score": float(values.mean()),
                        "maximum score": float(values.max()),
                    },
                },
            }
        )
    collection = {"type": "FeatureCollection", "features": features}
    workdir.write_json(path, collection)
    return len(features)


def write_csv(
    path: pathlib.Path, grid: TileGrid, columns: Mapping[str, np.ndarray]
) -> None:
    """Writes one line per tile of tissue: row, column, x, y, side, and columns.

    x, y and side are in level-0 pixels.

    Args:
      path: the file.
      grid: the tiles.
      columns: `[rows, columns]` by name, such as scores, float32: written so that they
        read back as they are. A line has nothing where the first of them is NaN.
    """
    rows = []
    known = ~np.isnan(next(iter(columns.values())))
    for row, column in np.argwhere(grid.tissue).tolist():
        x, y = grid.corner(row, column)
        side = grid.corner(row, column + 1)[0] - x
        values = [
            v[row, column] if known[row, column] else "" for v in columns.values()
        ]
        rows.append((row, column, x, y, side, *values))
    workdir.write_csv(path, ("row", "column", "x", "y", "side", *columns), rows)
