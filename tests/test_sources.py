import os
import pathlib
import sys
import threading
import time
import types

import numpy as np
import pytest
from PIL import Image

from dpa_jax import data, errors
from dpa_jax.data import listing
from dpa_jax.data.decode import decode, decode_described

GREY = data.Preprocessing(1, 8)


def write(folder: pathlib.Path, name: str, level: int = 0, size: int = 8) -> str:
    """Writes an image of one grey level and returns its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"jpg": "JPEG", "tif": "TIFF", "bmp": "BMP"}.get(
        name.lower().rsplit(".")[-1][:3], "PNG"
    )
    Image.new("L", (size, size), level).save(path, kind)
    return str(path)


def levels(found: data.ImageSet) -> list[int]:
    return found.images[:, 0, 0, 0].tolist()


@pytest.fixture
def folder(tmp_path):
    """Five images, of which `b.png` and `d.png` are damaged."""
    for i, name in enumerate("abcde"):
        write(tmp_path, f"{name}.png", 10 * i)
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "d.png").write_text("no image")
    return tmp_path


# Folders


def test_folder_is_recursive_sorted_and_without_hidden_files(tmp_path):
    write(tmp_path, "b/2.PNG", 3)
    write(tmp_path, "b/10.jpeg", 2)
    write(tmp_path, "a.Tif", 1)
    write(tmp_path, "b/11/x.bmp", 4)
    write(tmp_path, "c.png", 5)
    write(tmp_path, ".hidden.png")
    write(tmp_path, ".git/x.png")
    (tmp_path / "notes.txt").write_text("ignored")
    found = data.load(str(tmp_path), GREY)
    names = ["a.Tif", "b/10.jpeg", "b/11/x.bmp", "b/2.PNG", "c.png"]
    assert found.paths == [str(tmp_path / name) for name in names]
    assert levels(found) == [1, 2, 4, 3, 5]
    assert found.images.shape == (5, 8, 8, 1) and found.images.dtype == np.uint8
    assert found.labels is None and found.groups is None and found.skipped == []


def test_dicom_in_a_folder_is_listed(tmp_path):
    for name in ("a.dcm", "b.DICOM"):
        (tmp_path / name).write_bytes(b"")
    assert data.list_images(tmp_path) == [
        str(tmp_path / name) for name in ("a.dcm", "b.DICOM")
    ]


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "elsewhere", "x.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    assert data.list_images(tmp_path / "data") == [
        str(tmp_path / "data" / "link" / "x.png")
    ]


def test_dangling_link_is_an_error(tmp_path):
    (tmp_path / "x.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(errors.DpaError, match=r"x\.png.*No such file"):
        data.load(tmp_path, GREY)


def test_empty_folder_says_what_is_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(errors.DpaError, match=r"no images: .*\.png.*\.dcm"):
        data.load(tmp_path, GREY)


def test_missing_location(tmp_path):
    with pytest.raises(errors.DpaError, match="no file or folder .*gone"):
        data.load(tmp_path / "gone", GREY)


def test_unreadable_subfolder_is_named(tmp_path, monkeypatch):
    write(tmp_path, "a.png")
    (tmp_path / "secret").mkdir()
    scan = os.scandir

    def refuse(path):  # since tests may run as root, whom nothing is refused
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(errors.DpaError, match="secret.*cannot be read: Permission"):
        data.load(tmp_path, GREY, skip_corrupt=True)


def test_unreadable_file_is_never_skipped(folder, monkeypatch):
    def refuse(path, preprocessing):
        if path.endswith("c.png"):
            raise errors.DpaError(f"{path}: cannot be read: Permission denied")
        return decode_described(path, preprocessing)

    monkeypatch.setattr(listing, "decode_described", refuse)
    with pytest.raises(errors.DpaError, match=r"c\.png: cannot be read"):
        data.load(folder, GREY, skip_corrupt=True)


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "scans/a.png", 5)
    assert levels(data.load("~/scans", GREY)) == [5]


# Files


def test_single_image_of_any_extension(tmp_path):
    path = write(tmp_path, "scan.dat", 7)
    found = data.load(path, GREY)
    assert (levels(found), found.paths) == ([7], [path])


def test_files_keep_their_order_and_repetitions(tmp_path):
    paths = [write(tmp_path, f"{i}.png", i) for i in (3, 1, 2)] * 20
    found = data.load(paths, GREY, workers=3)
    assert levels(found) == [3, 1, 2] * 20
    assert found.paths == paths


def test_no_files_at_all():
    with pytest.raises(errors.DpaError, match="no images were given"):
        data.load([], GREY)


def test_each_image_is_what_decode_gives(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for i in range(40):
        paths.append(str(tmp_path / f"{i}.png"))
        height, width = rng.integers(20, 60, 2)
        Image.fromarray(rng.integers(0, 256, [height, width, 3], np.uint8)).save(
            paths[-1]
        )
    preprocessing = data.Preprocessing(3, 12, resize=20, crop=18, equalize=True)
    found = data.load(paths, preprocessing, workers=4)
    expected = np.stack([decode(path, preprocessing) for path in paths])
    np.testing.assert_array_equal(found.images, expected)


# Corrupt images


def test_corrupt_image_stops_the_run(folder):
    with pytest.raises(errors.DpaError) as caught:
        data.load(folder, GREY, workers=1)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'b.png'}: the file is empty")
    assert "with it, 2 of the 5 images read so far" in message
    assert "--config.data.skip_corrupt=true" in message


def test_corrupt_images_are_left_out_and_listed(folder):
    found = data.load(folder, GREY, skip_corrupt=True)
    assert levels(found) == [0, 20, 40]
    assert [os.path.basename(path) for path in found.paths] == [
        "a.png",
        "c.png",
        "e.png",
    ]
    assert [(os.path.basename(s.path), s.reason) for s in found.skipped] == [
        ("b.png", "the file is empty"),
        ("d.png", "not a readable PNG, JPEG, TIFF, BMP or DICOM image"),
    ]


def test_labels_and_groups_follow_what_is_left(folder):
    manifest = folder / "list.csv"
    rows = "".join(f"{n}.png,{i % 2},patient {n}\n" for i, n in enumerate("abcde"))
    manifest.write_text("path,label,group\n" + rows)
    found = data.load(manifest, GREY, skip_corrupt=True)
    assert levels(found) == [0, 20, 40]
    assert found.labels.tolist() == [0, 0, 0]
    assert found.groups == ["patient a", "patient c", "patient e"]


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_all_corrupt_is_an_error(tmp_path, skip_corrupt):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"")
    with pytest.raises(errors.DpaError, match=r"none of 2 images.*a\.png"):
        data.load(tmp_path, GREY, skip_corrupt=skip_corrupt, workers=1)


def test_the_only_image_is_corrupt(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(errors.DpaError, match=r"a\.png: the file is empty$"):
        data.load(tmp_path, GREY, skip_corrupt=True)


def test_first_bad_image_is_named_and_the_rest_not_read(tmp_path, monkeypatch):
    for i in range(4000):
        (tmp_path / f"{i:04d}.png").touch()
    paths = sorted(map(str, tmp_path.iterdir()))
    lock, read = threading.Lock(), []

    def fake(path, preprocessing):
        i = int(path[-8:-4])
        with lock:
            read.append(i)
        if i >= 100:
            # Later ones fail before it; much later ones give time to be called off.
            time.sleep(0.02 if i < 110 or i > 1000 else 0)
            raise data.ImageError(path, "bad")
        return np.zeros([8, 8, 1], np.uint8), [0] * 7

    monkeypatch.setattr(listing, "decode_described", fake)
    with pytest.raises(errors.DpaError, match=r"0100\.png: bad"):
        data.load(paths, GREY, workers=4)
    assert len(read) < 2000


def test_smaller_than_the_crop_is_named(tmp_path):
    write(tmp_path, "a.png", size=30)
    write(tmp_path, "b.png", size=20)
    with pytest.raises(errors.DpaError, match=r"b\.png: 20x20.*crop of 24"):
        data.load(tmp_path, data.Preprocessing(1, 8, crop=24))


@pytest.mark.filterwarnings("default")
def test_bombs_are_errors_without_pillows_warning(tmp_path, monkeypatch, recwarn):
    write(tmp_path, "a.png", size=8)
    write(tmp_path, "b.png", size=12)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(errors.DpaError, match=r"b\.png: more than 100 pixels"):
        data.load(tmp_path, GREY)
    assert not recwarn.list


# Progress and threads


def test_progress_counts_up_to_all(tmp_path):
    paths = [write(tmp_path, f"{i}.png") for i in range(50)]
    calls = []
    data.load(paths, GREY, progress=lambda *call: calls.append(call))
    done = [d for d, _ in calls]
    assert len(calls) > 2
    assert done == sorted(done) and done[-1] == 50
    assert {total for _, total in calls} == {50}


def test_progress_can_stop_the_run(tmp_path):
    paths = [write(tmp_path, f"{i}.png") for i in range(50)]

    def stop(done, total):
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        data.load(paths, GREY, progress=stop)
    assert threading.active_count() == before


def test_negative_workers(tmp_path):
    with pytest.raises(errors.UsageError, match="workers"):
        data.load([write(tmp_path, "a.png")], GREY, workers=-1)


# Manifests


def manifest(tmp_path, text: str, encoding: str = "utf-8") -> pathlib.Path:
    path = tmp_path / "list.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_manifest(tmp_path):
    write(tmp_path, "scans/a, b.png", 1)
    absolute = write(tmp_path / "elsewhere", "c.png", 2)
    text = (
        "age,path,label,group\n"
        '40,"scans/a, b.png",normal,Zoë\n'
        "\n"
        f"50, {absolute} ,Abnormal,p2\n"
        f"60,{absolute},1,p2\n"
    )
    found = data.load(manifest(tmp_path, text, "utf-8-sig"), GREY)
    assert levels(found) == [1, 2, 2]
    assert found.labels.tolist() == [0, 1, 1] and found.labels.dtype == np.int8
    assert found.groups == ["Zoë", "p2", "p2"]
    assert found.paths[0] == str(tmp_path / "scans/a, b.png")
    assert set(found.columns) == {"age"}


def test_further_columns_of_a_manifest(tmp_path):
    for name in "abc":
        write(tmp_path, f"{name}.png")
    text = (
        "path,label,age,weight,id,findings,view,\n"
        "a.png,0,40,70.5,007,No Finding,PA,\n"
        "b.png,1,-1,80,008,Mass|Nodule, AP ,\n"
        "c.png,1,60,90,010,,,\n"
    )
    columns = data.load(manifest(tmp_path, text), GREY).columns
    assert columns["age"].dtype == np.int64 and list(columns["age"]) == [40, -1, 60]
    assert list(columns["weight"]) == [70.5, 80, 90]
    assert columns["id"] == ["007", "008", "010"]
    assert columns["findings"] == [(), ("Mass", "Nodule"), ()]
    assert columns["view"] == ["PA", "AP", ""]
    assert set(columns) == {"age", "weight", "id", "findings", "view"}


def test_columns_follow_what_is_left(folder):
    rows = "".join(f"{n}.png,{i},{n}\n" for i, n in enumerate("abcde"))
    path = manifest(folder, "path,age,class\n" + rows)
    columns = data.load(path, GREY, skip_corrupt=True).columns
    assert list(columns["age"]) == [0, 2, 4] and columns["class"] == ["a", "c", "e"]


def test_columns_that_both_sets_have_are_joined(tmp_path):
    write(tmp_path, "a.png")
    sets = [
        data.load(manifest(tmp_path, f"path,age,view,{x}\na.png,{age},PA,1\n"), GREY)
        for x, age in (("x", 5), ("y", 6))
    ]
    columns = data.joined(sets, (0, 1)).columns
    assert set(columns) == {"age", "view"}
    assert columns["age"].tolist() == [5, 6] and columns["view"] == ["PA", "PA"]


def test_sources_are_loaded_in_the_order_given(tmp_path):
    write(tmp_path, "a.png", 1)
    write(tmp_path, "sub/b.png", 2)
    write(tmp_path, "c.png", 3)
    first = manifest(tmp_path, "path,group,age,view\nc.png,G,5,PA\na.png,H,6,PA\n")
    second = tmp_path / "second.csv"
    second.write_text("path,group,age\na.png,I,7\n")
    packed = archive(tmp_path, images=np.full((1, 8, 8), 9, np.uint8))
    found = data.load([first, second], GREY)
    assert levels(found) == [3, 1, 1] and found.groups == ["G", "H", "I"]
    assert set(found.columns) == {"age"} and found.columns["age"].tolist() == [5, 6, 7]
    # what one of them does not know, the whole does not
    found = data.load([packed, first, tmp_path / "sub", second], GREY)
    assert levels(found) == [9, 3, 1, 2, 1]
    assert found.groups is None and found.labels is None and found.columns is None
    assert found.originals[:, 0].tolist() == [8] * 5


def split_manifest(tmp_path):
    for name in ("x.png", "y.png", "z.png"):
        write(tmp_path, name)
    return manifest(tmp_path, "path,split\nx.png,a\ny.png,b\nz.png,a\n")


def test_a_split_of_a_manifest(tmp_path):
    found = data.load(f"{split_manifest(tmp_path)}:a", GREY)
    assert [pathlib.Path(path).name for path in found.paths] == ["x.png", "z.png"]


def test_images_of_other_splits_need_not_be_there(tmp_path):
    path = split_manifest(tmp_path)
    (tmp_path / "y.png").unlink()
    assert len(data.load(f"{path}:a", GREY)) == 2


def test_splits_are_never_mixed_unasked(tmp_path):
    path = split_manifest(tmp_path)
    with pytest.raises(errors.UsageError, match=f"splits a, b: name one, .* {path}:a"):
        data.load(path, GREY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,split\nx.png,a\n", "no split 'c'; it has a"),
        ("path\nx.png\n", "no split 'c'; it has no column split"),
        ("path,split\nx.png,\n", "line 2: the split is empty"),
    ],
)
def test_a_split_that_is_not_there(tmp_path, text, message):
    write(tmp_path, "x.png")
    with pytest.raises(errors.DpaError, match=message):
        data.load(f"{manifest(tmp_path, text)}:c", GREY)


def test_masks_of_a_manifest_are_relative_to_it_and_may_be_empty(tmp_path):
    for name in ("x.png", "y.png", "m.png"):
        write(tmp_path, name)
    found = data.load(manifest(tmp_path, "path,mask\nx.png,m.png\ny.png,\n"), GREY)
    assert found.columns["mask"] == [str(tmp_path / "m.png"), ""]


def test_a_mask_that_is_not_there(tmp_path):
    write(tmp_path, "x.png")
    with pytest.raises(errors.DpaError, match="line 2: there is no file .*m.png"):
        data.load(manifest(tmp_path, "path,mask\nx.png,m.png\n"), GREY)


def test_manifest_of_paths_alone(tmp_path):
    write(tmp_path, "a.png", 1)
    found = data.load(manifest(tmp_path, "path\na.png\n"), GREY)
    assert levels(found) == [1] and found.labels is None and found.groups is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no path among no fields"),
        ("file,label\na.png,0\n", "no path among file, label"),
        ("path,label\n", "lists no images"),
        ("path,label\na.png,0\na.png,sick\n", "line 3: a label is .*'sick'"),
        ("path,label\na.png,2\n", "line 2: a label is .*'2'"),
        ("path,label\na.png,\n", "line 2: the label is empty"),
        ("path,group\na.png, \n", "line 2: the group is empty"),
        ("path,group\n,g\n", "line 2: the path is empty"),
        ("path,label\na.png\n", "line 2: not 2 columns"),
        ("path,label\na.png,0,x\n", "line 2: not 2 columns"),
        ("path\na.png\nb.png\n", r"line 3: there is no file .*b\.png"),
        ("path,lable\na.png,0\n", "lable is not known; if label"),
        ("path,groups\na.png,0\n", "groups is not known; if group"),
        ('path\n"a.png\n', "not a CSV file"),
        ("path,age,age\na.png,1,2\n", "two columns are called age"),
    ],
)
def test_manifest_faults_are_named(tmp_path, text, message):
    write(tmp_path, "a.png")
    with pytest.raises(errors.DpaError, match=rf"list\.csv.*{message}"):
        data.load(manifest(tmp_path, text), GREY)


def test_manifest_in_another_encoding(tmp_path):
    with pytest.raises(errors.DpaError, match=r"list\.csv: not a CSV file in UTF-8"):
        data.load(manifest(tmp_path, "path\nZoë.png\n", "latin-1"), GREY)


# Arrays


def archive(tmp_path, **arrays) -> str:
    path = str(tmp_path / "set.npz")
    np.savez(path, **arrays)
    return path


RAMP = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8)


@pytest.mark.parametrize("channels", [0, 1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_arrays(tmp_path, channels, dtype):
    images = np.repeat(RAMP[..., None], channels, 3) if channels else RAMP
    if dtype != np.uint8:
        images = (images / 255).astype(dtype)
    path = archive(tmp_path, images=images)
    found = data.load(path, GREY)
    np.testing.assert_array_equal(found.images[..., 0], RAMP)
    assert found.paths == [f"{path}[{i}]" for i in range(3)]
    assert found.labels is None and found.groups is None


def test_grey_arrays_become_rgb(tmp_path):
    found = data.load(archive(tmp_path, images=RAMP), data.Preprocessing(3, 8))
    np.testing.assert_array_equal(found.images, np.repeat(RAMP[..., None], 3, 3))


def test_arrays_are_preprocessed_as_files_are(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, [2, 30, 40, 3], np.uint8)
    preprocessing = data.Preprocessing(1, 8, resize=24, crop=20, equalize=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    from_files = data.load(tmp_path, preprocessing)
    from_arrays = data.load(archive(tmp_path, images=images), preprocessing)
    np.testing.assert_array_equal(from_arrays.images, from_files.images)


@pytest.mark.parametrize(
    "labels",
    [[0, 1, 1], [False, True, True], ["normal", "abnormal", "1"], [b"0", b"1", b"1"]],
)
def test_what_arrays_say_of_each_image(tmp_path, labels):
    path = archive(
        tmp_path, images=RAMP, labels=labels, groups=[7, 7, 8], paths=["a", "b", "c"]
    )
    found = data.load(path, GREY)
    assert found.labels.tolist() == [0, 1, 1] and found.labels.dtype == np.int8
    assert found.groups == ["7", "7", "8"]
    assert found.paths == ["a", "b", "c"]


def test_further_arrays_of_an_archive(tmp_path):
    path = archive(
        tmp_path,
        images=RAMP,
        age=[4, 5, 6],
        sick=[True, False, True],
        view=["PA", "AP", "PA"],
        features=np.zeros([3, 2]),
        note="of no image",
    )
    columns = data.load(path, GREY).columns
    assert columns["age"].tolist() == [4, 5, 6]
    assert columns["sick"] == ["True", "False", "True"]
    assert columns["view"] == ["PA", "AP", "PA"]
    assert set(columns) == {"age", "sick", "view"}


BAD = np.zeros([2, 8, 8], np.float32)


def with_value(value: float) -> np.ndarray:
    images = BAD.copy()
    images[1, 2, 3] = value
    return images


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": with_value(np.nan)}, r"images\[1\] has NaN"),
        ({"images": with_value(np.inf)}, r"images\[1\] has NaN or inf"),
        ({"images": with_value(-0.5)}, r"images\[1\] has values from -0.5 to 0"),
        ({"images": with_value(255)}, r"images\[1\] has values from 0 to 255"),
        ({"images": BAD.astype(np.int64)}, "not int64"),
        ({"images": BAD.astype(object)}, "not an .npz of arrays: .*[Oo]bject"),
        ({"images": BAD[0]}, r"not \[8, 8\]"),
        ({"images": np.zeros([2, 8, 8, 4], np.uint8)}, r"not \[2, 8, 8, 4\]"),
        ({"images": BAD[:0]}, r"without a 0, not \[0, 8, 8\]"),
        ({"pictures": BAD}, "no images among pictures"),
        ({"images": BAD, "labels": [0]}, r"2 images, but labels is of shape \[1\]"),
        ({"images": BAD, "labels": [0, 2]}, r"labels\[1\]: .*'2'"),
        ({"images": BAD, "label": [0, 1]}, "label is not known; if labels"),
        ({"images": BAD, "groups": "one"}, r"groups is of shape \[\]"),
    ],
)
def test_array_faults_are_named(tmp_path, arrays, message):
    with pytest.raises(errors.DpaError, match=rf"set\.npz.*{message}"):
        data.load(archive(tmp_path, **arrays), GREY)


def test_truncated_archive(tmp_path):
    path = pathlib.Path(archive(tmp_path, images=RAMP))
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(errors.DpaError, match=r"set\.npz: not an \.npz"):
        data.load(path, GREY)


# TFDS


def test_tfds_is_delegated(monkeypatch):
    calls = []
    stand_in = types.ModuleType("dpa_jax.data.tfds_source")
    stand_in.load_tfds = lambda *call, **rest: calls.append(call) or "the images"
    monkeypatch.setitem(sys.modules, "dpa_jax.data.tfds_source", stand_in)
    found = data.load("tfds:nih/subset:train[:10%]", GREY, data_dir="somewhere")
    assert found == "the images"
    assert calls == [("nih/subset", "train[:10%]", GREY, "somewhere", None)]


@pytest.mark.parametrize("location", ["tfds:", "tfds:cifar10", "tfds::train"])
def test_tfds_without_a_name_or_a_split(location):
    with pytest.raises(errors.UsageError, match="NAME"):
        data.load(location, GREY)


def test_an_image_listed_as_normal_and_abnormal_is_refused(tmp_path):
    write(tmp_path, "a.png")
    text = "path,label\na.png,normal\na.png,normal\n./a.png,abnormal\n"
    with pytest.raises(errors.DpaError, match=r"line 4: ./a.png .* than in line 2"):
        data.load(manifest(tmp_path, text), GREY)


# Files that are none


def test_a_pipe_among_images_is_named_and_may_be_left_out(tmp_path):
    write(tmp_path, "a.png", 1)
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(errors.DpaError, match="b.png: a pipe or a device, not a file"):
        data.load(tmp_path, GREY)
    assert levels(data.load(tmp_path, GREY, skip_corrupt=True)) == [1]


def test_a_link_to_itself_spoils_no_folder_unless_it_is_an_image(tmp_path):
    write(tmp_path, "a.png", 1)
    (tmp_path / "latest").symlink_to("latest")
    assert levels(data.load(tmp_path, GREY)) == [1]
    (tmp_path / "b.png").symlink_to("b.png")
    with pytest.raises(errors.DpaError, match="b.png: cannot be read: Too many levels"):
        data.load(tmp_path, GREY)
