import numpy as np
import pytest
import run_factory
from PIL import Image

from dpa_jax import data, errors

GREY, COLOUR = data.Preprocessing(1, 8), data.Preprocessing(3, 8)
PIXELS = run_factory.images(2, 12)  # [2, 12, 12]
EXPECTED = np.stack(
    [
        np.asarray(Image.fromarray(p).resize((8, 8), Image.Resampling.BILINEAR))
        for p in PIXELS
    ]
)[..., None]


def prepared(images, preprocessing=GREY):
    return data.as_image_set(images, preprocessing).images


@pytest.fixture
def paths(tmp_path):
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return [tmp_path / "0.png", str(tmp_path / "1.png")]


@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        PIXELS[..., None],
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        list(PIXELS),
        [PIXELS[0], PIXELS[1][..., None] / 255],
        np.repeat(PIXELS[..., None], 3, axis=3),
        [Image.fromarray(pixels) for pixels in PIXELS],
        (Image.fromarray(PIXELS[0]).convert("RGBA"), PIXELS[1]),
        [Image.fromarray(pixels.astype(np.uint16) * 257) for pixels in PIXELS],
    ],
)
def test_images_of_every_kind_are_prepared_alike(images):
    np.testing.assert_array_equal(prepared(images), EXPECTED)


def test_paths_alone_and_among_images(paths):
    np.testing.assert_array_equal(prepared(paths), EXPECTED)
    np.testing.assert_array_equal(prepared(paths[0]), EXPECTED[:1])
    mixed = [paths[0], Image.fromarray(PIXELS[1])]
    np.testing.assert_array_equal(prepared(mixed), EXPECTED)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_of_one_image_is_one_image(channels):
    one = PIXELS[0] if channels == 1 else np.repeat(PIXELS[0][..., None], 3, axis=2)
    for preprocessing in (GREY, COLOUR):
        found = prepared(one, preprocessing)
        assert found.shape == (1, 8, 8, preprocessing.channels)
        np.testing.assert_array_equal(found[..., :1], EXPECTED[:1])


def test_a_set_stays_as_it_is_but_for_labels():
    images = data.ImageSet(EXPECTED, ["a", "b"], groups=["x", "y"])
    assert data.as_image_set(images, GREY) is images
    found = data.as_image_set(images, GREY, labels=[0, 1])
    assert found.labels.tolist() == [0, 1] and found.groups == ["x", "y"]
    assert found.base is EXPECTED


@pytest.mark.parametrize(
    "images, message",
    [
        (
            PIXELS / 127.5 - 1,
            r"\[0, 1\], 0 black: \(x \+ 1\) / 2 brings those .*\[-1, 1\]",
        ),
        (
            PIXELS.astype(float),
            r"values from 15 to 248; float images must lie in \[0, 1\]",
        ),
        (PIXELS.astype(np.int32), "not int32"),
        (np.full((2, 8, 8), np.nan), "NaN"),
        (np.zeros((2, 3, 12, 12), np.uint8), r"\[N, H, W, 3\] .*not \[2, 3, 12, 12\]"),
        (np.zeros((12, 12, 4), np.uint8), r"\[12, 12, 4\].*channels are 1 or 3"),
        ([], "no images were given"),
        ([PIXELS], r"images\[0\]: each array of a list is one image"),
        ([PIXELS[0], 3.0], r"images\[1\]: each array of a list is one image"),
        ([Image.fromarray(PIXELS[0] / np.float32(255))], "an array of floats"),
        ("nowhere.png", "there is no file or folder nowhere.png"),
    ],
)
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(errors.DpaError, match=message):
        data.as_image_set(images, GREY)


def test_channels_first_are_named_where_colour_is_expected():
    with pytest.raises(errors.DpaError, match="with its channels first"):
        prepared(np.zeros((3, 12, 12), np.uint8), COLOUR)


def test_labels_and_groups_are_of_the_images():
    found = data.as_image_set(PIXELS, GREY, labels=[0, 1], groups=["a", "b"])
    assert found.labels.tolist() == [0, 1] and found.groups == ["a", "b"]
    with pytest.raises(errors.DpaError, match="2 images, but 3 labels"):
        data.as_image_set(PIXELS, GREY, labels=[0, 1, 1])
