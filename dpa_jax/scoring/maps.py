"""Anomaly maps as pictures over the image, and as the arrays behind them."""

import pathlib
from collections.abc import Sequence

import numpy as np

from dpa_jax import errors
from dpa_jax.scoring import colour_bar
from dpa_jax.training import samples
from dpa_jax.weights import formats

NORMAL = "median to 99.5th percentile of the calibration's normal images"
_LEAST = 256  # pixels of an overlay's side
_PAINT = np.array([255.0, 40.0, 0.0])
_OPACITY = 0.7


def files(
    folder: pathlib.Path, names: Sequence[str], overwrite: bool = False
) -> list[pathlib.Path]:
    """Returns where the maps of some images go; beside each PNG lies an .npy.

    Args:
      folder: for them.
      names: of the images, without suffix; made distinct.
      overwrite: whether files that are there already may be replaced.

    Raises:
      DpaError: a file is already there.
    """
    paths = [folder / f"{name}.png" for name in _distinct(names)]
    if not overwrite:
        for path in paths:
            for existing in (path, path.with_suffix(".npy")):
                if existing.exists():
                    raise errors.DpaError(
                        f"{existing} is already there; give another --maps, "
                        "or --overwrite"
                    )
    return paths


def write_maps(
    paths: Sequence[pathlib.Path],
    images: np.ndarray,
    maps: np.ndarray,
    scale: tuple[float, float] | None = None,
) -> None:
    """Writes each map over its image as PNG with a bar, and as it is as .npy beside it.

    Args:
      paths: of the PNGs; see `files`.
      images: uint8 `[N, S, S, C]`, as they were scored.
      maps: float32 `[N, R, R]`.
      scale: the values that are not coloured yet and in full colour, those of the
        run's calibration; None for the median and the 99.5th percentile of all maps of
        this call, so that pictures of one call can be compared.
    """
    low, top = np.percentile(maps, (50, 99.5)) if scale is None else scale
    caption = NORMAL
    if scale is None:
        caption = f"median to 99.5th percentile of these {len(maps)}: not calibrated"
    grey = np.full((256, 3), 128.0)
    colours = _painted(grey, np.linspace(0, 1, 256)[:, None]).astype(np.uint8)
    for path, image, values in zip(paths, images, maps, strict=True):
        with formats.replacing(path.with_suffix(".npy")) as temporary:
            with open(temporary, "wb") as file:
                np.save(file, values)
        picture = overlay(image, values, low, top)
        samples.save_png(path, colour_bar.add(picture, colours, low, top, caption))


def overlay(
    image: np.ndarray, values: np.ndarray, low: float, top: float
) -> np.ndarray:
    """Paints a map over an image.

    Args:
      image: uint8 `[S, S, C]`.
      values: float `[R, R]`, R at most S; the centre of the image is what was scored.
      low: the value up to which nothing is painted.
      top: the value painted in full colour.

    Returns:
      uint8 `[H, 2H, 3]`: the image, and beside it the image with the map in red.
    """
    from PIL import Image

    side = len(values)
    edge = (len(image) - side) // 2
    image = np.broadcast_to(
        image[edge : edge + side, edge : edge + side], (side, side, 3)
    )
    size = side * -(-_LEAST // side)
    grey = Image.fromarray(np.ascontiguousarray(image)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    share = np.clip((values - low) / max(top - low, 1e-12), 0, 1)
    weight = Image.fromarray(share.astype(np.float32)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    picture = np.asarray(grey, np.float32)
    painted = _painted(picture, np.asarray(weight)[..., None])
    return np.concatenate([picture, painted], axis=1).astype(np.uint8)


def _painted(picture: np.ndarray, share: np.ndarray) -> np.ndarray:
    share = _OPACITY * share
    return (1 - share) * picture + share * _PAINT


def _distinct(names: Sequence[str]) -> list[str]:
    """Numbers names that occur twice, such as those of files in two folders."""
    taken, result = set(names), []
    seen: set[str] = set()
    for name in names:
        fresh, number = name, 1
        while fresh in seen or (number > 1 and fresh in taken):
            number += 1
            fresh = f"{name}_{number}"
        seen.add(fresh)
        result.append(fresh)
    return result
