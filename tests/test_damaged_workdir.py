"""Every file of a workdir, damaged: an error names it, or nothing reads it."""

import shutil

import numpy as np
import pytest

from dpa_jax import errors
from dpa_jax.backbones import frozen
from dpa_jax.data import ImageSet, inputs, leakage
from dpa_jax.storage import checkpoints, lock, metrics, workdir
from dpa_jax.training import early_stopping
from dpa_jax.training.run import past_failure
from dpa_jax.weights import statistics_files

STOPPED = '{"steps": 4, "trained": 12, "loss": 0.5, "stopped": true}'
IMAGES = ImageSet(np.zeros((1, 2, 2, 1), np.uint8), ["0.png"])
WEIGHTS = {"c11": {"bias": np.zeros(3, np.float32)}}

# what reads each file of a workdir
READERS = {
    "config.json": workdir.read_config,
    "data.json": lambda folder: workdir.record_images(folder, IMAGES),
    "early_stopping.json": early_stopping.result,
    "environment.json": workdir.precision,
    "failure.json": past_failure,
    "inputs.json": inputs.find,
    "metrics.jsonl": lambda folder: metrics.Writer(folder, 12).close(),
    "statistics.npz": lambda folder: statistics_files.load(
        str(folder / "statistics.npz")
    ),
    "training_images.npz": lambda folder: leakage.check(folder, IMAGES, "images"),
    "weights.json": lambda folder: frozen.check_fingerprint(
        folder, workdir.read_config(folder), WEIGHTS
    ),
    "lock": lambda folder: lock.hold(folder / "lock", "", "").__enter__(),
}
# what is written for people alone
UNREAD = ("samples", "tensorboard")
DAMAGES = {
    "empty": b"",
    "binary": b"\x80\x03\xff\x00" * 50 + b"\n",
    "a list": b"[]\n",
    "nothing in it": b"{}\n",
    "deep": b"[" * 100_000 + b"\n",
    "a long number": b'{"step": ' + b"9" * 5_000 + b"}\n",
    "other types": b'{"sha256": 1, "step": "2", "steps": [], "reason": 3}\n',
}


@pytest.fixture
def folder(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "early_stopping.json").write_text(STOPPED)
    (folder / "failure.json").write_text('{"step": 3, "reason": "it diverged"}')
    return folder


def test_there_is_a_reader_for_every_file(folder):
    found = {path.name for path in folder.iterdir()}
    assert found == {*READERS, *UNREAD, "checkpoints"}


@pytest.mark.parametrize("name", [name for name in READERS if name != "lock"])
def test_a_damaged_file_is_named(folder, name):
    for what, content in DAMAGES.items():
        (folder / name).write_bytes(content)
        if (name, what) in {
            # the first needs no field, and no row of metrics is none
            ("config.json", "nothing in it"),
            ("metrics.jsonl", "empty"),
        }:
            READERS[name](folder)
            continue
        with pytest.raises(errors.DpaError, match=f"run/{name}"):
            READERS[name](folder)
        assert (folder / name).read_bytes() == content, what


def test_the_lock_is_no_matter_of_its_content(folder):
    (folder / "lock").write_bytes(DAMAGES["binary"])
    with lock.hold(folder / "lock", "", ""):
        pass


def test_every_file_of_a_checkpoint_is_missed_or_not_needed(folder, trained):
    expected = checkpoints.restore(trained, 12)
    checkpoint = folder / "checkpoints" / "12"
    for path in sorted(checkpoint.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        for damaged in (b"", content[: len(content) // 2], b"[" * 100_000, b"\xff{}"):
            path.write_bytes(damaged)
            try:
                found = checkpoints.restore(folder, 12)
            except checkpoints.DamagedError as error:
                assert str(checkpoint) in str(error)
            else:
                assert found.notes == expected.notes, path
        path.write_bytes(content)


@pytest.mark.parametrize("digit", [b"0.0", b"1.5"])
def test_a_changed_digit_among_the_notes_is_damage(tmp_path, digit):
    notes = {"window": {"count": 1, "sums": {"loss": 0.5}}}
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(3, {"x": np.zeros(2)}, notes)
    assert checkpoints.restore(tmp_path, 3).notes == notes
    path = tmp_path / "checkpoints" / "3" / "meta" / "metadata"
    path.write_bytes(path.read_bytes().replace(b"0.5", digit))
    with pytest.raises(checkpoints.DamagedError, match="meta not as written"):
        checkpoints.restore(tmp_path, 3)


def test_a_checkpoint_beyond_the_config_is_named(trained, tmp_path):
    import dpa_jax

    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "checkpoints" / "12").rename(folder / "checkpoints" / "4000")
    with pytest.raises(errors.DpaError, match="step 4,000, but its config.json ends"):
        dpa_jax.load(folder)
