"""TFDS data sets made of manifests."""

import pathlib

import numpy as np
import pytest
import run_factory
import tensorflow_datasets as tfds
from PIL import Image

from dpa_jax.data import Preprocessing, load, masks
from dpa_jax.datasets import from_manifest
from dpa_jax.errors import DpaError, UsageError

TABLE = """path,label,split,group,mask,findings,age,view
0.png,normal,train,p1,,,40,PA
1.png,normal,test,p2,,,50,AP
2.png,abnormal,test,p3,m2.png,Mass+Nodule,60,PA
3.png,abnormal,test,p3,,Nodule,70,PA
"""
WHOLE = Preprocessing(1, 8, resize=8)


@pytest.fixture
def listed(tmp_path, rng):
    """A manifest of four images of different sizes, of which one has a mask."""
    for i in range(4):
        pixels = rng.integers(0, 256, (10 + i, 12), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    mask = np.zeros((12, 12), np.uint8)
    mask[3:9, 2:8] = 1
    Image.fromarray(mask).save(tmp_path / "m2.png")
    (tmp_path / "set.csv").write_text(TABLE)
    return tmp_path / "set.csv"


def prepare(listed, **options):
    """Prepares the manifest and returns the folder of TFDS data sets."""
    folder = listed.parent / "data"
    options = {"name": "mine", "channels": 1, **options}
    from_manifest.prepare(str(listed), data_dir=folder, **options)
    return str(folder)


def assert_equal(found, expected):
    """Checks that two sources give the same images, and know the same of them."""
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.groups == expected.groups
    for name in ("findings", "view"):
        assert found.columns[name] == expected.columns[name]
    np.testing.assert_array_equal(found.columns["age"], expected.columns["age"])


@pytest.mark.parametrize("form", [WHOLE, Preprocessing(1, 8, crop=8)])
def test_a_data_set_gives_what_its_manifest_gives(listed, form):
    folder = prepare(listed)
    found = load("tfds:mine:test", form, data_dir=folder)
    assert found.paths == ["1.png", "2.png", "3.png"]
    assert_equal(found, load(f"{listed}:test", form))


def test_images_can_be_stored_small(listed):
    form = Preprocessing(1, 8)
    found = load("tfds:mine:test", form, data_dir=prepare(listed, size=8))
    assert_equal(found, load(f"{listed}:test", form))


def test_what_small_images_cannot_give_is_refused(listed):
    folder = prepare(listed, size=8)
    with pytest.raises(UsageError, match="cannot be made"):
        load("tfds:mine:test", Preprocessing(1, 16, resize=32), data_dir=folder)


def test_colour_is_kept(listed):
    colour = np.zeros((10, 12, 3), np.uint8)
    colour[:, :, 1] = 200
    Image.fromarray(colour).save(listed.parent / "1.png")
    found = load(
        "tfds:mine:test", Preprocessing(3, 8), data_dir=prepare(listed, channels=3)
    )
    assert found.images[0, 0, 0].tolist() == [0, 200, 0]
    assert np.ptp(found.images[1], axis=-1).max() == 0  # a grey one


@pytest.mark.parametrize("size", [0, 8])
def test_masks_are_those_of_the_manifest(listed, size):
    form = WHOLE if size == 0 else Preprocessing(1, 8)
    folder = prepare(listed, size=size)
    found = load("tfds:mine:test", form, data_dir=folder)
    stored, known = masks.load(found, form, "tfds:mine:test", folder)
    expected = masks.load(load(f"{listed}:test", form), form)
    np.testing.assert_array_equal(stored, expected[0])
    assert stored[1].any() and not stored[[0, 2]].any()
    # a normal image needs no mask, the abnormal one without is not known
    assert known.tolist() == expected[1].tolist() == [True, True, False]


def test_without_a_column_split_all_is_train(listed):
    listed.write_text("path,class\n0.png,cat\n1.png,dog\n")
    lines = from_manifest.prepare(str(listed), "mine", listed.parent / "data", 1)
    assert lines[0] == "train: 2 images"
    found = load("tfds:mine:train", WHOLE, data_dir=str(listed.parent / "data"))
    assert found.labels is None and found.groups is None
    assert found.columns["class"] == ["cat", "dog"]


def test_a_data_set_without_masks_has_none(listed):
    listed.write_text("path,label\n0.png,normal\n1.png,abnormal\n")
    folder = prepare(listed)
    found = load("tfds:mine:train", WHOLE, data_dir=folder)
    assert masks.load(found, WHOLE, "tfds:mine:train", folder) is None


def test_a_column_class_stands_beside_labels(listed):
    listed.write_text("path,label,class\n0.png,normal,cat\n1.png,abnormal,dog\n")
    found = load("tfds:mine:train", WHOLE, data_dir=prepare(listed))
    assert found.labels.tolist() == [0, 1]
    assert found.columns["class"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("My-Set", "use small letters"), ("mnist", "TFDS has a data set of this name")],
)
def test_names_that_cannot_be_used(listed, name, message):
    with pytest.raises(UsageError, match=f"--name={name}: {message}"):
        prepare(listed, name=name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,split\n0.png,all\n", "split cannot be called 'all'"),
        ("path,split\n0.png,a b\n", "split cannot be called 'a b'"),
        ("path,image\n0.png,1\n", "a column may not be called image"),
        ("path,a/b\n0.png,1\n", "a column may not be called a/b"),
    ],
)
def test_tables_that_cannot_be_used(listed, text, message):
    listed.write_text(text)
    with pytest.raises(UsageError, match=message):
        prepare(listed)


def test_a_data_set_is_never_replaced(listed):
    prepare(listed)
    with pytest.raises(DpaError, match="mine.*is there already; delete it"):
        prepare(listed)


def test_a_mask_of_another_size_is_refused_and_nothing_left(listed):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(listed.parent / "m2.png")
    with pytest.raises(DpaError, match="m2.png is a mask of 9x9 .* image has 12x12"):
        prepare(listed)
    assert not list((listed.parent / "data").rglob("*.array_record*"))


def test_the_verb_prepares_what_tfds_reads_without_our_code(listed):
    folder = listed.parent / "data"
    code, text, _ = run_factory.call(
        *("prepare", "manifest", listed, "--name=mine", "--channels=1"),
        f"--data_dir={folder}",
    )
    assert code == 0
    assert text.splitlines()[:2] == [
        "train: 1 images, 1 normal, 0 abnormal, 1 groups",
        "test: 3 images, 1 normal, 2 abnormal, 2 groups",
    ]
    source = tfds.data_source("mine", split="test", data_dir=folder)
    assert source[1]["image"].shape == (12, 12, 1)
    assert source[1]["mask"][3, 2, 0] == 255


def test_a_damaged_file_of_a_data_set_is_noticed_or_not_needed(listed):
    folder = pathlib.Path(prepare(listed))
    expected = load("tfds:mine:test", WHOLE, data_dir=str(folder))
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        for damaged in (b"", content[: len(content) // 2], b"{" + content):
            path.write_bytes(damaged)
            try:
                found = load("tfds:mine:test", WHOLE, data_dir=str(folder))
            except DpaError as error:
                assert "mine" in str(error), path
            else:
                assert_equal(found, expected)
        path.write_bytes(content)
