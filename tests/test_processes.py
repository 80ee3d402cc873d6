"""Two processes on this machine train as one with two devices does.

They begin from the command line, as on a cluster, each in a folder of its own as if
they shared no disk, and stream their shares of images that are cropped and flipped.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import run_factory

from dpa_jax import errors
from dpa_jax.devices import processes
from dpa_jax.storage import checkpoints, config_files

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIMIT_S = 300
SOON_S = 30  # in which all processes end once one has


class Trainer:
    """`dpa-jax train` in a process and a folder of its own, its output in a file."""

    def __init__(self, folder, config, *flags, devices=1, x64=False):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        config_files.save(config, folder / "config.json")
        flags_of_xla = os.environ["XLA_FLAGS"]  # conftest's
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": str(int(x64)),
            "XLA_FLAGS": f"{flags_of_xla} "
            f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(ROOT),
        }
        command = [
            *(sys.executable, "-m", "dpa_jax", "train"),
            *("--config=config.json", "--workdir=run", *flags),
        ]
        with open(folder / "output.txt", "w") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=output, stderr=output
            )

    @property
    def output(self):
        return (self.folder / "output.txt").read_text()

    @property
    def run(self):
        return self.folder / "run"


def wait(trainers, limit=LIMIT_S):
    """Returns the exit codes of all, and ends all if one does not come to its end."""
    deadline = time.monotonic() + limit
    try:
        return [t.process.wait(max(0.1, deadline - time.monotonic())) for t in trainers]
    finally:
        for trainer in trainers:
            trainer.process.kill()
            trainer.process.wait()


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def pair(folder, config, *, others=None, **options):
    """Starts two processes of one run; the second may have another configuration."""
    port = free_port()
    return [
        Trainer(
            folder / f"process_{number}",
            others if number and others else config,
            f"--coordinator=localhost:{port}",
            "--processes=2",
            f"--process={number}",
            **options,
        )
        for number in range(2)
    ]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Grows from 8 to 16 pixels by cropped and flipped images, one unreadable."""
    folder = tmp_path_factory.mktemp("images")
    config = run_factory.tiny_config()
    config.data.train = run_factory.write_folder(folder / "images", 21, size=20)
    (folder / "images" / "08.png").write_bytes(b"no picture")
    config.data.skip_corrupt = True
    config.data.size = 20
    config.data.random_crop = True
    config.data.horizontal_flip = True
    config.data.residency = "stream"
    config.stages.stabilization_steps = 40
    config.stages.transition_steps = 5
    config.stages.final_steps = 5
    config.perceptual.layers = "8:r11 16:r11"
    config.precision = "float64"
    config.log_every = 1
    return config


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """A run of two processes and the same of one, 50 steps in float64 each."""
    folder = tmp_path_factory.mktemp("processes")
    two = pair(folder, config, x64=True)
    one = Trainer(folder / "alone", config, devices=2, x64=True)
    assert wait([*two, one]) == [0, 0, 0], [t.output for t in (*two, one)]
    return two[0], two[1], one


def test_after_fifty_steps_two_processes_are_at_rounding_of_one(trained):
    first, _, one = trained
    found, expected = (run_factory.arrays(t.run, 50) for t in (first, one))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() < 1e-9 * max(1, np.abs(b).max())


def test_two_processes_log_the_losses_of_one(trained):
    first, _, one = trained
    found, expected = run_factory.rows(first.run), run_factory.rows(one.run)
    assert [row["step"] for row in found] == list(range(1, 51))  # of one writer
    np.testing.assert_allclose(
        [row["loss"] for row in found], [row["loss"] for row in expected], rtol=1e-9
    )


def test_process_0_alone_has_a_workdir_and_shows_progress(trained):
    first, second, _ = trained
    assert "is finished: 50 steps" in first.output
    assert "steps" not in second.output
    assert not second.run.exists()


def test_each_process_reads_its_share_and_knows_what_the_others_left_out(trained):
    first, _, one = trained
    assert "reading images: 10/10 images" in first.output
    assert "reading images: 21/21 images" in one.output
    for trainer in (first, one):
        data = json.loads((trainer.run / "data.json").read_text())
        assert (data["images"], data["skipped"]) == (20, 1)
    kept = [(trainer.run / "skipped.csv").read_text() for trainer in (first, one)]
    assert "08.png" in kept[0]
    assert [k.splitlines()[0] for k in kept] == ["path,reason"] * 2


def test_two_processes_write_what_one_does(trained):
    first, _, one = trained
    names = [{path.name for path in trainer.run.glob("*")} for trainer in (first, one)]
    assert names[0] == names[1]
    # what images were before is gathered from both
    inputs = [(trainer.run / "inputs.json").read_text() for trainer in (first, one)]
    assert inputs[0] == inputs[1] and '"8": 20' in inputs[0]
    assert len(list((first.run / "tensorboard").iterdir())) == 1
    environment = json.loads((first.run / "environment.json").read_text())
    assert environment["processes"] == 2 and len(environment["devices"]) == 2


# --- the end of one is the end of all


@pytest.fixture(scope="module")
def endless(config):
    """Of the same images at 8 pixels, one stage that goes on until it is stopped."""
    quick = run_factory.quick_config()
    quick.data = config.data.copy_and_resolve_references()
    quick.data.resolution = 8
    quick.stages.final_steps = 1_000_000
    quick.steps_per_chunk = 5
    quick.log_every = 10
    return quick


def training(trainers):
    """Waits until some steps are taken."""
    deadline = time.monotonic() + LIMIT_S
    metrics = trainers[0].run / "metrics.jsonl"
    while not metrics.exists() or len(run_factory.rows(trainers[0].run)) < 3:
        assert all(t.process.poll() is None for t in trainers), [
            t.output for t in trainers
        ]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_signal_to_one_process_saves_and_ends_all(endless, tmp_path):
    trainers = pair(tmp_path, endless)
    try:
        training(trainers)
        trainers[1].process.send_signal(signal.SIGTERM)
    finally:
        codes = wait(trainers, SOON_S)
    assert codes == [143, 143], [t.output for t in trainers]
    step = checkpoints.latest(trainers[0].run)
    for trainer in trainers:
        assert f"stopped by SIGTERM after step {step:,}" in trainer.output
        assert "Traceback" not in trainer.output


def test_sigterm_still_comes_to_a_process_that_has_joined():
    program = f"""
import os, signal, sys, time
from dpa_jax.devices import processes
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(5))
with processes.initialize("localhost:{free_port()}", 1, 0):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=LIMIT_S)
    assert done.returncode == 5


def test_a_stopped_process_tells_the_others_at_once():
    begun = time.monotonic()
    with pytest.raises(errors.Stopped), processes.ProcessGroup(0, 2):
        raise errors.Stopped("stopped by SIGTERM", signal.SIGTERM)
    assert time.monotonic() - begun < 0.5


def test_if_one_is_killed_the_other_ends_and_names_it(endless, tmp_path):
    trainers = pair(tmp_path, endless)
    try:
        training(trainers)
        trainers[1].process.kill()
    finally:
        codes = wait(trainers, SOON_S)
    assert codes[0] == 1
    assert "process 1 is gone; the same command goes on" in trainers[0].output


def test_an_error_of_one_ends_all_and_both_tell_it(endless, tmp_path):
    lost = endless.copy_and_resolve_references()
    lost.data.train = str(tmp_path / "nowhere")
    trainers = pair(tmp_path, endless, others=lost)
    codes = wait(trainers, 2 * SOON_S)
    assert codes == [1, 1], [t.output for t in trainers]
    for trainer in trainers:
        assert "there is no file or folder" in trainer.output
        assert "Traceback" not in trainer.output
    assert "process 1 on " in trainers[0].output


def test_processes_of_different_configurations_are_refused(endless, tmp_path):
    other = endless.copy_and_resolve_references()
    other.batch_size = 16
    trainers = pair(tmp_path, endless, others=other)
    codes = wait(trainers, 2 * SOON_S)
    assert sorted(codes) == [1, 2], [t.output for t in trainers]
    message = "process 1 has batch_size=16, process 0 8: give all the same"
    assert all(message in trainer.output for trainer in trainers)


def test_an_error_of_process_0_ends_all_and_both_tell_it(endless, tmp_path):
    (tmp_path / "process_0").mkdir()
    (tmp_path / "process_0" / "run").write_text("a file in the workdir's place")
    trainers = pair(tmp_path, endless)
    codes = wait(trainers, 2 * SOON_S)
    assert codes == [1, 1], [t.output for t in trainers]
    assert all("the workdir cannot be written" in t.output for t in trainers)
