"""Reading slides by scale, with each library that is installed."""

import importlib.util

import numpy as np
import pytest
import slide_factory

from dpa_jax.errors import DpaError, UsageError
from dpa_jax.slides import reader

BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(name) is None, reason=f"{name} is not installed"
        ),
    )
    for name in ("openslide", "tiffslide")
]
slide_factory.need_reader()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 255, (700, 900, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def path(pixels, tmp_path_factory):
    return slide_factory.write(tmp_path_factory.mktemp("slides") / "a.tif", pixels)


@pytest.mark.parametrize("backend", BACKENDS)
def test_level_0_is_read_pixel_by_pixel(path, pixels, backend):
    with reader.open_slide(path, backend=backend) as slide:
        assert slide.size == (900, 700)
        assert slide.mpp == pytest.approx(0.25)
        found = slide.read(301, 202, 50, 40, (50, 40))
    assert (found == pixels[202:242, 301:351]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_coarser_region_comes_from_the_nearest_finer_level(path, pixels, backend):
    with reader.open_slide(path, backend=backend) as slide:
        found = slide.read(128, 256, 64, 64, (32, 32))
    # The factory's second level takes every other pixel, so this tells it apart from
    # an average of the first.
    assert (found == pixels[256:320:2, 128:192:2]).all()


def test_size_between_levels_is_resized_from_the_finer(path):
    with reader.open_slide(path) as slide:
        found = slide.read(0, 0, 96, 96, (32, 32))
        finer = slide.read(0, 0, 96, 96, (48, 48))
    assert abs(found.mean() - finer.mean()) < 1
    assert found.std() < finer.std()


@pytest.mark.parametrize("levels", [1, 3])
def test_overview_is_the_mean_of_blocks_read_one_after_the_other(
    levels, tmp_path, monkeypatch
):
    ramp = np.add.outer(np.arange(500), np.arange(600)) // 8
    image = np.repeat(ramp[..., None], 3, 2).astype(np.uint8)
    path = slide_factory.write(tmp_path / "a.tif", image, levels=levels)
    monkeypatch.setattr(reader, "_BLOCK", 128)
    with reader.open_slide(path) as slide:
        found = slide.overview(16)
    expected = image[:496, :592, 0].reshape(31, 16, 37, 16).mean((1, 3))
    assert found.shape == (31, 37, 3)
    assert np.abs(found[..., 0] - expected).max() <= 1


@pytest.mark.parametrize(
    ("mpp", "scale"),
    [(0.25, 1), (0.243, 1), (0.2276, 1), (0.5, 0.5), (0.46, 0.5), (0.121, 2)],
)
def test_scanners_magnifications_are_nominal(mpp, scale):
    assert reader.x40_scale(mpp) == scale


def test_resolution_between_magnifications_is_exact():
    assert reader.x40_scale(0.35) == pytest.approx(0.25 / 0.35)


def test_slide_without_resolution_needs_mpp(pixels, tmp_path):
    path = slide_factory.write(tmp_path / "bare.tif", pixels, mpp=None)
    with reader.open_slide(path) as slide:
        with pytest.raises(DpaError, match=r"bare\.tif does not say .* --mpp"):
            _ = slide.scale
    with reader.open_slide(path, mpp=0.5) as slide:
        assert slide.scale == 0.5


@pytest.mark.parametrize("mpp", [0, -1, 1000, float("nan")])
def test_impossible_mpp_is_refused(path, mpp):
    with pytest.raises(UsageError, match="--mpp"), reader.open_slide(path, mpp=mpp):
        pass


def test_region_beyond_the_slide_is_refused(path):
    with reader.open_slide(path) as slide:
        with pytest.raises(DpaError, match=r"a\.tif: the region 880,0,64,64"):
            slide.read(880, 0, 64, 64, (64, 64))


def test_missing_slide_is_named(tmp_path):
    with pytest.raises(DpaError, match=r"there is no slide .*none\.tif"):
        with reader.open_slide(tmp_path / "none.tif"):
            pass


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keep", [0, 0.3, 0.97])
def test_truncated_slide_is_named(path, tmp_path, keep, backend):
    content = path.read_bytes()
    broken = tmp_path / "broken.tif"
    broken.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DpaError, match=r"broken\.tif cannot be .*truncated"):
        with reader.open_slide(broken, backend=backend) as slide:
            slide.read(0, 0, *slide.size, slide.size)
            slide.overview(8)
