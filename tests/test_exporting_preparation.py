import jax
import numpy as np
import pytest
from PIL import Image

from dpa_jax import errors
from dpa_jax.data import decode
from dpa_jax.exporting import preparation

P = decode.Preprocessing


@pytest.mark.parametrize(
    "side, preprocessing",
    [
        (50, P(1, 16)),
        (7, P(3, 20)),
        (16, P(1, 16)),
        (33, P(1, 8, resize=30, crop=22)),
        (33, P(3, 8, resize=40, crop=31, equalize=True)),
        (20, P(1, 20, equalize=True)),
    ],
)
def test_images_are_prepared_byte_for_byte_as_pillow_does(side, preprocessing, rng):
    channels = preprocessing.channels
    images = rng.integers(0, 256, (5, side, side, channels), np.uint8)
    images[1] = 7  # which has nothing to equalise
    images[2] = images[2] // 60 * 60
    images[3] = np.where(images[3] > 200, 255, 0)
    images[4] = 255
    expected = [
        decode.prepare(
            Image.fromarray(image[..., 0] if channels == 1 else image),
            preprocessing,
            "an image",
        )
        for image in images
    ]
    prepare = jax.jit(preparation.prepare, static_argnums=1)
    found = prepare(images, preprocessing)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.stack(expected))


def test_images_smaller_than_the_crop_are_refused():
    images = np.zeros((1, 8, 8, 1), np.uint8)
    with pytest.raises(errors.UsageError, match="8 pixels .* data.crop=9"):
        preparation.prepare(images, P(1, 8, crop=9))
