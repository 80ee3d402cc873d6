"""Small pyramidal slides with tissue, for the tests of slides and Camelyon16."""

import importlib.util

import numpy as np
import pytest

tifffile = pytest.importorskip("tifffile", reason="slides are written by tifffile")

PURPLE, PINK = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])


def need_reader():
    """Skips a module of tests where no library reads slides."""
    if not any(importlib.util.find_spec(name) for name in ("openslide", "tiffslide")):
        pytest.skip("no library that reads slides", allow_module_level=True)


def stained(shape, seed=0, hematoxylin=PURPLE, eosin=PINK, strength=1.0):
    """Returns uint8 `[*shape, 3]`: nuclei on stroma, by Beer's law from two stains."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((shape[0] // 8 + 1, shape[1] // 8 + 1))
    nuclei = (coarse > 0.75).repeat(8, 0).repeat(8, 1)[: shape[0], : shape[1]]
    amounts = np.stack(
        [
            nuclei * rng.uniform(0.7, 1.1, shape) + 0.05,
            np.where(nuclei, 0.1, rng.uniform(0.3, 0.6, shape)),
        ],
        -1,
    )
    stains = np.stack([hematoxylin, eosin])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    density = strength * amounts @ stains
    return np.rint(255 * np.exp(-density)).astype(np.uint8)


def picture(width, height, tissue, seed=0, **stains):
    """Returns a slide's pixels: near-white, with tissue in (x, y, w, h) boxes."""
    rng = np.random.default_rng(seed)
    image = rng.integers(240, 250, (height, width, 3), dtype=np.uint8)
    tile = stained((256, 256), seed, **stains)
    for x, y, w, h in tissue:
        copies = -(-h // 256), -(-w // 256), 1
        image[y : y + h, x : x + w] = np.tile(tile, copies)[:h, :w]
    return image


def write(path, image, mpp=0.25, levels=4, tile=256):
    """Writes a pyramidal tiled TIFF; `mpp` None leaves the resolution out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = {"photometric": "rgb" if image.ndim == 3 else "minisblack"}
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            step = 2**level
            scale = (
                {}
                if mpp is None
                else {
                    "resolution": (1e4 / mpp / step,) * 2,
                    "resolutionunit": "CENTIMETER",
                }
            )
            tiff.write(
                image[::step, ::step],
                tile=(tile, tile),
                compression="deflate",
                compressionargs={"level": 1},
                subfiletype=1 if level else 0,
                metadata=None,
                **colour,
                **scale,
            )
    return path


def asap(path, polygons):
    """Writes an ASAP annotation of (group, points) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    outlines = "".join(
        f'<Annotation Name="Annotation {i}" PartOfGroup="{group}"><Coordinates>'
        + "".join(
            f'<Coordinate Order="{n}" X="{x}" Y="{y}" />'
            for n, (x, y) in enumerate(points)
        )
        + "</Coordinates></Annotation>"
        for i, (group, points) in enumerate(polygons)
    )
    path.write_text(
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{outlines}'
        "</Annotations></ASAP_Annotations>"
    )
    return path


def box(x, y, width, height):
    """Returns the corners of a rectangle."""
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
