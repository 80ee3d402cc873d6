"""Anomaly maps as pictures over the image, and as the arrays behind them."""

import pathlib
from collections.abc import Sequence

import numpy as np

from dpa_jax import errors, samples

_LEAST = 256  # pixels of an overlay's side


def write_maps(
    folder: pathlib.Path,
    names: Sequence[str],
    images: np.ndarray,
    maps: np.ndarray,
    scale: float | None = None,
) -> list[pathlib.Path]:
    """Writes `NAME.png`, image and overlay side by side, and `NAME.npy` of each map.

    Args:
      folder: made if absent.
      names: of the files, without their suffix; made distinct.
      images: uint8 `[N, S, S, C]`, as they were scored.
      maps: float32 `[N, R, R]`.
      scale: the value shown in full colour; None for the 99.5th percentile of all maps
        of this call, so that pictures of one call can be compared.

    Returns:
      The PNG files.

    Raises:
      DpaError: a file is already there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    top = float(np.percentile(maps, 99.5)) if scale is None else scale
    written = []
    for name, image, values in zip(_distinct(names), images, maps, strict=True):
        path = folder / f"{name}.png"
        array = folder / f"{name}.npy"
        for existing in (path, array):
            if existing.exists():
                raise errors.DpaError(
                    f"{existing} is already there; give another folder for the maps"
                )
        with open(array, "wb") as file:
            np.save(file, values)
        samples.save_png(path, overlay(image, values, top))
        written.append(path)
    return written


def overlay(image: np.ndarray, values: np.ndarray, top: float) -> np.ndarray:
    """Paints a map over an image.

    Args:
      image: uint8 `[S, S, C]`.
      values: float `[R, R]`, R at most S; the centre of the image is what was scored.
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
    weight = Image.fromarray(
        np.clip(values / max(top, 1e-12), 0, 1).astype(np.float32)
    ).resize((size, size), Image.Resampling.BILINEAR)
    picture = np.asarray(grey, np.float32)
    share = 0.7 * np.asarray(weight)[..., None]
    painted = (1 - share) * picture + share * np.array([255.0, 40.0, 0.0])
    return np.concatenate([picture, painted], axis=1).astype(np.uint8)


def _distinct(names: Sequence[str]) -> list[str]:
    """Numbers names that occur twice, such as those of files in two folders."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result
