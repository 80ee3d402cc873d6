import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from dpa_jax import errors
from dpa_jax.data import phantoms


def draw(count, size=64, seed=0, **options):
    return phantoms.draw(count, size, np.random.default_rng(seed), **options)


@pytest.fixture(scope="module")
def scored():
    """300 normal and 300 abnormal phantoms at 32 pixels, and which is which."""
    both = np.concatenate([draw(300, 32, 1), draw(300, 32, 2, abnormal=True)])
    return both.reshape(600, -1) / 255, np.arange(600) >= 300


@pytest.mark.parametrize(
    "statistic", [np.mean, np.var, np.max, np.min, np.median], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("sign", [1, -1])
def test_trivial_scores_fail(scored, statistic, sign):
    pixels, abnormal = scored
    scores = sign * statistic(pixels, axis=1)
    assert metrics.roc_auc_score(abnormal, scores) < 0.75


def test_lesions_are_local_and_plain_to_see():
    normal, abnormal = draw(200, 32), draw(200, 32, abnormal=True)
    added = abnormal.astype(int) - normal
    assert added.min() >= 0
    assert added.max(axis=(1, 2)).min() > 30  # grey levels; the noise has 3
    changed = (added > 10).sum(axis=(1, 2))
    assert changed.min() >= 4 and changed.max() < 32 * 32 / 6


def test_lesions_lie_in_the_lungs():
    normal, abnormal = draw(200, 64), draw(200, 64, abnormal=True)
    added = abnormal.astype(int) - normal
    for image, change in zip(normal, added, strict=True):
        peak = np.unravel_index(change.argmax(), change.shape)
        body = image[20:40, 30:34].mean()  # the spine
        assert image[peak] < 0.7 * body


def test_normals_vary():
    images = draw(100).astype(float)
    # The mean image is a poor guess at each: they differ in more than their noise.
    assert np.abs(images - images.mean(0)).mean() > 10
    assert images.mean(axis=(1, 2)).std() > 5


def test_count_and_dtype():
    images = draw(3, 48)
    assert images.shape == (3, 48, 48) and images.dtype == np.uint8


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(pathlib.Path(folder).rglob("*"))
        if path.is_file()
    }


SMALL = {"train": 4, "normal": 2, "abnormal": 3, "calibration": 2, "size": 32}


def test_files(tmp_path):
    folder = phantoms.make_phantoms(tmp_path / "phantoms", **SMALL)
    names = set(contents(folder))
    assert names == {
        *(f"train/normal/{i:05d}.png" for i in range(4)),
        *(f"test/normal/{i:05d}.png" for i in range(2)),
        *(f"test/abnormal/{i:05d}.png" for i in range(3)),
        *(f"calibration/normal/{i:05d}.png" for i in range(2)),
        "phantoms.json",
    }
    with Image.open(folder / "train" / "normal" / "00000.png") as image:
        assert (image.mode, image.size) == ("L", (32, 32))
    assert [p.name for p in tmp_path.iterdir()] == ["phantoms"]  # nothing left over


def test_into_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    phantoms.make_phantoms(".", **SMALL)
    assert len(contents(tmp_path)) == 12
    phantoms.make_phantoms(".", **SMALL)


def test_same_seed_same_files(tmp_path):
    one = phantoms.make_phantoms(tmp_path / "one", **SMALL)
    two = phantoms.make_phantoms(tmp_path / "two", **SMALL)
    other = phantoms.make_phantoms(tmp_path / "other", **SMALL, seed=1)
    assert contents(one) == contents(two)
    assert contents(one) != contents(other)


def test_a_split_does_not_depend_on_another(tmp_path):
    one = phantoms.make_phantoms(tmp_path / "one", **SMALL)
    two = phantoms.make_phantoms(tmp_path / "two", **{**SMALL, "train": 7})
    for name in ("test/normal/00001.png", "test/abnormal/00002.png"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_no_image_twice(tmp_path):
    counts = {"train": 3, "normal": 3, "abnormal": 3, "calibration": 3}
    folder = phantoms.make_phantoms(tmp_path / "phantoms", **counts, size=32)
    images = [v for k, v in contents(folder).items() if k.endswith("png")]
    assert len(set(images)) == 12


def test_reuses_what_it_made(tmp_path):
    folder = phantoms.make_phantoms(tmp_path, **SMALL)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    phantoms.make_phantoms(tmp_path, **SMALL)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"size": 48}, {"train": 5}])
def test_refuses_other_phantoms(tmp_path, change):
    folder = phantoms.make_phantoms(tmp_path / "phantoms", **SMALL)
    before = contents(folder)
    with pytest.raises(errors.DpaError, match="holds other files"):
        phantoms.make_phantoms(folder, **{**SMALL, **change})
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["notes.txt", "train/normal/mine.png", ".hidden"])
def test_refuses_a_folder_with_other_files(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(errors.DpaError, match="holds other files"):
        phantoms.make_phantoms(tmp_path, **SMALL)
    assert contents(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize("text", ["", "[" * 100_000, "9" * 5_000])
def test_refuses_a_damaged_description(tmp_path, text):
    folder = phantoms.make_phantoms(tmp_path / "phantoms", **SMALL)
    (folder / "phantoms.json").write_text(text)
    with pytest.raises(errors.DpaError, match="holds other files"):
        phantoms.make_phantoms(folder, **SMALL)


def test_refuses_what_has_lost_a_file(tmp_path):
    folder = phantoms.make_phantoms(tmp_path / "phantoms", **SMALL)
    (folder / "train" / "normal" / "00002.png").unlink()
    with pytest.raises(errors.DpaError, match="holds other files"):
        phantoms.make_phantoms(folder, **SMALL)


def test_interrupted_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dumps", fail)  # all but the last file is written
    with pytest.raises(KeyboardInterrupt):
        phantoms.make_phantoms(tmp_path / "phantoms", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_names_the_folder_when_it_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(errors.DpaError, match=r"cannot write phantoms to .*phantoms"):
        phantoms.make_phantoms(tmp_path / "file" / "phantoms", **SMALL)


@pytest.mark.parametrize("change", [{"train": 0}, {"size": 8}, {"seed": -1}])
def test_refuses_impossible_arguments(tmp_path, change):
    with pytest.raises(errors.UsageError):
        phantoms.make_phantoms(tmp_path, **{**SMALL, **change})
