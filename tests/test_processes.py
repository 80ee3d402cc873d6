"""Two processes on this machine train as one with two devices does.

They begin from the command line, as on a cluster, stream their shares of augmented
images in the first test's first half, and keep targets in none.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from dpa_jax import checkpoint
from dpa_jax import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIMIT_S = 300


def start(folder, name, *flags, devices=1):
    """Starts `dpa-jax train` in a process of its own, what it says kept in a file."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "DPA_JAX_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "dpa_jax", "train", "--config=config.json", *flags]
    with open(folder / f"{name}.txt", "w") as output:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output
        )


def finish(processes):
    """Waits for all, and ends all if one does not come to its end."""
    try:
        return [process.wait(LIMIT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start_two(folder, workdir, *flags):
    port = free_port()
    return [
        start(
            folder,
            f"{workdir}_{process}",
            f"--workdir={workdir}",
            f"--coordinator=localhost:{port}",
            "--processes=2",
            f"--process={process}",
            *flags,
        )
        for process in range(2)
    ]


def said(folder):
    return {path.name: path.read_text() for path in folder.glob("*.txt")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of both runs."""
    folder = tmp_path_factory.mktemp("processes")
    config = config_lib.default_config()
    config.data.train = str(folder / "images.npz")
    config.data.resolution = 16
    config.data.size = 20
    config.data.random_crop = True
    config.data.horizontal_flip = True
    config.data.residency = "stream"
    config.model.kind = "residual9"
    config.model.latent_channels = 4
    config.model.encoder_channels = (4, 4, 4)
    config.model.decoder_channels = (4, 4, 4)
    config.stages.stabilization_steps = 2
    config.stages.transition_steps = 3
    config.stages.final_steps = 3
    config.perceptual.layers = "8:r11 16:r11"
    config.perceptual.weights = "random:0"
    config.perceptual.statistics = "train"
    config.optimizer.learning_rate = 1e-4  # see test_parallel
    config.batch_size = 8
    config.log_every = 1
    config_lib.save(config, folder / "config.json")
    images = np.random.default_rng(0).integers(0, 256, (21, 20, 20, 1), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images)
    processes = [*start_two(folder, "two"), start(folder, "one", "--workdir=one", devices=2)]
    assert finish(processes) == [0, 0, 0], said(folder)
    return folder


def test_two_processes_train_as_one(trained):
    one, two = (checkpoint.restore(trained / name, 8) for name in ("one", "two"))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), two, one)


def test_two_processes_log_the_losses_of_one(trained):
    losses = []
    for name in ("one", "two"):
        lines = (trained / name / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows] == list(range(1, 9))  # of one writer
        losses.append([row["loss"] for row in rows])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


def test_one_process_alone_speaks_and_writes(trained):
    assert "is finished: 8 steps" in (trained / "two_0.txt").read_text()
    assert "steps" not in (trained / "two_1.txt").read_text()
    names = [
        {p.relative_to(trained / run) for p in (trained / run).glob("*")}
        for run in ("one", "two")
    ]
    assert names[0] == names[1]
    assert len(list((trained / "two" / "tensorboard").iterdir())) == 1
    environment = json.loads((trained / "two" / "environment.json").read_text())
    assert environment["processes"] == 2 and len(environment["devices"]) == 2


def test_two_processes_refuse_a_batch_they_cannot_share(trained):
    processes = start_two(trained, "odd", "--config.batch_size=7")
    assert finish(processes) == [2, 2], said(trained)
    assert "the nearest that can: 6 or 8" in (trained / "odd_0.txt").read_text()
