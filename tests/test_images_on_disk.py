"""Decoded images above a limit of memory: in a file of the cache, mapped."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import threading
import tracemalloc

import nih_factory
import numpy as np
import pytest
from PIL import Image

from dpa_jax import data, errors
from dpa_jax.data import folds, listing
from dpa_jax.data.decode import decode_described
from dpa_jax.data.properties import Original
from dpa_jax.datasets import nih_prepare, nih_protocols

GREY = data.Preprocessing(1, 16)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """An empty cache; the folder of images in it."""
    monkeypatch.setenv("DPA_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def folder(tmp_path, rng) -> pathlib.Path:
    """Forty grey images of noise, 20 px."""
    (tmp_path / "scans").mkdir()
    for i in range(40):
        pixels = rng.integers(0, 256, (20, 20), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "scans" / f"{i:02d}.png")
    return tmp_path / "scans"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the image files that were decoded so far."""
    names = []

    def counting(path, preprocessing):
        names.append(os.path.basename(path))
        return decode_described(path, preprocessing)

    monkeypatch.setattr(listing, "decode_described", counting)
    return names


def assert_equal(found: data.ImageSet, expected: data.ImageSet) -> None:
    """Compares all that two sets hold."""
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.originals, expected.originals)
    for field in ("paths", "labels", "groups", "skipped"):
        np.testing.assert_equal(getattr(found, field), getattr(expected, field))
    assert (found.columns or {}).keys() == (expected.columns or {}).keys()
    for name, values in (found.columns or {}).items():
        np.testing.assert_equal(values, expected.columns[name])
        assert type(values) is type(expected.columns[name])
        assert {type(v) for v in values} == {type(v) for v in expected.columns[name]}


# What is decoded, and when


def test_mapped_images_are_those_in_memory(cache, folder):
    found = data.load(folder, GREY, memory=40 * 256 - 1)
    assert_equal(found, data.load(folder, GREY))
    assert not found.base.flags.writeable
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".uint8"]


def test_what_fits_stays_in_memory(cache, folder):
    found = data.load(folder, GREY, memory=40 * 256)
    assert found.base.flags.owndata and not cache.exists()


def test_the_file_is_used_again(cache, folder, decoded):
    first = data.load(folder, GREY, memory=0)
    assert len(decoded) == 40
    assert_equal(data.load(folder, GREY, memory=0), first)
    assert len(decoded) == 40


def test_labels_are_those_of_the_manifest_as_it_is_now(cache, folder):
    manifest = folder / "list.csv"
    for label in (0, 1):
        manifest.write_text(f"path,label,age\n00.png,{label},7\n")
        found = data.load(manifest, GREY, memory=0)
        assert found.labels.tolist() == [label] and list(found.columns["age"]) == [7]
    assert len(list(cache.glob("*.uint8"))) == 1


def test_arrays(cache, tmp_path, rng):
    path = str(tmp_path / "set.npz")
    pixels = rng.integers(0, 256, (5, 20, 24, 3), np.uint8)
    np.savez(path, images=pixels, labels=[0, 1, 0, 1, 1], age=[1, 2, 3, 4, 5])
    expected = data.load(path, GREY)
    for _ in range(2):
        assert_equal(data.load(path, GREY, memory=0), expected)


def test_arrays_are_not_read_into_memory_whole(cache, tmp_path):
    images = np.linspace(0, 1, 2**22, dtype=np.float32).reshape(64, 256, 256)
    np.savez(tmp_path / "set.npz", images=images, labels=[0] * 64)
    tracemalloc.start()
    found = data.load(tmp_path / "set.npz", GREY, memory=0, workers=1)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < images.nbytes / 2
    np.savez_compressed(tmp_path / "packed.npz", images=images)  # which is
    expected = data.load(tmp_path / "packed.npz", GREY)
    np.testing.assert_array_equal(found.images, expected.images)


def test_a_flipped_bit_in_arrays_is_found(tmp_path):
    np.savez(tmp_path / "set.npz", images=np.zeros((2, 64, 64), np.uint8))
    content = bytearray((tmp_path / "set.npz").read_bytes())
    content[5000] ^= 1
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(errors.DpaError, match=r"set\.npz: not an \.npz .*CRC"):
        data.load(tmp_path / "set.npz", GREY)


def test_tfds(cache, tmp_path):
    nih_factory.write_tables(tmp_path)
    nih_factory.write_images(tmp_path)
    nih_prepare.prepare(tmp_path, tmp_path / "tfds", "ap")
    where, preprocessing = "tfds:nih_chest_xray14/ap_64:test", nih_protocols.PUBLISHED
    options = {"data_dir": str(tmp_path / "tfds")}
    calls = []
    for memory in (None, 0, 0):
        found = data.load(
            where,
            preprocessing,
            memory=memory,
            progress=lambda *call: calls.append(call),
            **options,
        )
        assert_equal(found, data.load(where, preprocessing, **options))
    assert calls == [(6, 6)] * 2  # and not when the file is used again


@pytest.mark.parametrize("change", ["pixels", "time", "preprocessing", "fewer"])
def test_what_changed_is_decoded_anew(cache, folder, decoded, change):
    data.load(folder, GREY, memory=0)
    preprocessing, count = GREY, 40
    if change == "pixels":
        Image.new("L", (30, 30), 7).save(folder / "03.png")
    elif change == "time":
        os.utime(folder / "03.png", ns=(0, 12345))
    elif change == "preprocessing":
        preprocessing = dataclasses.replace(GREY, equalize=True)
    else:
        (folder / "03.png").unlink()
        count = 39
    found = data.load(folder, preprocessing, memory=0)
    assert len(decoded) == 40 + count
    assert_equal(found, data.load(folder, preprocessing))


@pytest.mark.parametrize("damage", ["truncated", "without notes"])
def test_a_damaged_file_is_made_anew(cache, folder, decoded, damage):
    data.load(folder, GREY, memory=0)
    (path,) = cache.glob("*.uint8")
    if damage == "truncated":
        os.truncate(path, 1000)
    else:
        path.with_suffix(".json").unlink()
    found = data.load(folder, GREY, memory=0)
    assert len(decoded) == 80
    assert_equal(found, data.load(folder, GREY))


# Images that cannot be used


def test_skipped_images_are_those_of_the_first_time(cache, folder, decoded):
    (folder / "05.png").write_bytes(b"")
    (folder / "39.png").write_text("no image")
    expected = data.load(folder, GREY, skip_corrupt=True)
    assert [os.path.basename(s.path) for s in expected.skipped] == ["05.png", "39.png"]
    decoded.clear()
    for _ in range(2):
        found = data.load(folder, GREY, skip_corrupt=True, memory=0)
        assert_equal(found, expected)
    assert len(decoded) == 40


def test_without_skipping_the_file_is_refused_as_the_images_are(cache, folder):
    (folder / "05.png").write_bytes(b"")
    data.load(folder, GREY, skip_corrupt=True, memory=0)
    with pytest.raises(errors.DpaError, match=r"05\.png: the file is empty"):
        data.load(folder, GREY, memory=0)


@pytest.mark.parametrize("error", [errors.DpaError, KeyboardInterrupt])
def test_decoding_that_ends_half_way_leaves_nothing(cache, folder, monkeypatch, error):
    def failing(path, preprocessing):
        if path.endswith("30.png"):
            raise error(path)
        return decode_described(path, preprocessing)

    with monkeypatch.context() as patch:
        patch.setattr(listing, "decode_described", failing)
        with pytest.raises(error, match=r"30\.png"):
            data.load(folder, GREY, memory=0)
    assert list(cache.iterdir()) == []
    assert_equal(data.load(folder, GREY, memory=0), data.load(folder, GREY))


KILLED = """
import os, signal, sys
from dpa_jax import data
def kill(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
data.load(sys.argv[1], data.Preprocessing(1, 16), memory=0, progress=kill, workers=1)
"""


def test_what_a_killed_process_left_is_overwritten(cache, folder):
    script = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder)]
    root = pathlib.Path(data.__file__).parents[2]
    ended = subprocess.run(script, env=os.environ | {"PYTHONPATH": str(root)})
    assert ended.returncode == -signal.SIGKILL
    assert [path.suffix for path in cache.iterdir()] == [".partial"]
    assert_equal(data.load(folder, GREY, memory=0), data.load(folder, GREY))
    assert not list(cache.glob("*.partial"))


def test_two_at_once_decode_once(cache, folder, decoded):
    found = []
    both = [
        threading.Thread(target=lambda: found.append(data.load(folder, GREY, memory=0)))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(decoded) == 40
    assert_equal(*found)
    assert not list(cache.glob("*.partial"))


# The disk, and what is told of it


def test_no_room_on_the_disk(cache, folder):
    size = 10**7  # 100 TB an image: it fails before anything of this size is made
    with pytest.raises(errors.DpaError) as caught:
        data.load(folder, data.Preprocessing(1, size), memory=2**30)
    assert re.fullmatch(
        rf"{cache} has \d+ bytes free, but the decoded images need {40 * size**2}: "
        "DPA_JAX_CACHE names a folder on a larger disk",
        str(caught.value),
    )
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(cache, folder):
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    with pytest.raises(errors.DpaError, match=f"cannot write {cache}"):
        data.load(folder, GREY, memory=0)


def test_one_line_says_where_the_file_is(cache, folder):
    lines = []
    for _ in range(2):
        data.load(folder, GREY, memory=0, log=lines.append)
    (path,) = cache.glob("*.uint8")
    assert [re.search(r"are (\w+ \w+) (\S+),", line).groups() for line in lines] == [
        ("written to", str(path)),
        ("read from", str(path)),
    ]
    assert all("may be deleted" in line for line in lines)
    data.load(folder, GREY, log=lines.append)
    assert len(lines) == 2


# Selections, blocks, release


def test_a_selection_shares_its_pixels(cache, folder):
    for memory in (None, 0):
        images = data.load(folder, GREY, memory=memory)
        chosen = images.select(np.arange(40) % 3 == 0).select([5, 2])
        assert np.shares_memory(chosen.base, images.base)
        assert chosen.rows.tolist() == [15, 6] and chosen.rows.dtype == np.int64
        assert [os.path.basename(path) for path in chosen.paths] == ["15.png", "06.png"]
        np.testing.assert_array_equal(chosen.images, images.images[[15, 6]])
        assert images.images is images.base


def test_a_set_in_another_order_is_no_whole_set(folder):
    images = data.load(folder, GREY)
    np.testing.assert_array_equal(
        images.select(np.arange(40)[::-1]).images, images.base[::-1]
    )


def test_blocks_are_bounded_and_in_order(cache, folder):
    images = data.load(folder, GREY, memory=0).select(np.arange(40) != 7)
    blocks = list(images.blocks(1000))  # three images of 256 bytes
    assert [len(block) for block in blocks] == [3] * 13
    np.testing.assert_array_equal(np.concatenate(blocks), images.images)
    assert [len(block) for block in images.blocks(1)] == [1] * 39


def test_equal_pictures_are_found_in_blocks(cache, folder):
    (folder / "01.png").write_bytes((folder / "00.png").read_bytes())
    groups = folds.groups_of(data.load(folder, GREY, memory=0))
    assert groups == folds.groups_of(data.load(folder, GREY))
    assert groups[0] == groups[1] and len(set(groups)) == 39


def resident(path: pathlib.Path) -> int:
    """Returns how many bytes of a mapped file are in this process's memory."""
    parts = pathlib.Path("/proc/self/smaps").read_text().split(str(path))[1:]
    return 1024 * sum(int(re.search(r"Rss: +(\d+) kB", part)[1]) for part in parts)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_are_released(cache, folder):
    images = data.load(folder, GREY, memory=0)
    (path,) = cache.glob("*.uint8")
    before = images.base.copy()
    assert resident(path) > 0
    data.release(images.base[3:])
    assert resident(path) == 0
    np.testing.assert_array_equal(images.base, before)
    next(images.blocks(1000))
    assert resident(path) == 0


def test_other_arrays_are_left_alone(tmp_path):
    plain = np.arange(4096, dtype=np.uint8)
    private = np.memmap(tmp_path / "x", np.uint8, "w+", shape=4096)
    private = np.memmap(tmp_path / "x", np.uint8, "c", shape=4096)
    private[:] = 7
    data.release(plain)
    data.release(private)
    assert (private == 7).all() and plain[300] == 300 % 256


def test_notes_are_json(cache, folder):
    (folder / "05.png").write_bytes(b"")
    data.load(folder, GREY, skip_corrupt=True, memory=0)
    (path,) = cache.glob("*.json")
    found = json.loads(path.read_text())
    assert found["failed"] == [[5, "the file is empty"]]
    first = dict(zip(Original._fields, found["originals"][0], strict=True))
    assert (first["width"], first["height"], first["bits"]) == (20, 20, 8)
