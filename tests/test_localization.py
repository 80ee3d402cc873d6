"""Figures of anomaly maps, against scikit-learn, SciPy and counting by hand."""

import json
import shutil

import numpy as np
import pytest
import run_factory
import scipy.ndimage
import sklearn.metrics
from PIL import Image

import dpa_jax
from dpa_jax.data import Preprocessing, load
from dpa_jax.datasets import from_manifest
from dpa_jax.errors import DpaError
from dpa_jax.scoring import localization

# One image of five pixels in a row, two of them abnormal, apart from each other, so
# that they are two regions of one pixel.
MAPS = np.array([[[0.9, 0.8, 0.7, 0.2, 0.1]]])
MASKS = np.array([[[True, False, False, True, False]]])


def drawn(rng, images=6, size=16):
    """Blobs, and maps that are higher in them, with many equal values."""
    noise = scipy.ndimage.gaussian_filter(
        rng.normal(size=(images, size, size)), (0, 2, 2)
    )
    masks = noise > 0.2
    masks[0] = False
    maps = np.round(masks + rng.normal(size=masks.shape), 1).astype(np.float32)
    return maps, masks


def test_aupro_by_hand():
    # from 0.9 on: no false positives, one of two regions: overlap 1/2; then 0.8: a
    # third of the normal pixels, overlap still 1/2. To a rate of 0.3 it is 1/2.
    assert localization.evaluate(MAPS, MASKS)["aupro"] == pytest.approx(0.5)


def test_aupro_is_interpolated_at_its_limit():
    # the second region is found together with the first false positive of two
    maps = np.array([[[0.9, 0.5, 0.5, 0.1]]])
    masks = np.array([[[True, False, True, False]]])
    # overlap 1/2 at 0, 1 at 1/2: at 0.3 it is 1/2 + 0.3
    expected = (0.5 + 0.8) / 2
    assert localization.evaluate(maps, masks)["aupro"] == pytest.approx(expected)


def by_thresholds(maps, masks):
    """Computes AUPRO region by region at each threshold, as it is defined."""
    points = [(0.0, 0.0)]
    regions = []
    for i, mask in enumerate(masks):
        parts, count = scipy.ndimage.label(mask, np.ones((3, 3)))
        regions += [(i, parts == part) for part in range(1, count + 1)]
    for threshold in np.unique(maps)[::-1]:
        above = maps >= threshold
        overlap = np.mean([above[i][region].mean() for i, region in regions])
        points.append((above[~masks].mean(), overlap))
    rate, overlap = np.array(points).T
    # a fine grid, on which the curve is taken as linear between thresholds
    grid = np.linspace(0, 0.3, 300_001)
    return np.interp(grid, rate, overlap).mean(), len(regions)


def test_aupro_by_thresholds_and_regions(rng):
    maps, masks = drawn(rng)
    expected, regions = by_thresholds(maps, masks)
    found = localization.evaluate(maps, masks)
    assert found["aupro"] == pytest.approx(expected, abs=1e-5)
    assert found["regions"] == regions > 6


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, 0.0)])
def test_extremes(sign, expected, rng):
    _, masks = drawn(rng)
    found = localization.evaluate(sign * masks.astype(float), masks)
    assert found["pixel_roc_auc"] == expected
    assert found["aupro"] == pytest.approx(expected)


def test_pixel_roc_auc_is_that_of_scikit_learn(rng):
    maps, masks = drawn(rng)
    expected = sklearn.metrics.roc_auc_score(masks.ravel(), maps.ravel())
    found = localization.evaluate(maps, masks)["pixel_roc_auc"]
    assert found == pytest.approx(expected)


def test_best_dice_is_the_best_f1_score_of_all_thresholds(rng):
    maps, masks = drawn(rng)
    scores = {
        threshold: sklearn.metrics.f1_score(
            masks.ravel(), (maps >= threshold).ravel(), zero_division=0
        )
        for threshold in np.unique(maps)
    }
    best = max(scores, key=scores.get)
    found = localization.evaluate(maps, masks)
    assert found["best_dice"] == pytest.approx(scores[best])
    assert found["best_dice_threshold"] == best


def test_means_inside_and_outside_are_averaged_over_images_with_a_mask():
    maps = np.stack([MAPS[0], MAPS[0] + 1, MAPS[0] + 5])
    masks = np.stack([MASKS[0], MASKS[0], np.zeros_like(MASKS[0])])
    found = localization.evaluate(maps, masks)
    assert found["map_mean_inside"] == pytest.approx((0.9 + 0.2) / 2 + 0.5)
    assert found["map_mean_outside"] == pytest.approx((0.8 + 0.7 + 0.1) / 3 + 0.5)
    assert (found["masked_images"], found["regions"]) == (2, 4)


def test_pixels_that_touch_at_a_corner_are_one_region():
    masks = np.array([[[True, False], [False, True]]])
    assert localization.evaluate(np.zeros((1, 2, 2)), masks)["regions"] == 1


@pytest.mark.parametrize("value", [False, True])
def test_pixels_of_one_kind_are_refused(value):
    masks = np.full((1, 2, 2), value)
    with pytest.raises(DpaError, match="of 4 pixels of the masks are abnormal"):
        localization.evaluate(np.zeros((1, 2, 2)), masks)


def test_maps_that_are_not_finite_are_refused():
    with pytest.raises(DpaError, match="not finite"):
        localization.evaluate(np.where(MASKS, np.nan, MAPS), MASKS)


def test_masks_are_cut_and_thinned_to_the_maps():
    masks = np.zeros((1, 12, 12), bool)
    masks[0, 2:6, 2:4] = True  # the upper left of the centre of 8
    found = localization.fit(masks, 8, 4)
    assert found[0].tolist() == [
        [True, False, False, False],
        [True, False, False, False],
        [False] * 4,
        [False] * 4,
    ]
    np.testing.assert_array_equal(localization.fit(masks, 12, 12), masks)


def test_a_line_has_the_figures():
    line = localization.describe(localization.evaluate(MAPS, MASKS))
    assert line == (
        "pixels: ROC AUC 0.6667, AUPRO 0.5000 (to a false positive rate of 0.3), best "
        "Dice 0.6667 (threshold 0.9, chosen on these masks); mean of the maps 0.55 "
        "inside the masks, 0.5333 outside; 2 regions in 1 images"
    )


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A manifest of normal and abnormal test images, of which two have masks."""
    folder = tmp_path_factory.mktemp("masked")
    run_factory.write_folder(folder, 5, seed=7)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 2:7] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    rows = ["00.png,0,", "01.png,0,", "02.png,1,mask.png", "03.png,1,mask.png"]
    (folder / "set.csv").write_text("\n".join(["path,label,mask", *rows, "04.png,1,"]))
    return folder / "set.csv"


def test_where_there_are_masks_the_maps_are_measured(trained, masked, tmp_path):
    code, text, error = run_factory.call(
        *("evaluate", f"--workdir={trained}", f"--test={masked}"), f"--out={tmp_path}/o"
    )
    assert code == 0, error
    found = json.loads((tmp_path / "o" / "metrics.json").read_text())["pixels"]
    assert (found["images"], found["images_without_mask"]) == (4, 1)
    assert (found["masked_images"], found["regions"]) == (2, 2)
    assert localization.describe(found) in text
    images = load(masked, Preprocessing(1, 16))
    maps = dpa_jax.load(trained).maps(images.images[:4])
    masks = np.zeros(maps.shape, bool)
    masks[2:, 4:9, 2:7] = True
    expected = sklearn.metrics.roc_auc_score(masks.ravel(), maps.ravel())
    assert found["pixel_roc_auc"] == pytest.approx(expected)
    assert found["map_mean_inside"] == pytest.approx(maps[masks].mean(), rel=1e-5)


def test_masks_of_a_tfds_data_set_are_measured_alike(trained, masked, tmp_path):
    from_manifest.prepare(str(masked), "masked", tmp_path / "data", 1)
    run = shutil.copytree(trained, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["data_dir"] = str(tmp_path / "data")
    (run / "config.json").write_text(json.dumps(config))
    found = []
    for test in (masked, "tfds:masked:train"):
        out = tmp_path / f"out{len(found)}"
        command = ("evaluate", f"--workdir={run}", f"--test={test}", f"--out={out}")
        assert run_factory.call(*command)[0] == 0
        found.append(json.loads((out / "metrics.json").read_text())["pixels"])
    assert found[0] == found[1]


def test_masks_of_abnormal_images_alone_are_enough(trained, tmp_path):
    normal = run_factory.write_folder(tmp_path / "normal", 2, seed=7)
    run_factory.write_folder(tmp_path, 1, seed=8)
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / "mask.png")
    (tmp_path / "set.csv").write_text("path,mask\n00.png,mask.png\n")
    code, _, error = run_factory.call(
        *("evaluate", f"--workdir={trained}", f"--normal={normal}"),
        *(f"--abnormal={tmp_path}/set.csv", f"--out={tmp_path}/out"),
    )
    assert code == 0, error
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["pixels"]
    assert (found["images"], found["regions"]) == (3, 1)
