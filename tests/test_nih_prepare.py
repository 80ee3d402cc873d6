"""From files as distributed to prepared data sets."""

import csv
import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import nih_factory
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dpa_jax.data import labels, tfds_source
from dpa_jax.datasets import nih_cache, nih_collect, nih_prepare, nih_protocols
from dpa_jax.errors import DpaError, UsageError

NAMES = nih_factory.NAMES
TABLES = {"flat": "Data_Entry_2017.csv", "mixed": "Data_Entry_2017.csv"}
COUNTS = {  # normal and abnormal, counted by hand in the factory's table and lists
    "subset_64": {"train": (2, 0), "test": (2, 2), "validation": (1, 1)},
    "pa_64": {"train": (5, 0), "validation": (0, 2), "test": (4, 2)},
    "ap_64": {"train": (3, 0), "validation": (0, 2), "test": (2, 4)},
    "ap_64_equalized": {"train": (3, 0), "validation": (0, 2), "test": (2, 4)},
    "all_64": {"train": (8, 0), "validation": (0, 4), "test": (6, 6)},
}


@pytest.fixture
def source(tmp_path):
    """A folder with all images and tables in one plain layout."""
    nih_factory.write_tables(tmp_path / "source")
    nih_factory.write_images(tmp_path / "source")
    return tmp_path / "source"


def examples(data_dir, name, split):
    """Returns the examples of a split as TFDS alone reads them."""
    return list(
        tfds.data_source(
            f"nih_chest_xray14/{name}", split=split, data_dir=data_dir, download=False
        )
    )


def prepare_all(source, data_dir, **options):
    """Prepares every form at 64 px, the subset by lists of images that are there."""
    lists = nih_factory.write_subset(data_dir.parent / "lists")
    return nih_prepare.prepare(source, data_dir, "all", lists, **options)


def contents(data_dir):
    """Returns every file below a folder with its bytes."""
    return {
        str(path.relative_to(data_dir)): path.read_bytes()
        for path in sorted(data_dir.rglob("*"))
        if path.is_file() and path.suffix != ".lock"  # which names its process
    }


def data_sets(data_dir):
    """Returns the names of the data sets, and of anything else but locks."""
    names = os.listdir(data_dir / "nih_chest_xray14")
    return sorted(name for name in names if not name.endswith(".lock"))


def rewrite(path, names):
    """Puts a smaller image in the place of each."""
    for name in names:
        (path / name).write_bytes(nih_factory.png(name, size=512))


@pytest.mark.parametrize("layout", nih_factory.LAYOUTS)
def test_every_layout_is_prepared_alike(tmp_path, layout):
    root, data_dir = tmp_path / "source", tmp_path / "data"
    old = layout in TABLES
    nih_factory.write_tables(
        root,
        TABLES.get(layout, "Data_Entry_2017_v2020.csv"),
        "Patient Gender" if old else "Patient Sex",
        "{:03d}Y" if old else "{}",
        "" if old else ".gz",
    )
    nih_factory.write_images(root, layout)
    made = nih_prepare.prepare(root, data_dir, "ap")
    assert made.problems == []
    assert made.counts == {name: COUNTS[name] for name in ("ap_64", "ap_64_equalized")}
    for name, splits in made.counts.items():
        for split, (normal, abnormal) in splits.items():
            rows = examples(data_dir, name, split)
            assert [row["label"] for row in rows] == [0] * normal + [1] * abnormal
            for row in rows:
                image = nih_factory.published(
                    row["image_id"].decode(), equalize=name.endswith("equalized")
                )
                np.testing.assert_array_equal(row["image"], image)


def test_an_example_holds_what_the_tables_say(tmp_path, source):
    nih_prepare.prepare(source, tmp_path / "data", "pa")
    first = examples(tmp_path / "data", "pa_64", "validation")[0]
    assert first["image"].dtype == np.uint8 and first["image"].shape == (64, 64, 1)
    boxes = first.pop("boxes")
    # of 300 pixels the crop has those from 38 to 262: its top is at (150 - 38) / 224
    np.testing.assert_allclose(
        boxes["box"], [[112 / 224, 37 / 224, 130.75 / 224, 74.5 / 224]], rtol=1e-6
    )
    assert boxes["finding"] == [nih_protocols.nih_metadata.FINDINGS.index("Mass")]
    del first["image"]
    assert first == {
        "label": 1,
        "findings": [9, 10],  # Mass and Nodule, of the fourteen in order
        "image_id": b"00000001_001.png",
        "patient_id": 1,
        "age": 58.0,
        "sex": 1,
        "view": 0,
        "follow_up": 1,
        "original_width": 2500,
        "original_height": 2049,
    }


def test_boxes_frame_the_finding_in_the_stored_image(tmp_path, source):
    """A white square, where a box says that there is one, is found by its box."""
    name, (x, y, width, height) = "00000001_001.png", (300, 700, 200, 100)
    pixels = np.zeros((1024, 1024), np.uint8)
    pixels[y : y + height, x : x + width] = 255
    Image.fromarray(pixels).save(source / "images" / name)
    table = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    table += f"{name},Mass,{x},{y},{width},{height},,,\n"
    table += f"{name},Nodule,0,0,100,1024,,,\n"  # in the margin that is cropped
    table += f"{name},Nodule,0,300,1024,600,,,\n"  # over both edges
    (source / "BBox_List_2017.csv").write_text(table)
    for protocol, form in (("pa", "pa_64"), ("native", "native")):
        nih_prepare.prepare(source, tmp_path / "data", protocol)
        row = examples(tmp_path / "data", form, "validation")[0]
        boxes, size = row["boxes"]["box"], row["image"].shape[0]
        rows, columns = np.nonzero(row["image"][:, :, 0] > 127)
        edges = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        np.testing.assert_allclose(size * boxes[0], edges, atol=0.6)
        assert len(boxes) == (2 if form == "pa_64" else 3)
        assert (boxes[-1][1], boxes[-1][3]) == (0, 1)


def test_custom_lists_decide_over_the_table(tmp_path, source):
    lists = nih_factory.write_lists(
        tmp_path / "lists",
        {
            "normal/train": [NAMES[3], NAMES[1]],
            "normal/test": [NAMES[20]],
            "anomaly/test": [NAMES[12]],
        },
    )
    nih_prepare.prepare(source, tmp_path / "data", "custom", lists)
    rows = examples(tmp_path / "data", "custom_64", "train")
    assert [row["image_id"].decode() for row in rows] == [NAMES[3], NAMES[1]]
    assert [row["label"] for row in rows] == [0, 0]
    assert os.listdir(tmp_path / "data" / "nih_chest_xray14" / "custom_64") == ["2.0.0"]


def test_native_images_are_whole(tmp_path, source):
    nih_prepare.prepare(source, tmp_path / "data", "native")
    row = examples(tmp_path / "data", "native", "test")[0]
    with Image.open(source / "images" / row["image_id"].decode()) as image:
        whole = image.resize((300, 300), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(row["image"][:, :, 0], whole)


def test_the_published_preprocessing_byte_for_byte(tmp_path, shared):
    names = ["00000001_000.png", "00027426_000.png"]
    root = tmp_path / "source"
    nih_factory.write_tables(root)
    table = root / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("00000002_001.png", names[1]))
    for name, text in (("train_val", names), ("test", NAMES[-4:])):
        (root / f"{name}_list.txt").write_text("\n".join(text))
    (root / "images").mkdir()
    for name in names:
        real = shared / "data" / "nih_chest_xray14" / "images_512" / name
        (root / "images" / name).write_bytes(real.read_bytes())
    for protocol in ("pa", "ap", "native"):
        nih_prepare.prepare(
            root,
            tmp_path / "data",
            protocol,
            allow_missing=True,
            allow_resized=True,
        )
    expected = np.load(shared / "fixtures" / "nih_preprocessing.npz")
    for form, split, key in (
        ("pa_64", "train", f"{names[0]}/64"),
        ("ap_64", "train", f"{names[1]}/64"),
        ("ap_64_equalized", "train", f"{names[1]}/64_equalized"),
        ("native", "train[:1]", f"{names[0]}/300"),
        ("native", "train[1:]", f"{names[1]}/300"),
    ):
        (row,) = examples(tmp_path / "data", form, split)
        np.testing.assert_array_equal(row["image"][:, :, 0], expected[key])


def test_missing_images_stop_it_before_anything_is_decoded(tmp_path, source):
    for name in NAMES[1:8]:
        (source / "images" / name).unlink()
    with pytest.raises(DpaError) as error:
        prepare_all(source, tmp_path / "data")
    (report,) = (tmp_path / "data" / "nih_chest_xray14").glob("*/problems.csv")
    assert f"7 missing: {', '.join(NAMES[1:6])}, 2 more" in str(error.value)
    assert str(report) in str(error.value) and "--allow-missing" in str(error.value)
    rows = list(csv.DictReader(report.read_text().splitlines()))
    assert [row["name"] for row in rows] == NAMES[1:8]
    assert os.listdir(report.parent) == ["problems.csv"]


def test_what_is_wrong_is_reported_and_left_out_if_allowed(tmp_path, source):
    (source / "images" / NAMES[0]).unlink()
    whole = (source / "images" / NAMES[2]).read_bytes()
    (source / "images" / NAMES[2]).write_bytes(whole[: len(whole) // 2])
    rewrite(source / "images", NAMES[10:11])
    with pytest.raises(DpaError, match="1 missing"):
        nih_prepare.prepare(source, tmp_path / "data", "pa")
    made = nih_prepare.prepare(
        source, tmp_path / "data", "pa", allow_missing=True, allow_resized=True
    )
    assert made.counts["pa_64"] == {
        "train": (3, 0),
        "validation": (0, 2),
        "test": (4, 2),
    }
    kinds = [(problem.name, problem.kind) for problem in made.problems]
    assert kinds == [
        (NAMES[0], "missing"),
        (NAMES[2], "unreadable"),
        (NAMES[10], "size"),
    ]
    text = nih_prepare.describe(made)
    assert f"1 not 1024 x 1024 pixels: {NAMES[10]} (512 x 512)" in text
    assert f"1 unreadable: {NAMES[2]} (" in text
    assert data_sets(tmp_path / "data") == [".config", "pa_64"]
    folder = tmp_path / "data" / "nih_chest_xray14" / "pa_64" / "2.0.0"
    assert (folder / "problems.csv").is_file()


def test_a_dicom_named_png_says_what_it_is(tmp_path, source):
    pydicom = pytest.importorskip("pydicom.data", reason="the dicom extra is missing")
    image = pydicom.get_testdata_file("CT_small.dcm", download=False)
    shutil.copy(image, source / "images" / NAMES[0])
    with pytest.raises(DpaError, match=f"1 unreadable: {NAMES[0]} .DICOM in a file"):
        nih_prepare.prepare(source, tmp_path / "data", "pa")


def test_a_resized_mirror_is_allowed_without_hiding_gaps(tmp_path, source):
    for name in NAMES:
        (source / "images" / name).write_bytes(nih_factory.png(name, size=224))
    data_dir = tmp_path / "data"
    with pytest.raises(DpaError, match="13 not 1024 x 1024 .*224 x 224") as caught:
        nih_prepare.prepare(source, data_dir, "pa", allow_missing=True)
    assert "--allow-resized" in str(caught.value)
    (source / "images" / NAMES[0]).unlink()
    with pytest.raises(DpaError, match=f"1 missing: {NAMES[0]}"):
        nih_prepare.prepare(source, data_dir, "pa", allow_resized=True)
    (source / "images" / NAMES[0]).write_bytes(nih_factory.png(NAMES[0], size=224))
    made = nih_prepare.prepare(source, data_dir, "pa", allow_resized=True)
    assert made.counts["pa_64"]["train"] == (5, 0)
    with pytest.raises(DpaError, match="prepared from 13 images that were not 1024"):
        nih_prepare.prepare(source, data_dir, "pa", allow_missing=True)


def test_protocols_prepared_at_once_keep_apart(tmp_path, source):
    """One ends while another is at work, from the same files into the same folder."""
    made = []

    def other(done, total):
        if done == 1:
            made.append(nih_prepare.prepare(source, tmp_path / "data", "ap"))

    made.append(nih_prepare.prepare(source, tmp_path / "data", "pa", progress=other))
    assert made[0].counts["ap_64"]["train"] == (3, 0)
    rows = examples(tmp_path / "data", "pa_64", "train")
    for row in rows:
        image = nih_factory.published(row["image_id"].decode())
        np.testing.assert_array_equal(row["image"], image)
    expected = [".config", "ap_64", "ap_64_equalized", "pa_64"]
    assert data_sets(tmp_path / "data") == expected


def test_a_second_preparation_at_once_is_refused(tmp_path, source):
    """Of `all`, which the data set of `pa` is one of."""

    def other(done, total):
        if done == 1:
            prepare_all(source, tmp_path / "data")

    message = f"pa_64 is being prepared already, by process {os.getpid()} on "
    with pytest.raises(UsageError, match=message):
        nih_prepare.prepare(source, tmp_path / "data", "pa", progress=other)


@pytest.mark.parametrize("kind", ["unreadable", "size"])
def test_what_only_decoding_shows_stops_it_too_and_can_be_mended(
    tmp_path, source, kind, monkeypatch
):
    bad = source / "images" / NAMES[0]
    if kind == "size":
        rewrite(source / "images", NAMES[:1])
    else:
        bad.write_bytes(b"text")
    with pytest.raises(
        DpaError, match="1 (unreadable|not 1024 x 1024 pixels): " + NAMES[0]
    ):
        nih_prepare.prepare(source, tmp_path / "data", "pa")
    bad.write_bytes(nih_factory.png(NAMES[0]))
    decoded = count_decoding(monkeypatch)
    nih_prepare.prepare(source, tmp_path / "data", "pa")
    assert decoded == NAMES[:1]
    row = examples(tmp_path / "data", "pa_64", "train")[0]
    np.testing.assert_array_equal(row["image"], nih_factory.published(NAMES[0]))


@pytest.mark.parametrize("allow_missing", [False, True])
def test_a_file_that_changed_is_decoded_again(tmp_path, source, allow_missing):
    """Or went missing: what was decoded of it before is not taken."""
    rewrite(source / "images", NAMES[:1])
    with pytest.raises(DpaError, match="1 not 1024 x 1024"):
        nih_prepare.prepare(source, tmp_path / "data", "pa")
    (source / "images" / NAMES[0]).write_bytes(nih_factory.png(NAMES[0]))
    if allow_missing:
        (source / "images" / NAMES[2]).unlink()
    made = nih_prepare.prepare(source, tmp_path / "data", "pa", None, 1, allow_missing)
    rows = examples(tmp_path / "data", "pa_64", "train")
    np.testing.assert_array_equal(rows[0]["image"], nih_factory.published(NAMES[0]))
    assert len(rows) == 5 - allow_missing
    assert [p.name for p in made.problems] == NAMES[2:3] * allow_missing


def count_decoding(monkeypatch):
    """Returns a list to which everything that is decoded from now on is added."""
    decoded, original = [], nih_collect._decode

    def counted(caches, item):
        decoded.append(item.name)
        return original(caches, item)

    monkeypatch.setattr(nih_collect, "_decode", counted)
    return decoded


def test_a_truncated_archive_can_be_left_out(tmp_path, source):
    root = tmp_path / "other"
    nih_factory.write_tables(root)
    nih_factory.write_images(root, "archives")
    path = root / "images_02.tar.gz"
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(DpaError, match="images_02.tar.gz .damaged archive"):
        prepare_all(root, tmp_path / "data")
    made = prepare_all(root, tmp_path / "data", allow_missing=True)
    assert made.counts["pa_64"]["train"] == (5, 0)
    assert sum(made.counts["all_64"]["test"]) < 12


def test_an_empty_data_set_is_not_written(tmp_path):
    root = tmp_path / "source"
    nih_factory.write_tables(root)
    (root / "images_01.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DpaError, match="no image of pa_64 is left") as caught:
        nih_prepare.prepare(root, tmp_path / "data", "pa", allow_missing=True)
    assert "images_01.tar.gz (damaged archive" in str(caught.value)
    assert len([*(tmp_path / "data" / "nih_chest_xray14").glob("*/problems.csv")]) == 1
    assert not (tmp_path / "data" / "nih_chest_xray14" / "pa_64").exists()


def test_each_file_is_decoded_once_for_all_forms(tmp_path, source, monkeypatch):
    decoded, seen = count_decoding(monkeypatch), []
    made = prepare_all(
        source, tmp_path / "data", progress=lambda *state: seen.append(state)
    )
    assert made.counts == COUNTS
    assert len(decoded) == len(set(decoded)) == 24
    assert seen == [(done, 24) for done in range(25)]


KILLED = """
import os, pathlib, signal, sys
from dpa_jax.datasets import nih_prepare
def progress(done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
nih_prepare.prepare(*map(pathlib.Path, sys.argv[1:3]), "all",
                    pathlib.Path(sys.argv[4]), jobs=1, progress=progress)
"""


def in_another_process(source, data_dir, stop, home):
    """Prepares in a fresh process that kills itself after so many images."""
    root = pathlib.Path(__file__).resolve().parents[1]
    lists = nih_factory.write_subset(data_dir.parent / "lists")
    return subprocess.run(
        [sys.executable, "-c", KILLED, source, data_dir, str(stop), lists],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(root)},
        check=False,
    ).returncode


def test_after_kill_9_it_goes_on_and_writes_the_same_bytes(
    tmp_path, source, monkeypatch
):
    home, data_dir = tmp_path / "home", tmp_path / "data"
    home.mkdir()
    assert in_another_process(source, data_dir, 17, home) == -signal.SIGKILL
    # as if it had been killed while it wrote
    rest = data_dir / "nih_chest_xray14" / "pa_64" / "incomplete.XYZ_2.0.0"
    rest.mkdir(parents=True)
    (rest / "shard").write_bytes(b"half")
    decoded = count_decoding(monkeypatch)
    prepare_all(source, data_dir)
    assert 0 < len(decoded) < 12
    assert in_another_process(source, tmp_path / "whole", -1, home) == 0
    assert contents(data_dir) == contents(tmp_path / "whole")
    assert not any(home.iterdir())
    assert os.listdir(data_dir) == ["nih_chest_xray14"]


def test_nothing_is_written_but_below_data_dir(tmp_path, source, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    before = contents(source)
    nih_prepare.prepare(source, tmp_path / "data", "pa")
    assert sorted(os.listdir(tmp_path)) == ["data", "source"]
    assert contents(source) == before


def test_archives_are_resumed_too(tmp_path, monkeypatch):
    root = tmp_path / "source"
    nih_factory.write_tables(root)
    nih_factory.write_images(root, "archives")
    (tmp_path / "home").mkdir()
    in_another_process(root, tmp_path / "data", 17, tmp_path / "home")
    decoded = count_decoding(monkeypatch)
    made = prepare_all(root, tmp_path / "data")
    assert 0 < len(decoded) < 12
    assert made.counts["all_64"]["train"] == (8, 0)
    assert made.problems == []


def test_the_table_that_was_used_is_told(tmp_path, source):
    for name in ("Data_Entry_2017.csv", "train_val_list_NIH.txt", "test_list_NIH.txt"):
        official = name.replace("_NIH", "").replace("2017.csv", "2017_v2020.csv")
        (source / official).rename(source / name)
    made = nih_prepare.prepare(source, tmp_path / "data", "pa")
    assert f"labels as in {source}/Data_Entry_2017.csv" in nih_prepare.describe(made)


def test_an_archive_got_again_is_decoded_alone(tmp_path, monkeypatch):
    root = tmp_path / "source"
    nih_factory.write_tables(root)
    nih_factory.write_images(root, "archives")
    whole = (root / "images_02.tar.gz").read_bytes()
    (root / "images_02.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DpaError, match="images_02.tar.gz .damaged archive"):
        prepare_all(root, tmp_path / "data")
    (root / "images_02.tar.gz").write_bytes(whole)
    decoded = count_decoding(monkeypatch)
    made = prepare_all(root, tmp_path / "data")
    assert made.problems == [] and made.counts["all_64"]["test"] == (6, 6)
    assert 0 < len(decoded) <= 12  # of 24


def test_a_second_time_it_says_what_is_there(tmp_path, source, monkeypatch):
    first = nih_prepare.prepare(source, tmp_path / "data", "pa")
    before = contents(tmp_path / "data")
    decoded = count_decoding(monkeypatch)
    again = nih_prepare.prepare(source, tmp_path / "data", "pa")
    assert again.counts == first.counts and again.reused == {"pa_64": 0}
    assert decoded == [] and contents(tmp_path / "data") == before
    assert "was there already" in nih_prepare.describe(again)


def test_a_data_set_of_other_lists_is_not_overwritten(tmp_path, source):
    lists = {
        "normal/train": NAMES[:1],
        "normal/test": NAMES[4:5],
        "anomaly/test": NAMES[12:13],
    }
    folder = nih_factory.write_lists(tmp_path / "lists", lists)
    nih_prepare.prepare(source, tmp_path / "data", "custom", folder)
    nih_factory.write_lists(folder, {"normal/train": NAMES[:2]})
    with pytest.raises(DpaError, match="custom_64/2.0.0 was prepared from other lists"):
        nih_prepare.prepare(source, tmp_path / "data", "custom", folder)


def test_a_data_set_with_gaps_is_not_taken_for_a_whole_one(tmp_path, source):
    (source / "images" / NAMES[0]).unlink()
    nih_prepare.prepare(source, tmp_path / "data", "pa", allow_missing=True)
    (source / "images" / NAMES[0]).write_bytes(nih_factory.png(NAMES[0]))
    with pytest.raises(DpaError, match="prepared without 1 images"):
        nih_prepare.prepare(source, tmp_path / "data", "pa")


def test_tfds_alone_prepares_and_reads(tmp_path, source):
    lists = nih_factory.write_subset(tmp_path / "lists")
    rows = tfds.data_source(
        "nih_chest_xray14/subset_64",
        split="validation",
        data_dir=tmp_path / "data",
        builder_kwargs={"lists": str(lists)},
        download_and_prepare_kwargs={
            "download_config": tfds.download.DownloadConfig(manual_dir=source)
        },
    )
    names = [row["image_id"].decode() for row in rows]
    assert names == ["00000003_000.png", "00000004_000.png"]
    np.testing.assert_array_equal(rows[0]["image"], nih_factory.published(names[0]))
    assert data_sets(tmp_path / "data") == [".config", "subset_64"]


def test_tfds_knows_input_label_and_licence(tmp_path):
    info = tfds.builder("nih_chest_xray14/pa_64", data_dir=tmp_path).info
    assert info.supervised_keys == ("image", "label")
    assert "NIH Clinical Center" in info.redistribution_info.license


def test_the_anomalies_of_the_subset_are_chosen_by_finding_and_list(tmp_path, source):
    """The lists call some images normal in which the table has a finding."""
    lists = nih_factory.write_subset(tmp_path / "lists")
    normal = [NAMES[1], "00000003_000.png"]  # the first has Mass and Nodule
    nih_factory.write_lists(lists / "subset_validation", {"normal/val": normal})
    nih_prepare.prepare(source, tmp_path / "data", "subset", lists)
    where = "nih_chest_xray14/subset_64", "validation", nih_protocols.PUBLISHED
    images = tfds_source.load_tfds(*where, tmp_path / "data")
    assert images.labels.tolist() == [0, 0, 1]
    assert images.groups == ["1", "3", "4"]  # patients, which folds keep together
    condition = "findings=Mass+Nodule|Pleural_Thickening & class=abnormal"
    assert labels.matches(images, condition).tolist() == [False, False, True]


def test_nothing_loads_tensorflow_or_torch():
    code = (
        "import sys, dpa_jax.datasets.nih_prepare\n"
        "assert not {'tensorflow', 'torch', 'jax'} & set(sys.modules)"
    )
    root = pathlib.Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize(
    ("protocol", "lists", "message"),
    [
        ("lateral", False, "no protocol 'lateral'; it may be subset, pa"),
        ("custom", False, "split by lists: name their folder by --lists"),
        ("pa", True, "follows from the official lists"),
    ],
)
def test_wrong_usage_is_refused(tmp_path, source, protocol, lists, message):
    with pytest.raises(UsageError, match=message):
        nih_prepare.prepare(
            source, tmp_path / "data", protocol, tmp_path if lists else None
        )


@pytest.mark.parametrize("name", ["Data_Entry_2017", "train_val_list"])
def test_a_missing_table_is_named(tmp_path, source, name):
    for path in source.glob(f"{name}*"):
        path.unlink()
    with pytest.raises(DpaError, match=f"there is no {name}"):
        nih_prepare.prepare(source, tmp_path / "data", "pa")


def test_a_folder_without_images_says_so(tmp_path):
    nih_factory.write_tables(tmp_path / "source")
    with pytest.raises(DpaError, match="none of the 24 images"):
        prepare_all(tmp_path / "source", tmp_path / "data", allow_missing=True)


def test_a_folder_that_is_not_there_says_so(tmp_path):
    with pytest.raises(DpaError, match="nowhere is not a folder"):
        nih_prepare.prepare(tmp_path / "nowhere", tmp_path / "data", "pa")


def test_a_data_dir_that_cannot_be_made_is_named(tmp_path, source):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(DpaError, match="data"):
        nih_prepare.prepare(source, tmp_path / "data", "pa")


def test_a_full_disk_is_told(tmp_path, source, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nih_cache.ImageCache, "add", full)
    with pytest.raises(DpaError, match="data: No space left on device"):
        nih_prepare.prepare(source, tmp_path / "data", "pa")
