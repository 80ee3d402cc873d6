"""What `data.decode` does to a square image, as part of a program.

All is done in whole numbers, as Pillow does it for 8-bit images, so that every byte is
the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dpa_jax import errors
from dpa_jax.data.decode import Preprocessing
from dpa_jax.images import center_crop

_FRACTION = 22  # bits of a weight of Pillow's after the point


def prepare(images: jax.Array, preprocessing: Preprocessing) -> jax.Array:
    """Prepares square images; see `decode.prepare`.

    Args:
      images: uint8 `[B, S, S, C]`.
      preprocessing: static.

    Returns:
      uint8 `[B, size, size, C]`.

    Raises:
      UsageError: the images are smaller than the crop.
    """
    if preprocessing.resize:
        images = resize(images, preprocessing.resize)
    side = preprocessing.crop or images.shape[1]
    if side > images.shape[1]:
        raise errors.UsageError(
            f"images of {images.shape[1]} pixels are smaller than data.crop={side}"
        )
    images = center_crop(images, side)
    if preprocessing.equalize:
        images = equalize(images)
    return resize(images, preprocessing.size)


def resize(images: jax.Array, side: int) -> jax.Array:
    """Resizes uint8 `[B, S, S, C]` to `[B, side, side, C]`: bilinear, antialiased."""
    if images.shape[1] == side:
        return images
    weights = _weights(images.shape[1], side)
    x = images.astype(jnp.int32)
    # along rows first, each pass rounded to 8 bits; all numbers are below 2**30
    for along in ("bhwc,ws->bhsc", "bhwc,hs->bswc"):
        found = jnp.einsum(along, x, weights) + (1 << (_FRACTION - 1))
        x = jax.lax.div(found, 1 << _FRACTION)
    return x.astype(jnp.uint8)


def _weights(before: int, after: int) -> np.ndarray:
    """Returns Pillow's weight of each pixel of a row in each new one, int32.

    They are what it makes of rows that are one at a single pixel.
    """
    rows = Image.fromarray(np.eye(before, dtype=np.int32) << _FRACTION)
    return np.array(rows.resize((after, before), Image.Resampling.BILINEAR))


def equalize(images: jax.Array) -> jax.Array:
    """Equalises the histogram of each channel of uint8 `[B, H, W, C]`.

    Values are counted and replaced by products with the upper and the lower four of
    their bits, one-hot, in an eighth of the memory that 256 for each pixel would take.
    Float32 is exact here.
    """
    b, h, w, c = images.shape
    digits = jnp.arange(16)
    x = images.astype(jnp.int32).reshape(b, h * w, c, 1)
    upper = jax.lax.div(x, 16)
    high = (upper == digits).astype(jnp.float32)
    low = (x - 16 * upper == digits).astype(jnp.float32)
    with jax.default_matmul_precision("highest"):
        counts = jnp.einsum("bpci,bpcj->bcij", high, low).astype(jnp.int32)
        table = _equalizing(counts.reshape(b, c, 256)).astype(jnp.float32)
        rows = jnp.einsum("bpci,bcij->bpcj", high, table.reshape(b, c, 16, 16))
    return (rows * low).sum(-1).astype(jnp.uint8).reshape(images.shape)


def _equalizing(counts: jax.Array) -> jax.Array:
    """Returns the new value of each by the counts of values, int32 `[..., 256]`."""
    values = jnp.arange(256)
    highest = jnp.max(jnp.where(counts > 0, values, 0), -1, keepdims=True)
    others = jnp.where(values == highest, 0, counts).sum(-1, keepdims=True)
    step = jax.lax.div(others, 255)
    before = jnp.cumsum(counts, -1) - counts
    found = jax.lax.div(jax.lax.div(step, 2) + before, jnp.maximum(step, 1))
    return jnp.where(step > 0, jnp.minimum(found, 255), values)
