"""Reads a DICOM file as values from black to white."""

import functools
import io
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from dpa_jax import errors


def read(
    stream: BinaryIO, name: str, limit: float
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], int]:
    """Reads the one frame of a DICOM file (extra `dicom`).

    Grey values go through the modality rescale or table, then the first VOI table or
    window, or, without one, from the full range of the stored bits to 0 to 1;
    MONOCHROME1 is inverted. Colour and palettes become RGB.

    Args:
      stream: the file, at its beginning.
      name: what an error calls it.
      limit: the most pixels to decode.

    Returns:
      The stored values `[H, W]` or `[H, W, 3]`; a function that maps rows of them to
      float, 0 black to 1 white, which takes several times their memory; and how many
      bits are stored.

    Raises:
      DpaError: pydicom is not installed.
      ValueError: the file cannot be used; so do pydicom's own errors say, and so does
        the function.
    """
    try:
        from pydicom import pixels
    except ImportError:
        raise errors.DpaError(
            f"{name} is DICOM, and reading it needs pip install 'dpa_jax[dicom]'"
        ) from None
    data = _read_file(stream, limit)
    if "PixelData" not in data:
        raise ValueError("DICOM without pixel data")
    frames = int(data.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"DICOM of {frames} frames; save one as an image")
    if data.Rows * data.Columns > limit:
        raise ValueError(f"more than {limit:,} pixels")
    # YBR becomes RGB
    values = pixels.pixel_array(data)
    return values, functools.partial(_fraction, data), int(data.BitsStored)


def _fraction(data: Any, stored: np.ndarray) -> np.ndarray:
    """Maps rows of stored values to 0 to 1."""
    from pydicom import pixels

    if data.PhotometricInterpretation == "PALETTE COLOR":
        stored = pixels.apply_color_lut(stored, data)
        return stored[..., :3] / np.iinfo(stored.dtype).max
    if stored.ndim == 3:
        return stored / (2**data.BitsStored - 1)
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.clip(_window(stored, data), 0, 1)
    if np.isnan(values).any():
        raise ValueError("a DICOM rescale or window without bounds")
    return 1 - values if data.PhotometricInterpretation == "MONOCHROME1" else values


def _window(stored: np.ndarray, data: Any) -> np.ndarray:
    """Maps stored values to 0 to 1 and beyond (DICOM PS3.3, C.11.1 and C.11.2)."""
    if data.get("ModalityLUTSequence"):
        values, full = _look_up(stored, data.ModalityLUTSequence[0], data)
        low, high = 0.0, full
    else:
        slope = _number(data, "RescaleSlope", 1)
        intercept = _number(data, "RescaleIntercept", 0)
        values = slope * stored.astype(np.float64) + intercept
        lowest = -(2 ** (data.BitsStored - 1)) if data.PixelRepresentation == 1 else 0
        highest = lowest + 2**data.BitsStored - 1
        low, high = sorted([slope * lowest + intercept, slope * highest + intercept])
    if data.get("VOILUTSequence"):
        values, full = _look_up(values, data.VOILUTSequence[0], data)
        return values / full
    if None not in (data.get("WindowCenter"), data.get("WindowWidth")):
        center, width = (
            _number(data, name) for name in ("WindowCenter", "WindowWidth")
        )
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


def _number(data: Any, name: str, default: float | None = None) -> float:
    """Returns the first value of an element.

    Raises:
      ValueError: it is not finite.
    """
    value = float(np.ravel(np.asarray(data.get(name, default), float))[0])
    if not np.isfinite(value):
        raise ValueError(f"a DICOM {name} of {value}")
    return value


def _read_file(stream: BinaryIO, limit: float) -> Any:
    """Reads a file; what is deflated is not inflated without bound, as pydicom would.

    Raises:
      ValueError: it holds more than 3 bytes for each of `limit` pixels, and a mebibyte.
    """
    import pydicom
    from pydicom import filereader, uid

    start = stream.tell()
    for is_implicit in (False, True):  # some files have this part in the other way
        stream.seek(start)
        filereader.read_preamble(stream, False)
        about = filereader.read_dataset(
            stream, is_implicit, True, stop_when=lambda tag, *_: tag >> 16 != 2
        )
        try:
            next(iter(about), None)
            break
        except NotImplementedError:
            continue
    if about.get("TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
        stream.seek(start)
        return pydicom.dcmread(stream)
    most = int(min(3 * limit, 2**40)) + 2**20
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(stream.read(), most)
    if inflater.unconsumed_tail:
        raise ValueError(f"deflated from more than {most:,} bytes")
    data: Any = filereader.read_dataset(io.BytesIO(content), False, True)
    data.file_meta = pydicom.dataset.FileMetaDataset(about)
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return data


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
