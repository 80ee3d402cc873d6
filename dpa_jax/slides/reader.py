"""Regions of a whole-slide image, addressed by physical scale, not level number."""

import contextlib
import dataclasses
import importlib
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from dpa_jax.errors import DpaError, UsageError

X40_MPP = 0.25  # micrometres per pixel that "x40" stands for
# Scanners sold as x40 have 0.226 to 0.274 um per pixel, and published coordinates and
# patch sizes treat all of them as x40.
NOMINAL_TOLERANCE = 0.2
_MPP_RANGE = (0.02, 20.0)
_BLOCK = 2048  # pixels read at once, per side, when a slide is reduced


@dataclasses.dataclass
class Slide:
    """An open slide; use `open_slide`.

    Attributes:
      path: what to call it in messages: its path or URL.
      file: its file on the local disk.
      size: (width, height) of level 0 in pixels.
      mpp: micrometres per level-0 pixel, or None if unknown.
      handle: of the library that reads it.
    """

    path: str
    file: str
    size: tuple[int, int]
    mpp: float | None
    handle: Any

    @property
    def scale(self) -> float:
        """Level-0 pixels per x40 pixel: 1 for a slide scanned at x40, 0.5 at x20.

        Raises:
          DpaError: the resolution is unknown.
        """
        if self.mpp is None:
            raise DpaError(
                f"{self.path} does not say how many micrometres a pixel has; "
                "give it with --mpp (0.25 for a slide scanned at x40)"
            )
        return x40_scale(self.mpp)

    def read(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        out: tuple[int, int],
        resample: Image.Resampling = Image.Resampling.BILINEAR,
    ) -> np.ndarray:
        """Reads a region from the nearest finer level and resizes it (antialiased).

        Args:
          x: left edge in level-0 pixels.
          y: upper edge in level-0 pixels.
          width: in level-0 pixels.
          height: in level-0 pixels.
          out: (width, height) of the result in pixels.
          resample: a Pillow filter, used when the level read is finer than the result.

        Returns:
          uint8 `[height, width, 3]`; white where the slide holds no pixels.

        Raises:
          DpaError: the region is outside of the slide or its pixels cannot be decoded.
        """
        x, y, width, height = (round(v) for v in (x, y, width, height))
        if not (0 <= x <= x + width <= self.size[0]) or not (
            0 <= y <= y + height <= self.size[1]
        ):
            raise DpaError(
                f"{self.path}: the region {x},{y},{width},{height} is outside of the "
                f"slide of {self.size[0]}x{self.size[1]} pixels"
            )
        level, downsample = self._level(min(width / out[0], height / out[1]))
        at_level = (
            max(1, round(width / downsample)),
            max(1, round(height / downsample)),
        )
        try:
            image = self.handle.read_region((x, y), level, at_level)
        except Exception as error:  # each library and codec raises its own
            raise DpaError(
                f"{self.path} cannot be decoded at {x},{y}, level {level}: "
                f"{_words(error)}; the file may be truncated"
            ) from error
        if image.mode == "RGBA":
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        image = image.convert("RGB")
        if image.size != out:
            image = image.resize(out, resample)
        return np.asarray(image)

    def overview(
        self, downsample: float, resample: Image.Resampling = Image.Resampling.BOX
    ) -> np.ndarray:
        """Reduces the whole slide, block by block, in bounded memory.

        Args:
          downsample: level-0 pixels per pixel of the result.
          resample: a Pillow filter.

        Returns:
          uint8 `[height / downsample, width / downsample, 3]`, both rounded down.

        Raises:
          DpaError: the slide is smaller than one pixel of the result.
        """
        columns, rows = (int(n / downsample + 1e-9) for n in self.size)
        if not columns or not rows:
            raise DpaError(
                f"{self.path} has only {self.size[0]}x{self.size[1]} pixels; "
                f"at least {math.ceil(downsample)} a side are needed"
            )
        block = max(1, int(_BLOCK * self._level(downsample)[1] / downsample))
        result = np.empty((rows, columns, 3), np.uint8)
        for top in range(0, rows, block):
            for left in range(0, columns, block):
                height, width = min(block, rows - top), min(block, columns - left)
                result[top : top + height, left : left + width] = self.read(
                    left * downsample,
                    top * downsample,
                    min(width * downsample, self.size[0] - round(left * downsample)),
                    min(height * downsample, self.size[1] - round(top * downsample)),
                    (width, height),
                    resample,
                )
        return result

    def _level(self, downsample: float) -> tuple[int, float]:
        # The stored ratio of a level can be off by a rounded pixel.
        levels = list(enumerate(self.handle.level_downsamples))
        return max(
            (pair for pair in levels if pair[1] <= downsample * 1.01 or not pair[0]),
            key=lambda pair: pair[1],
        )


def x40_scale(mpp: float) -> float:
    """Returns the level-0 pixels per x40 pixel of a slide with this resolution.

    Args:
      mpp: micrometres per level-0 pixel.

    Returns:
      A power of two where the resolution is within a fifth of x80, x40, x20, ... as
      scanners name them; otherwise the exact ratio to 0.25.
    """
    exact = X40_MPP / mpp
    nominal = 2.0 ** round(math.log2(exact))
    return nominal if abs(exact / nominal - 1) <= NOMINAL_TOLERANCE else exact


@contextlib.contextmanager
def open_slide(
    path: str | os.PathLike, mpp: float | None = None, backend: str | None = None
) -> Iterator[Slide]:
    """Opens a slide for reading.

    Args:
      path: a file of any format that OpenSlide or tiffslide reads.
      mpp: micrometres per level-0 pixel, instead of what the file says.
      backend: `openslide` or `tiffslide`; None takes the first that is installed.

    Raises:
      DpaError: the file is missing or no slide, or no reader is installed.
      UsageError: `mpp` is no plausible resolution.
    """
    name = os.fspath(path)
    if mpp is not None and not _MPP_RANGE[0] <= mpp <= _MPP_RANGE[1]:
        raise UsageError(
            f"--mpp is {mpp}; it is in micrometres per pixel, such as 0.25"
        )
    open_handle, prefix = _library(backend)
    if not os.path.exists(name):
        raise DpaError(f"there is no slide {name}")
    try:
        handle = open_handle(name)
    except Exception as error:
        raise DpaError(
            f"{name} cannot be read as a slide: {_words(error)}; "
            "it may be truncated or of another format"
        ) from error
    try:
        if mpp is None:
            mpp = _stated_mpp(handle.properties, prefix)
        width, height = handle.dimensions
        yield Slide(name, name, (width, height), mpp, handle)
    finally:
        handle.close()


def _stated_mpp(properties, prefix: str) -> float | None:
    try:
        mpp = float(properties[f"{prefix}.mpp-x"])
    except (KeyError, TypeError, ValueError):
        return None
    # Editors write "72 dots per inch" and the like into TIFF tags.
    return mpp if _MPP_RANGE[0] <= mpp <= _MPP_RANGE[1] else None


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _library(backend: str | None):
    """Returns how to open a slide, and how the library's properties begin."""
    known = {"openslide": "OpenSlide", "tiffslide": "TiffSlide"}
    for name in [backend] if backend else known:
        with contextlib.suppress(ImportError):
            return getattr(importlib.import_module(name), known[name]), name
    raise DpaError(
        f"reading slides needs {backend or 'a library'}: pip install 'dpa_jax[wsi]'"
    )
