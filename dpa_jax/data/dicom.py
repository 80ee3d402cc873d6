"""Reads a DICOM file as values from black to white."""

from typing import Any, BinaryIO

import numpy as np

from dpa_jax import errors


def read(stream: BinaryIO, name: str, limit: float) -> np.ndarray:
    """Reads the one frame of a DICOM file (extra `dicom`).

    Grey values go through the modality rescale or table, then the first VOI table or
    window, or, without one, from the full range of the stored bits to 0 to 1;
    MONOCHROME1 is inverted. Colour and palettes become RGB.

    Args:
      stream: the file, at its beginning.
      name: what an error calls it.
      limit: the most pixels to decode.

    Returns:
      float `[H, W]` or `[H, W, 3]`, 0 black to 1 white.

    Raises:
      DpaError: pydicom is not installed.
      ValueError: the file cannot be used; so do pydicom's own errors say.
    """
    try:
        import pydicom
        from pydicom import pixels
    except ImportError:
        raise errors.DpaError(
            f"{name} is DICOM, and reading it needs pip install 'dpa_jax[dicom]'"
        ) from None
    data = pydicom.dcmread(stream)
    if "PixelData" not in data:
        raise ValueError("DICOM without pixel data")
    frames = int(data.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"DICOM of {frames} frames; save one as an image")
    if data.Rows * data.Columns > limit:
        raise ValueError(f"more than {limit:,} pixels")
    stored = pixels.pixel_array(data)  # YBR has become RGB
    if data.PhotometricInterpretation == "PALETTE COLOR":
        stored = pixels.apply_color_lut(stored, data)
        return stored[..., :3] / np.iinfo(stored.dtype).max
    if stored.ndim == 3:
        return stored / (2**data.BitsStored - 1)
    values = np.clip(_window(stored, data), 0, 1)
    return 1 - values if data.PhotometricInterpretation == "MONOCHROME1" else values


def _window(stored: np.ndarray, data: Any) -> np.ndarray:
    """Maps stored values to 0 to 1 and beyond (DICOM PS3.3, C.11.1 and C.11.2)."""
    if data.get("ModalityLUTSequence"):
        values, full = _look_up(stored, data.ModalityLUTSequence[0], data)
        low, high = 0.0, full
    else:
        slope = float(data.get("RescaleSlope", 1))
        intercept = float(data.get("RescaleIntercept", 0))
        values = slope * stored.astype(np.float64) + intercept
        lowest = -(2 ** (data.BitsStored - 1)) if data.PixelRepresentation == 1 else 0
        highest = lowest + 2**data.BitsStored - 1
        low, high = sorted([slope * lowest + intercept, slope * highest + intercept])
    if data.get("VOILUTSequence"):
        values, full = _look_up(values, data.VOILUTSequence[0], data)
        return values / full
    windows = [data.get("WindowCenter"), data.get("WindowWidth")]
    if None not in windows:
        center, width = (float(np.ravel(np.asarray(w, float))[0]) for w in windows)
        if not width > 0:
            raise ValueError(f"a DICOM window of width {width}")
        function = data.get("VOILUTFunction", "LINEAR")
        if function == "SIGMOID":
            return 1 / (1 + np.exp(-4 * (values - center) / width))
        if function == "LINEAR":
            # At a width of 1 this is a step: the limit of a narrow slope.
            center, width = center - 0.5, max(width - 1, 1e-6)
        return (values - center) / width + 0.5
    if not high > low:
        raise ValueError("a DICOM rescale slope of 0")
    return (values - low) / (high - low)


def _look_up(values: np.ndarray, item: Any, data: Any) -> tuple[np.ndarray, float]:
    """Passes values through a table; returns them and the largest it may hold.

    By hand, as pydicom's own indexes a table of 8 bits by 8 bits.
    """
    entries, first, depth = item.LUTDescriptor
    table = item.LUTData
    if isinstance(table, bytes):
        wide = len(table) >= 2 * (entries or 2**16)
        order = "<" if data.original_encoding[1] else ">"
        table = np.frombuffer(table, f"{order}u2" if wide else "u1")
    table = np.asarray(table, np.float64)
    index = np.rint(values).astype(np.int64) - first
    return table[np.clip(index, 0, len(table) - 1)], 2.0**depth - 1
