import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from dpa_jax import data, errors
from dpa_jax.data.inputs import FILE, LEVELS, find, measure, record
from dpa_jax.scoring import unlike

GREY = data.Preprocessing(1, 16)
SIZE = 40


def drawn(count, seed, size=SIZE):
    """Bright bodies on black, each a little other: uint8 `[N, size, size]`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    scale, shift = rng.uniform(0.8, 1.2, (2, count, 1, 1))
    body = np.exp(-3 * ((x * scale) ** 2 + (y - 0.3 * shift) ** 2))
    found = 230 * rng.uniform(0.8, 1, (count, 1, 1)) * body
    return (found + rng.uniform(0, 20, found.shape)).astype(np.uint8)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    np.savez(folder / "train.npz", images=drawn(40, 0))
    train = data.load(folder / "train.npz", GREY)
    record(folder, train, GREY)
    return find(folder)


def found(inputs, path, preprocessing=GREY):
    return unlike.differences(inputs, data.load(path, preprocessing), preprocessing)


IMAGE = drawn(1, 1)[0]


def pil(values=IMAGE):
    return Image.fromarray(values)


def test_what_training_images_were_is_kept(inputs):
    assert inputs.images == 40 and inputs.bits == {"8": 40}
    assert inputs.quantiles["width"] == [SIZE] * 5
    assert inputs.quantiles["enlargement"] == [0.4] * 5  # 16 of 40 pixels
    assert inputs.quantiles["aspect"] == [1] * 5
    bright = np.quantile(drawn(40, 0).max(axis=(1, 2)) / 255, LEVELS)
    assert inputs.quantiles["high"] == pytest.approx(bright, abs=1e-3)
    assert np.shape(inputs.typical) == (16, 16)


def test_other_images_of_the_same_kind_do_not_differ(inputs, tmp_path):
    np.savez(tmp_path / "more.npz", images=drawn(60, 2))
    np.savez(tmp_path / "floats.npz", images=drawn(60, 3) / 255)
    assert found(inputs, tmp_path / "more.npz") == []
    assert found(inputs, tmp_path / "floats.npz") == []
    pil(IMAGE.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert found(inputs, tmp_path / "deep.png") == []


def arrays(values):
    return lambda path: np.savez(path, images=values)


@pytest.mark.parametrize(
    "name, write, message",
    [
        (
            "twelve.png",
            pil(IMAGE.astype(np.uint16) * 16).save,
            r"value is 5\.\d% of what 16 bits hold \(12-bit data that were not scaled",
        ),
        (
            "half.npz",
            arrays((IMAGE[None] / 255 + 1) / 2),
            r"1st percentile.* are 1[34]\d",
        ),
        (
            "dark.npz",
            arrays(IMAGE[None] // 4),
            "largest value is .*of what 8 bits hold;",
        ),
        ("negative.png", pil(255 - IMAGE).save, "like a negative of the training"),
        (
            "small.png",
            pil().resize((3, 3)).save,
            "3x3 pixels are enlarged 5.33 times, training images not",
        ),
        (
            "wide.png",
            pil().resize((600, 100)).save,
            "600x100 pixels, of which the centre is used, 17% of it",
        ),
        (
            "pages.tif",
            lambda path: pil().save(path, save_all=True, append_images=[pil()] * 4),
            "the first of 5 pages is scored",
        ),
        (
            "colour.png",
            pil(np.stack([IMAGE, IMAGE // 2, IMAGE // 3], 2)).save,
            "in colour, training images are not",
        ),
    ],
)
def test_each_difference_is_named_with_its_image(
    inputs, tmp_path, name, write, message
):
    write(tmp_path / name)
    texts = found(inputs, tmp_path / name)
    assert all(text.startswith(f"{tmp_path}/{name}") for text in texts)
    assert any(re.search(message, text) for text in texts), texts


def test_a_single_pixel_is_enlarged(inputs, tmp_path):
    pil().resize((1, 1)).save(tmp_path / "one.png")
    assert any("1x1 pixels are enlarged 16 times" in t for t in found(inputs, tmp_path))


def test_a_resize_of_the_whole_distorts_and_leaves_out_nothing(inputs, tmp_path):
    pil().resize((600, 100)).save(tmp_path / "wide.png")
    whole = data.Preprocessing(1, 16, resize=20)
    (text,) = found(inputs, tmp_path / "wide.png", whole)
    assert "600x100 pixels; the long side is 6 times the short one" in text


def test_images_that_differ_alike_are_counted_and_the_first_are_named(inputs, tmp_path):
    for i in range(5):
        pil().resize((90, 40) if i else (40, 40)).save(tmp_path / f"{i}.png")
    (text,) = found(inputs, tmp_path)
    names = ", ".join(f"{tmp_path}/{i}.png" for i in (1, 2, 3))
    assert text.startswith(f"4 of 5 images ({names}, ...); the first: 90x40 pixels")


def test_images_without_an_up_have_no_negative(tmp_path, rng):
    noise = rng.integers(0, 256, (30, 16, 16), np.uint8)
    np.savez(tmp_path / "noise.npz", images=noise)
    noise_inputs = measure(data.load(tmp_path / "noise.npz", GREY), GREY)
    np.savez(tmp_path / "negative.npz", images=255 - noise)
    assert found(noise_inputs, tmp_path / "negative.npz") == []


def test_of_prepared_images_only_what_they_show_is_compared(inputs):
    unknown = data.ImageSet(np.zeros((1, 16, 16, 1), np.uint8), ["black"])
    (text,) = unlike.differences(inputs, unknown, GREY)
    assert text.startswith("black: 1st percentile, mean and 99th percentile of the")


def test_strict_makes_an_error_of_it(inputs):
    black = data.ImageSet(np.zeros((1, 16, 16, 1), np.uint8), ["black"])
    assert unlike.check(inputs, black, GREY, strict=False)
    assert unlike.check(None, black, GREY, strict=True) == []
    with pytest.raises(errors.DpaError, match="unlike the training images: black: 1st"):
        unlike.check(inputs, black, GREY, strict=True)


@pytest.mark.parametrize(
    "change",
    [
        {"quantiles": {"high": [1, 2]}},
        {"quantiles": {"high": ["x"] * 5}},
        {"typical": [[1, 2], [3]]},
        {"typical": [1, 2]},
    ],
)
def test_a_damaged_file_is_named(inputs, tmp_path, change):
    assert find(tmp_path) is None
    good = dataclasses.asdict(inputs)
    (tmp_path / FILE).write_text(json.dumps(good))
    assert find(tmp_path) == inputs
    (tmp_path / FILE).write_text(json.dumps(good | change))
    with pytest.raises(errors.DpaError, match=r"inputs\.json: damaged, not numbers"):
        find(tmp_path)


def test_ordinary_x_rays_do_not_differ_and_changed_ones_do(shared, tmp_path):
    folder = shared / "data" / "nih_chest_xray14" / "images_64"
    paths = sorted(folder.iterdir())
    form = data.Preprocessing(1, 32)
    known = measure(data.load(paths[:400:2], form), form)
    held_out = data.load(paths[1:400:2], form)
    assert unlike.differences(known, held_out, form) == []
    negatives = data.ImageSet(255 - held_out.images, held_out.paths)
    count = unlike.differences(known, negatives, form)[0].partition(" of ")[0]
    assert int(count) > 100
    pixels = np.asarray(Image.open(paths[0]).convert("L")).astype(np.uint16)
    Image.fromarray(pixels * 16).save(tmp_path / "twelve.png")
    (text,) = found(known, tmp_path / "twelve.png", form)
    assert "12-bit data" in text
