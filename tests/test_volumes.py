"""NIfTI volumes as slices."""

import gzip
import sys

import numpy as np
import pytest
import run_factory
from PIL import Image

from dpa_jax.cli.verbs import score
from dpa_jax.data import Preprocessing, load, masks, volumes
from dpa_jax.errors import DpaError, UsageError

nibabel = pytest.importorskip("nibabel", reason="the nifti extra is missing")

AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])  # right, anterior, superior
FORM = Preprocessing(1, 8)


def save(path, values, affine=AFFINE):
    """Writes voxels `[right, anterior, superior]`; returns the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return str(path)


def corners():
    """A volume of 100 but for four of its corners."""
    values = np.full((6, 7, 8), 100, np.int16)
    values[0, 0, 0], values[0, 0, 7] = 0, 50
    values[5, 0, 0], values[0, 6, 0] = 200, 255
    return values


def ramp(size=8):
    return np.arange(size**3, dtype=np.float32).reshape((size,) * 3)


@pytest.mark.parametrize(
    ("plane", "shape", "lower_left", "lower_right", "upper_left", "last"),
    [
        # of the first slice, and the lower left of the last one
        ("axial", (8, 7, 6), 0, 200, 255, 50),
        ("coronal", (7, 8, 6), 0, 200, 50, 255),
        ("sagittal", (6, 8, 7), 0, 255, 50, 200),
    ],
)
def test_slices_lie_as_they_are_documented(
    tmp_path, monkeypatch, plane, shape, lower_left, lower_right, upper_left, last
):
    monkeypatch.setattr(volumes, "WINDOW", (0, 100))
    path = save(tmp_path / "scan.nii.gz", corners())
    assert volumes.shape(path, plane) == shape
    found = volumes.read(path, plane)
    assert found.shape == shape and found.dtype == np.uint8
    first = found[0]
    assert first[-1, 0] == lower_left and first[-1, -1] == lower_right
    assert first[0, 0] == upper_left and found[-1, -1, 0] == last


@pytest.mark.parametrize("flip", [(-1, 1, 1), (1, -1, -1)])
def test_another_order_of_the_voxels_gives_the_same_slices(tmp_path, flip):
    expected = volumes.read(save(tmp_path / "a.nii", corners()), "axial")
    turned = corners()[tuple(slice(None, None, step) for step in flip)]
    turned = turned.transpose(2, 0, 1)
    affine = np.zeros((4, 4))
    affine[0, 1], affine[1, 2], affine[2, 0], affine[3, 3] = *flip, 1
    path = save(tmp_path / "b.nii.gz", turned, affine)
    np.testing.assert_array_equal(volumes.read(path, "axial"), expected)


def test_the_window_is_of_the_whole_volume(tmp_path, rng):
    values = rng.normal(100, 20, (9, 9, 9)).astype(np.float32)
    low, high = np.percentile(values, (0.5, 99.5))
    found = volumes.read(save(tmp_path / "x.nii", values), "axial")
    expected = np.clip((values[:, ::-1, 4].T - low) / (high - low), 0, 1) * 255
    assert np.abs(found[4] - expected).max() <= 0.5 + 1e-3
    assert found.min() == 0 and found.max() == 255


def test_a_volume_is_a_group_of_slices(tmp_path):
    path = save(tmp_path / "scan.nii.gz", ramp())
    found = load(path, FORM)
    np.testing.assert_array_equal(found.images[..., 0], volumes.read(path, "axial"))
    assert found.groups == [path] * 8
    assert found.paths[3] == f"{path}/003"
    assert found.columns["slice"].tolist() == list(range(8))


def test_the_plane_is_part_of_preprocessing(tmp_path):
    path = save(tmp_path / "scan.nii.gz", ramp())
    found = load(path, Preprocessing(1, 8, plane="coronal"))
    np.testing.assert_array_equal(found.images[..., 0], volumes.read(path, "coronal"))
    with pytest.raises(UsageError, match="axial, coronal or sagittal, not 'oblique'"):
        Preprocessing(1, 8, plane="oblique")


def test_volumes_lie_among_images_in_a_folder(tmp_path):
    image = np.full((8, 8), 7, np.uint8)
    Image.fromarray(image).save(tmp_path / "b.png")
    for name in ("a.nii", "c.nii.gz"):
        save(tmp_path / name, ramp())
    found = load(tmp_path, FORM)
    assert len(found) == 17 and found.images[8].max() == 7
    assert found.groups[7:10] == [
        str(tmp_path / n) for n in ("a.nii", "b.png", "c.nii.gz")
    ]


def test_volumes_are_scored_by_slice_under_distinct_names(tmp_path):
    paths = [save(tmp_path / name, ramp()) for name in ("a.nii", "b.nii.gz")]
    found = load(paths, FORM)
    names = score._names(found.paths)
    assert len(found) == len(set(names)) == 16
    assert score._names(found.paths[:8])[3] == "003"
    assert names[8] == "b.nii.gz_000"


def manifest(tmp_path, text):
    path = tmp_path / "set.csv"
    path.write_text(text)
    return path


def test_a_manifest_labels_and_groups_volumes(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        save(tmp_path / name, ramp())
    text = "path,label,group,age\na.nii.gz,0,p1,40\nb.nii.gz,1,p2,50\n"
    found = load(manifest(tmp_path, text), FORM)
    assert found.labels.tolist() == [0] * 8 + [1] * 8
    assert found.groups == ["p1"] * 8 + ["p2"] * 8
    assert found.columns["age"].tolist() == [40] * 8 + [50] * 8


def test_a_column_slice_beside_volumes_is_refused(tmp_path):
    save(tmp_path / "a.nii", ramp())
    with pytest.raises(UsageError, match="may have no column slice"):
        load(manifest(tmp_path, "path,slice\na.nii,1\n"), FORM)


def masked(tmp_path, mask):
    save(tmp_path / "a.nii.gz", ramp())
    save(tmp_path / "b.nii.gz", ramp())
    save(tmp_path / "seg.nii.gz", mask)
    text = "path,label,mask\na.nii.gz,0,\nb.nii.gz,1,seg.nii.gz\n"
    return load(manifest(tmp_path, text), FORM)


def test_the_mask_of_a_volume_is_a_volume(tmp_path):
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[5, 6, 2] = 4
    found, known = masks.load(masked(tmp_path, mask), FORM)
    assert known.all() and found.sum() == 1
    # the second volume, slice 2, a row from the top, on the right
    assert np.argwhere(found)[0].tolist() == [8 + 2, 1, 5]


def test_a_mask_of_another_shape_is_refused(tmp_path):
    images = masked(tmp_path, np.zeros((8, 8, 9), np.uint8))
    with pytest.raises(DpaError, match=r"seg.nii.gz is a mask of \(9, 8, 8\) voxels"):
        masks.load(images, FORM)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        ("x.png", "a.nii.gz", "a.nii.gz is the mask of a volume, which .*x.png is not"),
        ("a.nii.gz", "x.png", "x.png is the mask of an image, which .*/000 is not"),
    ],
)
def test_masks_of_images_are_not_those_of_volumes(tmp_path, image, mask, message):
    save(tmp_path / "a.nii.gz", ramp())
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "x.png")
    images = load(manifest(tmp_path, f"path,label,mask\n{image},1,{mask}\n"), FORM)
    with pytest.raises(DpaError, match=message):
        masks.load(images, FORM)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 4, 4), np.float32), "percentiles 0.5 and 99.5 are both 0"),
        (np.full((4, 4, 4), np.nan, np.float32), "NaN or infinite voxels"),
        (np.zeros((4, 4, 4, 3), np.float32), "4x4x4x3 voxels; three dimensions"),
        (np.zeros((4, 4, 4), np.complex64), "voxels of complex64, not numbers"),
        (np.zeros((4, 4), np.float32), "4x4 voxels; three dimensions"),
    ],
)
def test_volumes_that_cannot_be_used(tmp_path, values, message):
    path = save(tmp_path / "x.nii.gz", values)
    with pytest.raises(DpaError, match=f"x.nii.gz.*{message}"):
        load(path, FORM)


def test_a_trailing_axis_of_one_is_no_dimension(tmp_path):
    assert len(load(save(tmp_path / "x.nii", ramp()[..., None]), FORM)) == 8


@pytest.mark.parametrize("length", [0, 100, 700])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_damaged_volumes_are_named_or_left_out(tmp_path, rng, suffix, length):
    noise = rng.normal(size=(8, 8, 8)).astype(np.float32)
    good = save(tmp_path / "v" / f"a{suffix}", noise)
    bad = tmp_path / "v" / f"b{suffix}"
    with open(good, "rb") as file:
        bad.write_bytes(file.read()[:length])
    with pytest.raises(DpaError, match=f"b{suffix}.*: not a readable NIfTI volume"):
        load(tmp_path / "v", FORM)
    found = load(tmp_path / "v", FORM, skip_corrupt=True)
    assert len(found) == 8
    assert all(str(bad) in skipped.path for skipped in found.skipped)


def test_a_volume_of_too_many_voxels_is_not_read(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((2048, 2048, 2048))
    header["magic"], header["vox_offset"] = b"n+1", 352
    with gzip.open(tmp_path / "x.nii.gz", "wb") as file:
        file.write(header.binaryblock + bytes(4))
    with pytest.raises(DpaError, match="at most 1,073,741,824 voxels"):
        load(tmp_path / "x.nii.gz", FORM)


def test_without_nibabel_says_what_to_install(tmp_path, monkeypatch):
    path = save(tmp_path / "x.nii", ramp())
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(
        DpaError, match=r"x.nii is NIfTI.*pip install 'dpa_jax\[nifti\]'"
    ):
        load(path, FORM)


def test_a_manifest_of_volumes_is_no_tfds_data_set(tmp_path):
    save(tmp_path / "x.nii", ramp())
    table = manifest(tmp_path, "path\nx.nii\n")
    code, _, error = run_factory.call(
        *("prepare", "manifest", table, "--name=mri_volumes", "--channels=1"),
        f"--data_dir={tmp_path}",
    )
    assert code == 2 and "x.nii; use such a manifest as it is" in error
