import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest
import run_factory

import dpa_jax
from dpa_jax import checkpoint, config_files, errors, run


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    """A config whose transition takes seconds, with all that draws random numbers."""
    folder = tmp_path_factory.mktemp("growing")
    config = run_factory.tiny_config()
    config.data.train = run_factory.write_npz(
        folder / "train.npz", images=run_factory.images(size=20)
    )
    config.data.size = 20
    config.data.random_crop = True
    config.data.horizontal_flip = True
    config.data.vertical_flip = True
    config.loss.relative_perceptual, config.loss.l1 = 0.0, 1.0
    config.stages.transition_steps = 800
    config.log_every = 50
    config.checkpoint_every = 100
    return config


@pytest.fixture(scope="module")
def whole(growing, tmp_path_factory):
    """That config's workdir, trained without an interruption."""
    return dpa_jax.train(growing, tmp_path_factory.mktemp("whole"), visible=False)


def logged(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same_end(workdir, whole):
    step = checkpoint.latest(whole)
    assert checkpoint.latest(workdir) == step
    found, expected = (checkpoint.restore(w, step) for w in (workdir, whole))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_killed_run_ends_bit_identical_to_an_uninterrupted_one(
    growing, whole, tmp_path
):
    workdir = tmp_path / "run"
    command = (
        "train",
        "--config",
        run_factory.write_config(tmp_path / "config.json", growing),
        "--workdir",
        workdir,
    )
    process = run_factory.start(*command)
    try:
        deadline = time.monotonic() + 240
        # past the first checkpoint within the transition, which lasts from 4 to 804
        while (checkpoint.latest(workdir) or 0) <= 4:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    stopped = checkpoint.latest(workdir)
    assert 4 < stopped < 804
    # as a kill may leave them: half a line, and steps beyond the checkpoint
    with open(workdir / "metrics.jsonl", "a") as log:
        log.write('{"step": 801, "loss": 1.0}\n{"step": 80')

    code, _, err = run_factory.call(*command)

    assert code == 0, err
    assert_same_end(workdir, whole)
    assert [row["step"] for row in logged(workdir)] == [
        row["step"] for row in logged(whole)
    ]
    at = stopped - stopped % 50  # up to here nothing was averaged anew
    for found, expected in zip(logged(workdir), logged(whole), strict=True):
        assert found["alpha"] == expected["alpha"]
        if found["step"] <= at or found["step"] > at + 50:
            assert found["loss"] == expected["loss"], found["step"]
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert all(name.isdigit() for name in names)
    assert {"4", "804", "808"} <= names


@pytest.mark.parametrize("last", [4, 200, 804])
def test_going_on_from_any_checkpoint_ends_the_same(
    growing, whole, tmp_path, monkeypatch, last
):
    class Stop(Exception):
        pass

    save = checkpoint.Checkpoints.save

    def stopping(self, step, tree):
        save(self, step, tree)
        if step >= last:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", stopping)
        with pytest.raises(Stop):
            dpa_jax.train(growing, tmp_path, visible=False)
    assert last <= checkpoint.latest(tmp_path) < 808
    dpa_jax.train(growing, tmp_path, visible=False)
    assert_same_end(tmp_path, whole)


def test_half_written_checkpoint_is_not_taken_and_cleared(growing, whole, tmp_path):
    torn = tmp_path / "checkpoints" / "500.orbax-checkpoint-tmp" / "default"
    torn.mkdir(parents=True)
    (torn / "d").write_bytes(b"half")
    assert checkpoint.latest(tmp_path) is None
    (tmp_path / "config.json").write_text(config_files.to_json(growing))
    dpa_jax.train(growing, tmp_path, visible=False)
    assert_same_end(tmp_path, whole)
    assert not torn.exists()


def test_other_images_than_it_began_with_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run.engine, "steps_per_chunk", lambda spec, batch, span=0: 2)
    config = run_factory.quick_config()
    config.checkpoint_every = 2
    config.data.train = run_factory.write_npz(tmp_path / "train.npz")
    record = run.Run.record
    calls = []

    def interrupted(self, pending):
        if calls.append(pending) or len(calls) > 4:
            raise KeyboardInterrupt
        record(self, pending)

    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            dpa_jax.train(config, tmp_path / "run", visible=False)
    assert 0 < checkpoint.latest(tmp_path / "run") < 6
    run_factory.write_npz(tmp_path / "train.npz", images=run_factory.images(seed=1))
    with pytest.raises(errors.DpaError, match="was trained on 24 other images"):
        dpa_jax.train(config, tmp_path / "run", visible=False)


def test_damaged_checkpoint_is_named_with_what_to_do(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    for path in (workdir / "checkpoints" / "12").rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    with pytest.raises(errors.DpaError, match="checkpoints/12: the checkpoint cannot"):
        dpa_jax.load(workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    assert dpa_jax.load(workdir).trained == 8
