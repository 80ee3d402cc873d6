import contextlib
import csv
import json
import os
import re
import subprocess

import numpy as np
import pytest
import run_factory

from dpa_jax.storage import checkpoints


@pytest.fixture
def folder(tmp_path):
    run_factory.write_folder(tmp_path / "train", 12)
    return tmp_path


@pytest.fixture
def attempt(folder):
    """Trains by the command line; returns the exit code and what stderr says."""
    config = run_factory.write_config(folder / "c.json", run_factory.quick_config())

    def run(*flags, train="train", workdir="run"):
        code, out, err = run_factory.call(
            *("train", "--config", config, "--workdir", folder / workdir),
            f"--config.data.train={folder / train}",
            *flags,
        )
        assert out == "" and "Traceback" not in err
        return code, err

    return run


def last(err):
    """Returns the message that ends a failed call."""
    line = err.splitlines()[-1]
    assert line.startswith("dpa-jax: ")
    return line


# --- images ---


def test_empty_folder(attempt, folder):
    (folder / "empty").mkdir()
    code, err = attempt(train="empty")
    assert code == 1
    assert re.search(r"empty holds no images: files that end in \.png", last(err))


def test_missing_folder(attempt):
    code, err = attempt(train="nowhere")
    assert code == 1 and re.search("no file or folder .*nowhere", last(err))


def test_training_images_not_given(folder):
    config = run_factory.write_config(folder / "c.json", run_factory.quick_config())
    code, _, err = run_factory.call(
        "train", "--config", config, "--workdir", folder / "run"
    )
    assert code == 2 and "--config.data.train=DIR" in last(err)


def corrupt(path):
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)


def truncated(path):
    path.write_bytes(path.read_bytes()[:90])


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("this is not an image")


@pytest.mark.parametrize("damage", [corrupt, truncated, empty, text])
def test_unreadable_image_is_named_and_stops_the_run(attempt, folder, damage):
    damage(folder / "train" / "07.png")
    code, err = attempt()
    assert code == 1
    message = last(err)
    assert f"{folder}/train/07.png: " in message
    assert "--config.data.skip_corrupt=true" in message
    assert checkpoints.latest(folder / "run") is None


def test_skip_corrupt_counts_lists_and_goes_on(attempt, folder):
    damaged = {"01": empty, "04": text, "07": truncated}
    for name, damage in damaged.items():
        damage(folder / "train" / f"{name}.png")
    code, err = attempt("--config.data.skip_corrupt=true")
    assert code == 0, err
    assert "3 of 12 images cannot be used and are left out" in err
    assert f"{folder}/run/skipped.csv" in err
    with open(folder / "run" / "skipped.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    assert [row[0] for row in rows[1:]] == [
        f"{folder}/train/{name}.png" for name in damaged
    ]
    assert rows[1][1] == "the file is empty"
    kept = json.loads((folder / "run" / "data.json").read_text())
    assert kept["images"] == 9 and kept["skipped"] == 3
    assert checkpoints.latest(folder / "run") == 6


def test_nothing_but_corrupt_images(attempt, folder):
    for path in (folder / "train").iterdir():
        empty(path)
    code, err = attempt("--config.data.skip_corrupt=true")
    assert code == 1 and "none of 12 images can be used" in last(err)


def test_unreadable_folder(attempt, folder, monkeypatch):
    # as root may read everything, the system's refusal is played
    (folder / "train" / "secret").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    code, err = attempt()
    assert code == 1
    assert "train/secret: the folder cannot be read: Permission denied" in last(err)


def test_images_smaller_than_the_crop(attempt, folder):
    code, err = attempt("--config.data.crop=20")
    assert code == 1
    message = last(err)
    assert "train/00.png: 16x16 pixels" in message and "crop of 20" in message


def test_batch_larger_than_the_data_set(attempt):
    code, err = attempt("--config.batch_size=13")
    assert code == 2
    assert "batch_size is 13, but there are only 12 training images" in last(err)
    assert "--config.batch_size=12" in last(err)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_in_an_npz_that_are_not_finite(attempt, folder, value):
    images = run_factory.images(12).astype(np.float32) / 255
    images[5, 3, 3] = value
    run_factory.write_npz(folder / "a.npz", images=images)
    code, err = attempt(train="a.npz")
    assert code == 1
    assert f"{folder}/a.npz: images[5] has NaN or infinite values" in last(err)


def test_npz_that_is_none(attempt, folder):
    (folder / "a.npz").write_bytes(b"PK\x03\x04 but no more")
    code, err = attempt(train="a.npz")
    assert code == 1 and f"{folder}/a.npz: not an .npz of arrays" in last(err)


# --- configuration ---


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.learning_rat=1", "did you mean optimizer.learning_rate"),
        ("--config.data.resolution=24", "data.resolution is 24.*a power of two"),
        ("--config.stages.initial_resolution=6", "is 6; it must be a power of two"),
        ("--config.stages.initial_resolution=4", "is 4; with .* at least 8"),
        ("--config.data.resolution=16", "encoder_channels has 2 entries"),
        ("--config.optimizer.learning_rate=inf", "learning_rate is inf"),
        ("--config.model.kind=residual", "did you mean residual"),
    ],
)
def test_configurations_that_cannot_work(attempt, folder, flag, message):
    code, err = attempt(flag)
    assert code == 2 and re.search(message, last(err))
    assert not (folder / "run").exists()


def test_layer_without_a_pixel_left(attempt):
    code, err = attempt(
        "--config.loss.relative_perceptual=1", "--config.perceptual.layers=8:r52"
    )
    assert code == 2
    assert "r52 of vgg19 has no pixel left of a 8 pixel image" in last(err)


def test_missing_config(folder):
    code, _, err = run_factory.call(
        "train", "--config=nowhere.py", f"--workdir={folder}/run"
    )
    assert code == 2 and "no config nowhere.py; with dpa_jax come" in last(err)


def test_workdir_of_another_config(attempt, folder):
    assert attempt()[0] == 0
    before = run_factory.files(folder / "run")
    code, err = attempt("--config.batch_size=4", "--config.seed=3")
    assert code == 2
    message = last(err)
    assert f"{folder}/run belongs to a run of another configuration" in message
    assert "batch_size was 8, is 4" in message and "seed was 0, is 3" in message
    assert run_factory.files(folder / "run") == before


def test_a_corrected_command_may_use_the_workdir_of_a_failed_one(attempt):
    assert attempt("--config.batch_size=13")[0] == 2
    assert attempt("--config.batch_size=12")[0] == 0


# --- weights ---


def test_missing_imagenet_weights(attempt, monkeypatch, folder):
    monkeypatch.setenv("DPA_JAX_CACHE", str(folder / "cache"))
    code, err = attempt(
        "--config.loss.relative_perceptual=1", "--config.perceptual.weights=imagenet"
    )
    assert code == 1
    assert "dpa-jax weights fetch" in last(err) and f"{folder}/cache" in last(err)


def test_missing_weights_and_statistics_are_named_together(
    attempt, monkeypatch, folder
):
    monkeypatch.setenv("DPA_JAX_CACHE", str(folder / "cache"))
    code, err = attempt(
        "--config.loss.relative_perceptual=1",
        "--config.perceptual.weights=imagenet",
        "--config.perceptual.statistics=imagenet",
    )
    assert code == 1 and "dpa-jax weights fetch" in last(err)
    assert f"{folder}/cache/vgg19_imagenet.safetensors" in last(err)
    assert f"{folder}/cache/vgg19_imagenet_statistics.npz" in last(err)
    assert "weights import FILE --stats FILE" in last(err)


@pytest.mark.parametrize("statistics", ["imagenet", "stats.npz"])
def test_missing_statistics_are_named_before_images_are_read(
    attempt, monkeypatch, folder, statistics
):
    monkeypatch.setenv("DPA_JAX_CACHE", str(folder / "cache"))
    (folder / "a.npz").write_bytes(b"no images")
    code, err = attempt(
        "--config.loss.relative_perceptual=1",
        f"--config.perceptual.statistics={statistics}",
        train="a.npz",
    )
    assert code == 1 and statistics in last(err) and "a.npz" not in last(err)


@pytest.mark.parametrize("weights", ["random:x", "nowhere.safetensors", "vgg.bin"])
def test_weights_that_are_none(attempt, weights):
    code, err = attempt(
        "--config.loss.relative_perceptual=1", f"--config.perceptual.weights={weights}"
    )
    assert code in (1, 2) and weights in last(err)


# --- disks ---


@contextlib.contextmanager
def disk(folder, size):
    """Mounts a disk of `size` bytes; skips where that is not allowed."""
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("there is no mount to make a small disk with")
    if done.returncode:
        pytest.skip(f"no small disk can be made here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder):
    """Leaves not a byte on a disk."""
    with open(folder / "filler", "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass


def test_disk_that_fills_up(attempt, folder, monkeypatch):
    save = checkpoints.Checkpoints.save

    def filling(self, *saved):
        save(self, *saved)
        self._manager.wait_until_finished()
        fill(folder / "disk")

    monkeypatch.setattr(checkpoints.Checkpoints, "save", filling)
    with disk(folder / "disk", 2 << 20) as small:
        # what comes next to the disk's end is the metrics
        flags = "--config.stages.final_steps=400", "--config.checkpoint_every=200"
        code, err = attempt(*flags, workdir="disk/run")
        assert code == 1
        assert f"{small}/run" in last(err) and "same command resumes" in last(err)
        assert checkpoints.latest(small / "run") == 200
        # with room again it does
        (small / "filler").unlink()
        monkeypatch.undo()
        code, err = attempt(*flags, workdir="disk/run")
        assert code == 0, err
        assert checkpoints.latest(small / "run") == 400


def test_disk_full_from_the_beginning(attempt, folder):
    with disk(folder / "disk", 1 << 16) as small:
        (small / "big").write_bytes(bytes((1 << 16) - 4096))
        code, err = attempt(workdir="disk/run")
        assert code == 1 and str(small / "run") in last(err)


def test_metrics_on_a_full_disk(attempt, folder, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    (folder / "run").mkdir()
    replace = os.replace

    def replaced(source, target):
        replace(source, target)
        if str(target).endswith("environment.json"):
            os.symlink("/dev/full", folder / "run" / "metrics.jsonl")

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(
        "dpa_jax.storage.metrics.Writer._keep_until", lambda *arguments: None
    )
    code, err = attempt()
    assert code == 1
    assert "run: metrics cannot be written: No space left on device" in last(err)


def test_read_only_disk(attempt, folder):
    with disk(folder / "disk", 1 << 20) as small:
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        code, err = attempt(workdir="disk/run")
        assert code == 1
        assert f"{small}/run: the workdir cannot be written: Read-only" in last(err)


def test_finished_run_on_a_read_only_disk_is_still_scored(attempt, folder):
    with disk(folder / "disk", 4 << 20) as small:
        assert attempt(workdir="disk/run")[0] == 0
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        code, err = attempt(workdir="disk/run")
        assert code == 0 and "is finished" in err
        command = ("score", folder / "train", "--workdir", small / "run", "--out")
        assert run_factory.call(*command, folder / "scores.csv")[0] == 0
        code, _, err = run_factory.call(*command, small / "scores.csv")
        assert code == 1
        assert re.search(r"disk/scores.csv.*Read-only file system", last(err))


def test_file_where_the_workdir_should_be(attempt, folder):
    (folder / "run").write_text("a file")
    code, err = attempt()
    assert code == 1 and f"{folder}/run: the workdir cannot be" in last(err)
    assert (folder / "run").read_text() == "a file"


def test_file_in_the_path_of_the_workdir(attempt, folder):
    (folder / "file").write_text("a file")
    code, err = attempt(workdir="file/run")
    assert code == 1 and "the workdir cannot be written: Not a dir" in last(err)


@pytest.mark.parametrize("name", ["samples", "tensorboard"])
def test_file_where_a_run_needs_a_folder(attempt, folder, name):
    (folder / "run").mkdir()
    config = run_factory.quick_config()
    config.data.train = str(folder / "train")
    run_factory.write_config(folder / "run" / "config.json", config)
    (folder / "run" / name).write_text("a file")
    code, err = attempt()
    assert code == 1 and f"run/{name}" in last(err)
    assert (folder / "run" / name).read_text() == "a file"
