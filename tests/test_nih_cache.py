"""Decoded images that outlast the process."""

import numpy as np
import pytest

from dpa_jax.data.decode import Preprocessing
from dpa_jax.datasets.nih_cache import ImageCache

WAY = Preprocessing(channels=1, size=8)


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (8, 8, 1), np.uint8)


def test_an_image_is_found_again_by_the_stamp_of_its_file(tmp_path, image):
    cache = ImageCache(tmp_path, ["a", "b"], WAY)
    assert not cache.find("b", [0, 7])
    cache.add("b", image, (1024, 512), 7)
    again = ImageCache(tmp_path, ["a", "b"], WAY)
    assert not again.find("b", [6]) and not again.find("a", [0, 7]) and not again.sizes
    assert again.find("b", [6, 7]) and again.sizes == {"b": (1024, 512)}
    for one in (cache, again):
        np.testing.assert_array_equal(one.image("b"), image)


def test_what_was_half_written_is_not_taken_for_an_image(tmp_path, image):
    ImageCache(tmp_path, ["a"], WAY).add("a", image, (1024, 1024), 7)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not ImageCache(tmp_path, ["a"], WAY).find("a", [7])


def test_caches_of_other_preprocessing_are_apart(tmp_path, image):
    ImageCache(tmp_path, ["a"], WAY).add("a", image, (1024, 1024), 7)
    equalized = Preprocessing(channels=1, size=8, equalize=True)
    assert not ImageCache(tmp_path, ["a"], equalized).find("a", [7])
