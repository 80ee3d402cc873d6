"""Tissue masks and the grid of cells in them."""

import sys

import numpy as np
import pytest
import slide_factory

from dpa_jax.errors import DpaError
from dpa_jax.slides import reader, tissue

slide_factory.need_reader()


def open_picture(tmp_path, image, **options):
    path = slide_factory.write(tmp_path / "a.tif", image, **options)
    return reader.open_slide(path)


def test_mask_is_tissue_without_specks_and_border(tmp_path):
    boxes = [
        (512, 512, 1024, 768),  # mask pixels 2..5 by 2..4
        (2304, 1024, 256, 256),  # one mask pixel: opened away
        (0, 2048, 768, 768),  # at the border
    ]
    image = slide_factory.picture(2816, 3072, boxes)
    with open_picture(tmp_path, image) as slide:
        mask = tissue.tissue_mask(slide)
    expected = np.zeros((12, 11), bool)
    expected[2:5, 2:6] = True
    assert (mask == expected).all()


def test_mask_follows_the_scale_of_the_slide(tmp_path):
    image = slide_factory.picture(1408, 1280, [(256, 256, 512, 384)])
    with open_picture(tmp_path, image, mpp=0.5) as slide:
        mask = tissue.tissue_mask(slide)
    expected = np.zeros((10, 11), bool)
    expected[2:5, 2:6] = True
    assert (mask == expected).all()


@pytest.mark.parametrize("value", [None, 0])
def test_empty_slide_is_named(tmp_path, value):
    image = slide_factory.picture(1536, 1536, [])
    if value is not None:
        image[:] = value
    with open_picture(tmp_path, image) as slide:
        with pytest.raises(DpaError, match=r"a\.tif: no tissue"):
            tissue.tissue_mask(slide)


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with open_picture(tmp_path, slide_factory.picture(512, 512, [])) as slide:
        with pytest.raises(DpaError, match=r"tissue needs .*'dpa_jax\[wsi\]'"):
            tissue.tissue_mask(slide)


def test_faint_shade_is_no_tissue(tmp_path):
    image = np.full((1536, 2048, 3), 245, np.uint8)
    image[512:1280, 512:1536] = 241
    with open_picture(tmp_path, image) as slide:
        with pytest.raises(DpaError, match="no tissue"):
            tissue.tissue_mask(slide)


def test_slide_smaller_than_a_mask_pixel_is_named(tmp_path):
    image = slide_factory.picture(200, 100, [])
    with open_picture(tmp_path, image, levels=1) as slide:
        with pytest.raises(DpaError, match=r"200x100 pixels; at least 256"):
            tissue.tissue_mask(slide)


def test_cells_lie_wholly_in_tissue():
    mask = np.zeros((7, 10), bool)
    mask[0:6, 3:9] = True
    mask[5, 8] = False  # spoils one cell
    expected = [[768, 0], [1536, 0], [768, 768]]
    assert tissue.tissue_cells(mask, 1).tolist() == expected
    assert tissue.tissue_cells(mask, 0.5).tolist() == [[384, 0], [768, 0], [384, 384]]
