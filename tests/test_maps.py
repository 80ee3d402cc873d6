import numpy as np
import pytest
from PIL import Image

from dpa_jax import errors
from dpa_jax.scoring import maps


def test_pictures_hold_the_image_and_the_map_over_it(tmp_path):
    images = np.full((2, 64, 64, 1), 100, np.uint8)
    found = np.zeros((2, 64, 64), np.float32)
    found[0, 40:60, 10:30] = 1.0
    paths = maps.files(tmp_path / "maps", ["a", "b"])
    maps.write_maps(paths, images, found)
    picture = np.asarray(Image.open(tmp_path / "maps" / "a.png")).astype(int)
    assert picture.shape[1:] == (512, 3)
    left, right = picture[:256, :256], picture[:256, 256:]
    assert (left == 100).all()
    np.testing.assert_array_equal(right[20, 20], 100)  # where the map is low
    # 0.7 of (255, 40, 0) and 0.3 of the image, at 4 times the map's scale
    np.testing.assert_allclose(right[200, 80], [208.5, 58, 30], atol=1)
    other = np.asarray(Image.open(tmp_path / "maps" / "b.png"))
    assert (other[:256] == 100).all()
    # with a bar of the colours below, 256 pixels high: 5 between and 10 of it
    bar = picture[266]
    np.testing.assert_array_equal(bar[0], 128)
    np.testing.assert_allclose(bar[-1], [216.9, 66.4, 38.4], atol=1)


def test_arrays_beside_the_pictures_are_as_computed(tmp_path):
    found = np.random.default_rng(0).random((2, 8, 8), np.float32)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    maps.write_maps(maps.files(tmp_path, ["a", "b"]), images, found)
    for name, values in zip("ab", found, strict=True):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), values)
    assert len(list(tmp_path.iterdir())) == 4


def test_pictures_of_one_call_share_a_scale(tmp_path):
    images = np.zeros((2, 8, 8, 1), np.uint8)
    found = np.zeros((2, 8, 8), np.float32)
    found[0, :2], found[1, :2] = 1.0, 0.5
    maps.write_maps(maps.files(tmp_path, ["strong", "weak"]), images, found, (0, 1))
    strong, weak = (
        np.asarray(Image.open(tmp_path / f"{name}.png"))[0, -1, 0]
        for name in ("strong", "weak")
    )
    assert abs(int(strong) - 2 * int(weak)) <= 2


def test_of_a_larger_image_the_centre_is_shown():
    image = np.zeros((10, 10, 1), np.uint8)
    image[1:9, 1:9] = 200
    picture = maps.overlay(image, np.zeros((8, 8), np.float32), 0, 1)
    assert (picture == 200).all()


def test_a_flat_map_paints_nothing():
    image = np.full((8, 8, 1), 50, np.uint8)
    flat = np.full((8, 8), 0.3, np.float32)
    assert (maps.overlay(image, flat, 0.3, 0.3) == 50).all()


def test_equal_names_are_numbered_apart(tmp_path):
    names = [path.stem for path in maps.files(tmp_path, ["a", "a", "a_2", "a"])]
    assert len(set(names)) == 4
    assert names[0] == "a" and names[2] == "a_2"


@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_existing_files_need_overwrite(tmp_path, suffix):
    (tmp_path / f"b.{suffix}").write_text("of before")
    with pytest.raises(errors.DpaError, match=f"b.{suffix} is already there.*--overwr"):
        maps.files(tmp_path, ["a", "b"])
    assert len(maps.files(tmp_path, ["a", "b"], overwrite=True)) == 2
    assert len(maps.files(tmp_path, ["a"])) == 1
