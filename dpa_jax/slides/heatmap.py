"""Scores of a slide's tiles as an overlay, a pyramidal TIFF, GeoJSON and CSV."""

import json
import pathlib
import warnings

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dpa_jax.errors import needing
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
    path: pathlib.Path, slide: Slide, grid: TileGrid, scores: np.ndarray
) -> None:
    """Writes the heat map over the thumbnail as PNG, with a scale below.

    Args:
      path: the file.
      slide: an open slide.
      grid: the tiles.
      scores: float32 `[rows, columns]`, NaN where there is none. Colours span the
        1st to the 99th percentile.
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
    low, high = np.nanpercentile(scores, [1, 99])
    span = high - low if high > low else 1.0
    known = ~np.isnan(shown)
    heat = _colours((np.where(known, shown, low) - low) / span)
    mixed = np.rint((1 - _OPACITY) * image + _OPACITY * heat).astype(np.uint8)
    picture = Image.fromarray(np.where(known[..., None], mixed, image))
    with formats.replacing(path) as temporary:
        _with_scale(picture, low, high).save(temporary, "PNG")


def _with_scale(picture: Image.Image, low: float, high: float) -> Image.Image:
    width, height = picture.size
    text = max(10, width // 80)
    result = Image.new("RGB", (width, height + 3 * text), "white")
    result.paste(picture)
    bar = _colours(np.linspace(0, 1, width))[None].repeat(text, 0)
    result.paste(Image.fromarray(bar), (0, height + text // 2))
    draw = ImageDraw.Draw(result)
    font = ImageFont.load_default(text)
    top = height + 7 * text // 4
    draw.text((2, top), f"{low:.4g}", "black", font)
    draw.text((width - 2, top), f"{high:.4g}", "black", font, anchor="ra")
    return result


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


def write_csv(path: pathlib.Path, grid: TileGrid, scores: np.ndarray) -> None:
    """Writes one line per scored tile: row, column, x, y, side, score.

    x, y and side are in level-0 pixels; a score is written so that it reads back as
    the same float32, and is empty where the stains could not be estimated.
    """
    rows = []
    for row, column in np.argwhere(grid.tissue).tolist():
        x, y = grid.corner(row, column)
        side = grid.corner(row, column + 1)[0] - x
        score = scores[row, column]
        rows.append((row, column, x, y, side, "" if np.isnan(score) else score))
    workdir.write_csv(path, ("row", "column", "x", "y", "side", "score"), rows)
