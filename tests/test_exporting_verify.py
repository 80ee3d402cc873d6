import numpy as np
import pytest

from dpa_jax import errors
from dpa_jax.exporting import verify


def expected(images):
    maps = images.astype(np.float32)[..., 0] + 1
    return {"score": maps.mean((1, 2)), "map": maps}


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (70, 4, 4, 1), np.uint8)


def test_a_file_is_given_one_image_and_several(images):
    sizes = []

    def function(batch):
        sizes.append(len(batch))
        return expected(batch)

    found = verify.compare(function, images, expected(images))
    assert sizes == [1, 31, 32, 6]
    assert found == verify.Agreement(70, (1, 6, 31, 32), {"score": 0.0, "map": 0.0})


@pytest.mark.parametrize(
    "name, factor, is_allowed",
    [
        ("score", 1 + 0.9e-4, True),
        ("score", 1 - 1.2e-4, False),
        ("score", np.nan, False),
        ("map", 1 + 0.9e-3, True),
        ("map", 1.2, False),
    ],
)
def test_one_image_that_differs_is_enough(images, name, factor, is_allowed):
    def function(batch):
        found = expected(batch)
        is_last = (batch == images[-1]).all((1, 2, 3))
        found[name][is_last] *= np.float32(factor)
        return found

    if is_allowed:
        found = verify.compare(function, images, expected(images))
        assert found.differences[name] == pytest.approx(abs(factor - 1), rel=1e-2)
    else:
        with pytest.raises(errors.DpaError, match=f"exported {name} .* image 69 of 70"):
            verify.compare(function, images, expected(images))


@pytest.mark.parametrize("channels", [1, 3])
def test_made_up_images_span_the_range(channels):
    found = verify.made_up(20, channels)
    assert found.shape == (32, 20, 20, channels) and found.dtype == np.uint8
    assert (found[0] == 0).all() and (found[1] == 255).all()
    assert len(np.unique(found)) == 256
    assert len({image.tobytes() for image in found}) == 32
    spreads = found[2:].std((1, 2, 3))
    assert spreads.min() < 20 and spreads.max() > 60
