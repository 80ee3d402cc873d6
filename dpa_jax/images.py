"""What happens to images on the device: normalise, crop, flip, shrink, mix."""

import math

import jax
import jax.numpy as jnp

# Of the pixels of an image that a row of `tiles` holds: as many as a TPU's vectors have
# lanes, so that an image fills tiles of its memory alone.
_LANES = 128


def tiles(images):
    """Reshapes images as they are kept on the device, to be gathered in any order.

    A TPU would lay out `[N, S, S, C]` or `[N, S*S*C]` anew for a gather, all images of
    a data set in every step.

    Args:
      images: `[..., S, S, C]`, an array of NumPy or JAX.

    Returns:
      `[..., S*S*C / L, L]`, L the largest power of two up to 128 that divides S*S*C.
    """
    *leading, height, width, channels = images.shape
    return images.reshape(*leading, *tile_shape(height * width * channels))


def tile_shape(size: int) -> tuple[int, int]:
    """Returns the shape that `tiles` gives an image of `size` values."""
    lanes = math.gcd(size, _LANES)
    return size // lanes, lanes


def from_tiles(tiles, channels: int):
    """Returns the square images `[..., S, S, C]` that `tiles` was given."""
    *leading, rows, lanes = tiles.shape
    side = math.isqrt(rows * lanes // channels)
    return tiles.reshape(*leading, side, side, channels)


def normalize(images: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Brings uint8 images to [-1, 1] in `dtype`; float images keep their range."""
    if images.dtype == jnp.uint8:
        return (images.astype(dtype) / 255 - 0.5) / 0.5
    return images.astype(dtype)


def center_crop(images: jax.Array, size: int) -> jax.Array:
    """Cuts the centre: `[..., H, W, C]` to `[..., size, size, C]`."""
    top = (images.shape[-3] - size) // 2
    left = (images.shape[-2] - size) // 2
    return images[..., top : top + size, left : left + size, :]


def augment(
    keys: jax.Array,
    images: jax.Array,
    *,
    size: int,
    horizontal_flip: bool,
    vertical_flip: bool,
) -> jax.Array:
    """Cuts a random `size` square out of each image and flips it at random.

    Args:
      keys: of `jax.random`, one for each image, `[B]`: an image's draws depend on its
        own key alone, so that a batch may be spread over devices in any way.
      images: `[B, H, W, C]`, H and W at least `size`.
      size: in pixels; where H and W equal it nothing is drawn for the crop.
      horizontal_flip: whether to mirror left and right with probability 1/2.
      vertical_flip: whether to mirror top and bottom with probability 1/2.

    Returns:
      `[B, size, size, C]`, the dtype kept.
    """
    _, height, width, channels = images.shape

    def one(key, image):
        crop_key, horizontal_key, vertical_key = jax.random.split(key, 3)
        if (height, width) != (size, size):
            limit = jnp.array([height - size + 1, width - size + 1])
            top, left = jax.random.randint(crop_key, (2,), 0, limit)
            image = jax.lax.dynamic_slice(image, (top, left, 0), (size, size, channels))
        if horizontal_flip:
            flip = jax.random.bernoulli(horizontal_key)
            image = jnp.where(flip, image[:, ::-1], image)
        if vertical_flip:
            flip = jax.random.bernoulli(vertical_key)
            image = jnp.where(flip, image[::-1], image)
        return image

    return jax.vmap(one)(keys, images)


def downsample(images: jax.Array, resolution: int) -> jax.Array:
    """Shrinks by a power of two, bilinear without antialiasing or aligned corners.

    The sample points then lie between the two centre pixels of each block, whose mean
    is the result: at factor 2 the mean of the block, at 4 and 8 of its centre 2x2.

    Args:
      images: float `[B, H, H, C]`.
      resolution: the new side; H is a multiple of it by a power of two.
    """
    factor = images.shape[1] // resolution
    if factor == 1:
        return images
    b, _, _, c = images.shape
    blocks = images.reshape(b, resolution, factor, resolution, factor, c)
    middle = slice(factor // 2 - 1, factor // 2 + 1)
    return blocks[:, :, middle, :, middle].mean(axis=(2, 4))


def upsample2(images: jax.Array) -> jax.Array:
    """Doubles height and width of `[B, H, W, C]`, each pixel repeated (nearest)."""
    b, h, w, c = images.shape
    images = jnp.broadcast_to(images[:, :, None, :, None], (b, h, 2, w, 2, c))
    return images.reshape(b, 2 * h, 2 * w, c)


def average_pool2(images: jax.Array) -> jax.Array:
    """Halves height and width of `[B, H, W, C]` by the mean of 2x2 blocks."""
    b, h, w, c = images.shape
    return images.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def mix(images: jax.Array, resolution: int, alpha) -> jax.Array:
    """Returns what a transition sees: the old resolution fading into the new.

    Args:
      images: float `[B, H, H, C]` at full resolution.
      resolution: the new one.
      alpha: its share, from 0 to 1; the rest is half the resolution, repeated.
    """
    fine = downsample(images, resolution)
    coarse = upsample2(downsample(images, resolution // 2))
    return (1 - alpha) * coarse + alpha * fine
