import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
import run_factory

import dpa_jax
from dpa_jax import errors
from dpa_jax.storage import checkpoints, config_files


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    """A config of some steps, with all that draws random numbers."""
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
    config.stages.transition_steps = 60
    config.log_every = 10
    config.checkpoint_every = 12
    return config


@pytest.fixture(scope="module")
def long(growing):
    """The same in one stage that takes seconds."""
    config = growing.copy_and_resolve_references()
    config.stages.initial_resolution = 16
    config.stages.final_steps = 400
    config.log_every = 50
    config.checkpoint_every = 50
    return config


@pytest.fixture(scope="module")
def whole(growing, tmp_path_factory):
    """That config's workdir, trained without an interruption."""
    return dpa_jax.train(growing, tmp_path_factory.mktemp("whole"), visible=False)


def test_killed_run_ends_bit_identical_to_an_uninterrupted_one(long, tmp_path):
    workdir = tmp_path / "run"
    command = (
        "train",
        "--config",
        run_factory.write_config(tmp_path / "config.json", long),
        "--workdir",
        workdir,
    )
    process = run_factory.start(*command)
    try:
        deadline = time.monotonic() + 240
        while checkpoints.latest(workdir) is None:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    stopped = checkpoints.latest(workdir)
    assert 0 < stopped < 400
    # as a kill may leave them: half a line, and steps beyond the checkpoint
    with open(workdir / "metrics.jsonl", "a") as log:
        log.write('{"step": 401, "loss": 1.0}\n{"step": 40')

    code, _, err = run_factory.call(*command)

    assert code == 0, err
    whole = dpa_jax.train(long, tmp_path / "whole", visible=False)
    run_factory.assert_same_run(workdir, whole)
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert all(name.isdigit() for name in names)
    assert {"400"} <= names


@pytest.mark.parametrize("last", [4, 15, 64])
def test_going_on_from_any_checkpoint_ends_the_same(growing, whole, tmp_path, last):
    config = growing.copy_and_resolve_references()
    config.checkpoint_every = 15  # in the middle of a window of metrics
    run_factory.train_until(config, tmp_path, last)
    assert checkpoints.latest(tmp_path) == last
    dpa_jax.train(config, tmp_path, visible=False)
    run_factory.assert_same_run(tmp_path, whole)


def test_half_written_checkpoint_is_not_taken_and_cleared(growing, whole, tmp_path):
    torn = tmp_path / "checkpoints" / "50.orbax-checkpoint-tmp" / "default"
    torn.mkdir(parents=True)
    (torn / "d").write_bytes(b"half")
    assert checkpoints.latest(tmp_path) is None
    (tmp_path / "config.json").write_text(config_files.to_json(growing))
    dpa_jax.train(growing, tmp_path, visible=False)
    run_factory.assert_same_run(tmp_path, whole)
    assert not torn.exists()


@pytest.fixture
def quick(tmp_path):
    """A run that ended as if killed at step 4 of 6, its checkpoints every 2."""
    config = run_factory.quick_config()
    config.checkpoint_every, config.log_every = 2, 3
    config.data.train = run_factory.write_npz(tmp_path / "train.npz")
    run_factory.train_until(config, tmp_path / "run", 4)
    return config


def test_other_images_than_it_began_with_are_refused(quick, tmp_path):
    run_factory.write_npz(tmp_path / "train.npz", images=run_factory.images(seed=1))
    with pytest.raises(errors.DpaError, match="was trained on 24 other images"):
        dpa_jax.train(quick, tmp_path / "run", visible=False)
    assert checkpoints.steps(tmp_path / "run") == [2, 4]


def test_a_run_of_an_earlier_version_goes_on(quick, tmp_path):
    """It called Adam's arrays otherwise, and its configuration had fewer fields."""
    whole = dpa_jax.train(quick, tmp_path / "whole", visible=False)
    workdir = tmp_path / "run"
    found = checkpoints.restore(workdir, 4)
    shutil.rmtree(workdir / "checkpoints" / "4")
    renamed = {n.removeprefix("0."): a for n, a in found.arrays["optimizer"].items()}
    assert set(renamed) == {"count", "mu", "nu"}
    with checkpoints.Checkpoints(workdir) as kept:
        kept.save(4, {**found.arrays, "optimizer": renamed}, found.notes)
    values = json.loads((workdir / "config.json").read_text())
    values["optimizer"] = {"learning_rate": values["optimizer"]["learning_rate"]}
    del values["loss"]["extra"], values["loss"]["extra_weight"]
    del values["perceptual"]["backbone"]
    (workdir / "config.json").write_text(json.dumps(values))
    dpa_jax.train(quick, workdir, visible=False)
    run_factory.assert_same_run(workdir, whole)


def test_a_row_of_metrics_is_of_all_its_steps_whenever_a_run_went_on(quick, tmp_path):
    whole = dpa_jax.train(quick, tmp_path / "whole", visible=False)
    dpa_jax.train(quick, tmp_path / "run", visible=False)
    rows = run_factory.rows(tmp_path / "run")
    assert [row["step"] for row in rows] == [3, 6]  # of which one began before 4
    assert rows == run_factory.rows(whole)


@pytest.mark.parametrize("left", [None, ""])
def test_lost_rows_of_metrics_are_told(quick, tmp_path, left, capsys):
    path = tmp_path / "run" / "metrics.jsonl"
    path.unlink()
    if left is not None:
        path.write_text(left)
    dpa_jax.train(quick, tmp_path / "run")
    assert (
        f"{path} is gone or cut off: its rows after step 0 up to 3 are lost"
        in capsys.readouterr().err
    )
    assert [row["step"] for row in run_factory.rows(tmp_path / "run")] == [6]


def test_checkpoints_are_written_within_a_chunk_if_they_are_due(quick, tmp_path):
    quick.steps_per_chunk = 6
    folder = dpa_jax.train(quick, tmp_path / "chunk", visible=False)
    assert checkpoints.steps(folder) == [4, 6]  # 2 was one too many to keep
    run_factory.assert_same_run(folder, dpa_jax.train(quick, tmp_path / "run"))


def damage(checkpoint):
    """Leaves a checkpoint with half of what it needs to be read."""
    for path in checkpoint.rglob("manifest.ocdbt"):
        path.write_bytes(path.read_bytes()[:10])


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(quick, tmp_path):
    whole = dpa_jax.train(quick, tmp_path / "whole", visible=False)
    damage(tmp_path / "run" / "checkpoints" / "4")
    code, _, err = run_factory.call(
        "train",
        "--config",
        tmp_path / "run" / "config.json",
        "--workdir",
        tmp_path / "run",
    )
    assert code == 0, err
    assert re.search(r"checkpoints/4: .*; set aside as .*checkpoints/4\.damaged\n", err)
    run_factory.assert_same_run(tmp_path / "run", whole)


def test_if_every_checkpoint_is_damaged_nothing_is_trained(quick, tmp_path):
    for step in (2, 4):
        damage(tmp_path / "run" / "checkpoints" / str(step))
    with pytest.raises(errors.DpaError, match="no checkpoint is left to go on from"):
        dpa_jax.train(quick, tmp_path / "run", visible=False)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["2.damaged", "4.damaged"]


def test_a_damaged_checkpoint_does_not_score(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    damage(workdir / "checkpoints" / "12")
    with pytest.raises(errors.DpaError, match="checkpoints/12: the checkpoint cannot"):
        dpa_jax.load(workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    assert dpa_jax.load(workdir).trained == 8


def test_a_finished_run_that_is_given_more_steps_is_the_longer_run(quick, tmp_path):
    folder = dpa_jax.train(quick, tmp_path / "run", visible=False)
    quick.stages.final_steps = 11
    whole = dpa_jax.train(quick, tmp_path / "whole", visible=False)
    dpa_jax.train(quick, folder, visible=False)
    assert checkpoints.latest(folder) == 11
    for a, b in zip(
        *(jax.tree.leaves(run_factory.arrays(w)) for w in (folder, whole)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_run_keeps_its_precision_on_another_machine(quick, tmp_path, capsys):
    path = tmp_path / "run" / "environment.json"
    about = json.loads(path.read_text())
    about["precision"] = "bfloat16"  # as on the accelerator where it began
    path.write_text(json.dumps(about))
    dpa_jax.train(quick, tmp_path / "run")
    assert "computing in bfloat16, in which this run began" in capsys.readouterr().err
    about = json.loads(path.read_text())
    assert about["resumed"][0]["precision"] == "bfloat16"
    assert about["resumed"][0]["step"] == 4
