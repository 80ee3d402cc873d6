"""One image file to the uint8 array that the networks are fed.

What happens, in this order: open; to 8-bit grey or RGB; resize the whole; crop the
centre; equalise; resize to the final size. All of it is Pillow's, so that it equals
the published preprocessing byte for byte.
"""

import dataclasses
import errno
import io
import math
import os
import stat
from collections.abc import Callable
from typing import BinaryIO

import ml_collections
import numpy as np
from PIL import (
    BmpImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from dpa_jax import errors
from dpa_jax.data import dicom, properties
from dpa_jax.data.properties import Original

# Naming the plugins loads them here, once, and not in the first thread that decodes.
_FORMATS = tuple(
    str(plugin.format)
    for plugin in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        TiffImagePlugin.TiffImageFile,
        BmpImagePlugin.BmpImageFile,
    )
)
PLANES = ("sagittal", "coronal", "axial")  # by the axis of a volume that they cut
_PART = 2**20  # pixels that are brought to 8 bits at a time
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class ImageError(errors.DpaError):
    """An image whose content cannot be used; `skip_corrupt` leaves such images out.

    Attributes:
      path: names the image.
      reason: what is wrong with it.
    """

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What an image goes through before it is stored.

    Attributes:
      channels: 1 for grey, 3 for RGB.
      size: height and width of the result, in pixels.
      resize: height and width to which the whole image is brought first, whatever its
        aspect; 0 for not.
      crop: height and width of the centre that is cut out then; 0 for the largest
        square.
      equalize: whether to equalise the histogram then, of each channel.
      plane: of the slices of a volume: axial, coronal or sagittal.

    Raises:
      UsageError: a value is out of range, or the crop larger than `resize`.
    """

    channels: int
    size: int
    resize: int = 0
    crop: int = 0
    equalize: bool = False
    plane: str = "axial"

    def __post_init__(self):
        if self.plane not in PLANES:
            raise errors.UsageError(
                f"plane must be axial, coronal or sagittal, not {self.plane!r}"
            )
        if self.channels not in (1, 3):
            raise errors.UsageError(f"channels must be 1 or 3, not {self.channels}")
        if self.size < 1 or self.resize < 0 or self.crop < 0:
            raise errors.UsageError(
                "size must be at least 1, resize and crop at least 0: "
                f"not {self.size}, {self.resize} and {self.crop}"
            )
        if 0 < self.resize < self.crop:
            raise errors.UsageError(
                f"a crop of {self.crop} does not fit in a resize of {self.resize}"
            )

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, scoring: bool = False
    ) -> "Preprocessing":
        """Takes what it needs from a configuration.

        Args:
          config: of a run.
          scoring: whether the images are to be scored, not trained on. A run on random
            crops takes their centre; where it gets them by cutting alone, `data.crop`
            being `data.size`, that centre is cut at once, so that images need not be
            larger than what is scored.
        """
        data = config.data
        crop, size = data.crop, data.size or data.resolution
        if scoring and data.random_crop and crop == size:
            crop = size = data.resolution
        return cls(data.channels, size, data.resize, crop, data.equalize, data.plane)


def decode(
    source: str | os.PathLike | bytes, preprocessing: Preprocessing, name: str = ""
) -> np.ndarray:
    """Decodes and preprocesses an image: PNG, JPEG, TIFF, BMP or DICOM, by content.

    Alpha is dropped, not blended; of several pages the first is taken; EXIF orientation
    is applied; 16-bit grey is divided by 257 (of 16-bit colour Pillow keeps the high
    byte). DICOM is brought to 8 bits by its rescale and its first window, or without a
    window from the full range of its stored bits, and MONOCHROME1 is inverted.

    Args:
      source: a path, or the bytes of a file.
      preprocessing: what to bring it to.
      name: what errors call it; the path if empty.

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      ImageError: the content is damaged, of another kind, or too small for the crop.
      DpaError: the file cannot be opened, or is DICOM without the `dicom` extra.
    """
    return decode_described(source, preprocessing, name)[0]


def decode_described(
    source: str | os.PathLike | bytes, preprocessing: Preprocessing, name: str = ""
) -> tuple[np.ndarray, Original]:
    """Returns what `decode` does, and what the image was before."""
    if not name:
        name = "the image" if isinstance(source, bytes) else os.fspath(source)
    image, original = read_described(source, name)
    return prepare(image, preprocessing, name), original


def read_image(source: str | os.PathLike | bytes, name: str) -> Image.Image:
    """Decodes an image, upright and of 8 bits, without preprocessing; see `decode`."""
    return read_described(source, name)[0]


def read_described(
    source: str | os.PathLike | bytes, name: str
) -> tuple[Image.Image, Original]:
    """Returns what `read_image` does, and what the image was before."""
    try:
        if isinstance(source, bytes):
            return _read(io.BytesIO(source), name)
        with open(source, "rb", opener=_open_at_once) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ImageError(name, "a pipe or a device, not a file")
            return _read(stream, name)
    except errors.DpaError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            name, "not a readable PNG, JPEG, TIFF, BMP or DICOM image"
        ) from None
    except Exception as error:
        # Whatever a decoder raises on damaged bytes; but what the system refuses is no
        # fault of the image. Only such an error has a number, and EINVAL is a decoder
        # that was sent to before the beginning of the file.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise errors.DpaError(
                f"{name}: cannot be read: {error.strerror}"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(name, reason) from error


def _open_at_once(path: str, flags: int) -> int:
    # without this flag, opening a pipe waits for somebody to write to it
    return os.open(path, flags | os.O_NONBLOCK)


def prepare(image: Image.Image, preprocessing: Preprocessing, name: str) -> np.ndarray:
    """Preprocesses an 8-bit image.

    Args:
      image: of any 8-bit mode of Pillow.
      preprocessing: what to bring it to.
      name: what errors call it.

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      ImageError: the image is smaller than the crop.
    """
    image = cut(to_channels(image, preprocessing.channels), preprocessing, name)
    if preprocessing.equalize:
        image = ImageOps.equalize(image)
    size = preprocessing.size
    return np.asarray(_resize(image, size)).reshape(size, size, preprocessing.channels)


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Converts an 8-bit image to grey or RGB; alpha is dropped."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    image.info.pop("transparency", None)  # dropped too; Pillow warns of it
    return image.convert(mode)


def cut(
    image: Image.Image,
    preprocessing: Preprocessing,
    name: str,
    resampling: Image.Resampling = Image.Resampling.BILINEAR,
) -> Image.Image:
    """Resizes an image as a whole if that is asked for, then cuts its centre.

    Raises:
      ImageError: the image is smaller than the crop.
    """
    if preprocessing.resize:
        image = image.resize((preprocessing.resize,) * 2, resampling)
    width, height = image.size
    side = preprocessing.crop or min(width, height)
    if side > min(width, height):
        raise ImageError(
            name,
            f"{width}x{height} pixels (width x height), smaller than the crop of "
            f"{side}: lower the crop or set a resize",
        )
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _resize(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BILINEAR)


def _read(stream: BinaryIO, name: str) -> tuple[Image.Image, Original]:
    """Opens an image of any kind and brings it to 8 bits."""
    head = stream.read(132)
    if not head:
        raise ImageError(name, "the file is empty")
    stream.seek(0)
    limit = Image.MAX_IMAGE_PIXELS or math.inf
    if head[128:] == b"DICM":
        values, fraction, bits = dicom.read(stream, name, limit)
        image = _to_bytes(values, fraction)
        return image, properties.describe(image, bits)
    too_large = f"more than {limit:,} pixels, a decompression bomb perhaps"
    try:
        image: Image.Image = Image.open(stream, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(name, too_large) from None
    if image.width * image.height > limit:
        raise ImageError(name, too_large)  # from here on Pillow only warns
    if image.format == "PNG" and getattr(image, "is_animated", False):
        raise ImageError(name, "an animation; save one of its frames as an image")
    if image.mode == "F":
        raise ImageError(
            name, "floating-point values; save it with 8 or 16 bits, or use an .npz"
        )
    if image.mode not in DEEP_MODES:
        upright = ImageOps.exif_transpose(image)
        return upright, properties.describe(upright, pages=_count_pages(image))
    return deep_to_bytes(image, name)


def deep_to_bytes(image: Image.Image, name: str) -> tuple[Image.Image, Original]:
    """Brings a grey image of more than 8 bits to 8, upright.

    Raises:
      ImageError: values are not those of 16 bits.
    """
    # Read first: Pillow forgets a TIFF's tags when it turns the image upright.
    bits, negative = _tiff_bits(image)
    values = np.asarray(ImageOps.exif_transpose(image))
    low, high, full = int(values.min()), int(values.max()), 2**bits - 1
    if low < 0 or high > full:
        raise ImageError(
            name,
            f"values from {low} to {high}; grey images may have 8 bits, or 16 with "
            "values from 0 to 65535",
        )
    found = _to_bytes(
        values,
        lambda rows: (full - rows.astype(np.int32) if negative else rows) / full,
    )
    original = properties.describe(found, bits, _count_pages(image))
    return found, original._replace(low=low / full, high=high / full)


def _count_pages(image: Image.Image) -> int:
    """Returns how many pages a file has whose first one is decoded."""
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # whatever a decoder raises on a damaged page, which is not used
        return 1


def _tiff_bits(image: Image.Image) -> tuple[int, bool]:
    """Returns the bits of a deep grey image, and whether its zero is white.

    Pillow unpacks 12 bits without scaling, and inverts white-is-zero at 8 bits only.
    """
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1)
    return min(bits, 16), photometric == 0


def _to_bytes(
    values: np.ndarray, fraction: Callable[[np.ndarray], np.ndarray]
) -> Image.Image:
    """Turns values into an 8-bit grey or RGB image, by their fraction of white.

    Some rows at a time, since fractions take eight bytes each.
    """
    rows = max(1, _PART // max(1, values[:1].size))
    parts = [
        np.rint(255 * fraction(values[first : first + rows])).astype(np.uint8)
        for first in range(0, len(values), rows)
    ]
    return Image.fromarray(np.concatenate(parts))
