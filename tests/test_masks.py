"""Masks of abnormal pixels: what is read, and how it follows its image."""

import numpy as np
import pytest
from PIL import Image

from dpa_jax.data import ImageSet, Preprocessing, masks
from dpa_jax.data.decode import ImageError, prepare
from dpa_jax.errors import DpaError

SQUARE = np.zeros((16, 24), bool)
SQUARE[4:12, 8:16] = True


def save(path, values, mode=None):
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "values", "mode"),
    [
        ("grey.png", np.uint8(255) * SQUARE, None),
        ("ones.png", np.uint8(1) * SQUARE, None),
        ("deep.png", np.uint16(1) * SQUARE, None),
        ("bits.tif", SQUARE, None),
        ("rgb.bmp", np.stack([0 * SQUARE, 0 * SQUARE, SQUARE], -1).astype("u1"), None),
        ("alpha.png", np.uint8(3) * SQUARE, "LA"),  # opaque everywhere
        ("indexed.png", np.uint8(255) * SQUARE, "P"),
    ],
)
def test_whatever_is_not_zero_is_abnormal(tmp_path, name, values, mode):
    found = masks.read(save(tmp_path / name, values, mode))
    assert found.dtype == bool
    np.testing.assert_array_equal(found, SQUARE)


def test_jpeg_is_refused(tmp_path):
    path = save(tmp_path / "mask.jpg", np.uint8(255) * SQUARE)
    with pytest.raises(ImageError, match="mask.jpg: a mask must be PNG, TIFF or BMP"):
        masks.read(path)


def test_a_damaged_mask_is_named(tmp_path, rng):
    path = save(tmp_path / "mask.png", rng.integers(0, 256, (64, 64), np.uint8))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ImageError, match="mask.png: "):
        masks.read(path)


@pytest.mark.parametrize(
    "form",
    [
        Preprocessing(1, 16),
        Preprocessing(1, 8),
        Preprocessing(1, 8, crop=8),
        Preprocessing(1, 8, resize=48, crop=32),
    ],
)
def test_a_mask_lies_where_its_image_shows_it(form):
    drawn = prepare(Image.fromarray(np.uint8(255) * SQUARE), form, "image")[..., 0]
    np.testing.assert_array_equal(masks.prepare(SQUARE, form, "mask"), drawn > 127)


def images(tmp_path, labels, files, shape=(16, 24)):
    paths = [
        str(save(tmp_path / f"{i}.png", np.zeros(shape, np.uint8)))
        for i in range(len(labels))
    ]
    base = np.zeros((len(labels), 8, 8, 1), np.uint8)
    files = [str(tmp_path / file) if file else "" for file in files]
    return ImageSet(base, paths, np.array(labels, np.int8), columns={"mask": files})


def test_normal_images_and_those_with_a_mask_are_known(tmp_path):
    save(tmp_path / "m.png", np.uint8(1) * SQUARE)
    found = images(tmp_path, [0, 1, 1], ["", "m.png", ""])
    loaded, known = masks.load(found, Preprocessing(1, 8))
    assert known.tolist() == [True, True, False]
    # the middle 16 of 24 columns, at half the size
    assert np.argwhere(loaded[1]).min(axis=0).tolist() == [2, 2]
    assert loaded.sum(axis=(1, 2)).tolist() == [0, 16, 0]


def test_no_masks_at_all(tmp_path):
    assert masks.load(images(tmp_path, [0, 1], ["", ""]), Preprocessing(1, 8)) is None


def test_a_normal_image_with_abnormal_pixels_is_refused(tmp_path):
    save(tmp_path / "m.png", np.uint8(1) * SQUARE)
    with pytest.raises(DpaError, match="0.png is labelled normal, but its mask"):
        masks.load(images(tmp_path, [0, 1], ["m.png", ""]), Preprocessing(1, 8))


def test_a_mask_of_another_size_is_refused(tmp_path):
    save(tmp_path / "m.png", np.uint8(1) * SQUARE)
    found = images(tmp_path, [0, 1], ["", "m.png"], (32, 48))
    with pytest.raises(DpaError, match="m.png is a mask of 24x16 .* has 48x32"):
        masks.load(found, Preprocessing(1, 8))
