"""NIfTI volumes as 8-bit slices (extra `nifti`)."""

import concurrent.futures
import functools
import math
import os
import threading
from typing import Any

import numpy as np

from dpa_jax import errors
from dpa_jax.data.decode import PLANES, ImageError

EXTENSIONS = (".nii", ".nii.gz")
WINDOW = (0.5, 99.5)  # percentiles of a volume that become black and white
_MOST = 2**30  # voxels
_KEPT = 8  # decoded volumes that stay in memory


def is_volume(path: str) -> bool:
    """Returns whether a file is a NIfTI volume, by its extension."""
    return path.lower().endswith(EXTENSIONS)


def shape(path: str, plane: str) -> tuple[int, int, int]:
    """Returns the number of slices and their height and width; see `read`.

    Only the header is read.
    """
    return _guarded(path, lambda: _open(path, plane)[1])


def read(path: str, plane: str) -> np.ndarray:
    """Reads a volume as slices of a plane.

    The volume is turned to the axes right, anterior, superior that its affine is
    nearest to. A slice has anterior, or else superior, at the top, and the right of the
    patient, or else anterior, at the right; its voxels are taken for squares.

    Args:
      path: of a .nii or .nii.gz, of three dimensions.
      plane: axial, coronal or sagittal.

    Returns:
      uint8 `[N, H, W]`, from inferior, posterior or left on. What is black and white is
      one for the volume: its percentiles `WINDOW`, over all voxels.

    Raises:
      ImageError: the file is damaged, is of other dimensions, has voxels that are not
        finite or is the same everywhere.
      DpaError: it cannot be opened, or nibabel is missing.
    """
    values = _guarded(path, lambda: _voxels(path, plane))
    if not np.isfinite(values).all():
        raise ImageError(path, "NaN or infinite voxels")
    low, high = np.percentile(values, WINDOW)
    if not high > low:
        raise ImageError(
            path, f"the percentiles {WINDOW[0]} and {WINDOW[1]} are both {low:g}"
        )
    return np.rint(255 * np.clip((values - low) / (high - low), 0, 1)).astype(np.uint8)


def read_mask(path: str, plane: str) -> np.ndarray:
    """Reads a volume as `read` does, for bool `[N, H, W]`: what is not 0 is True."""
    return _guarded(path, lambda: _voxels(path, plane)) != 0


class Cache:
    """Slices of volumes, of which the last few stay decoded; threads may share it.

    Args:
      plane: see `read`.
    """

    def __init__(self, plane: str):
        self._volume = functools.lru_cache(_KEPT)(
            lambda path: _Once(lambda: read(path, plane))
        )

    def slice(self, path: str, index: int) -> np.ndarray:
        """Returns a slice, uint8 `[H, W]`; see `read`."""
        return self._volume(path).get()[index]


class _Once:
    """What a function returns or raises, which is called once, when first needed."""

    def __init__(self, function):
        self._lock, self._function = threading.Lock(), function
        self._called: concurrent.futures.Future | None = None

    def get(self) -> Any:
        with self._lock:
            if self._called is None:
                self._called = concurrent.futures.Future()
                try:
                    self._called.set_result(self._function())
                except errors.DpaError as error:
                    self._called.set_exception(error)
        return self._called.result()


def _open(path: str, plane: str) -> tuple[Any, tuple[int, int, int], np.ndarray]:
    """Returns the image, the shape of its slices, and its orientation."""
    try:
        import nibabel
    except ImportError:
        raise errors.DpaError(
            f"{path} is NIfTI, and reading it needs pip install 'dpa_jax[nifti]'"
        ) from None
    image: Any = nibabel.load(path)
    sizes = image.shape
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    if len(sizes) != 3 or 0 in sizes or math.prod(sizes) > _MOST:
        raise ImageError(
            path,
            f"{'x'.join(map(str, image.shape))} voxels; three dimensions and at most "
            f"{_MOST:,} voxels are read",
        )
    if image.get_data_dtype().kind not in "iuf":
        raise ImageError(path, f"voxels of {image.get_data_dtype()}, not numbers")
    orientation = nibabel.io_orientation(image.affine)
    if np.isnan(orientation).any():
        raise ImageError(path, "its affine leaves out an axis")
    turned = [sizes[axis] for axis in np.argsort(orientation[:, 0])]
    count = turned.pop(PLANES.index(plane))
    return image, (count, turned[1], turned[0]), orientation


def _voxels(path: str, plane: str) -> np.ndarray:
    import nibabel

    image, (count, height, width), orientation = _open(path, plane)
    values = image.get_fdata(dtype=np.float32, caching="unchanged")
    values = nibabel.apply_orientation(values.reshape(values.shape[:3]), orientation)
    slices = np.moveaxis(values, PLANES.index(plane), 0).swapaxes(1, 2)[:, ::-1]
    assert slices.shape == (count, height, width)
    return slices


def _guarded(path: str, function) -> Any:
    """Calls a function and names the file in what nibabel raises.

    Raises:
      ImageError: the content cannot be used.
      DpaError: the system refuses the file.
    """
    try:
        return function()
    except errors.DpaError:
        raise
    except Exception as error:  # of nibabel, gzip or NumPy, on damaged bytes
        if not os.access(path, os.R_OK):
            reason = getattr(error, "strerror", None) or error
            raise errors.DpaError(f"{path}: cannot be read: {reason}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(path, f"not a readable NIfTI volume: {reason}") from error
