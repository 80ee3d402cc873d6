"""Two processes on this machine train as one with two devices does.

They begin from the command line, as on a cluster, and stream their shares of images
that are cropped and flipped.
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
import run_factory
import tiny_factory

from dpa_jax import checkpoint, config_files

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIMIT_S = 300


def start(folder, name, *flags, devices=1):
    """Starts `dpa-jax train` in a process of its own, what it says kept in a file."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
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


def said(folder):
    return {path.name: path.read_text() for path in folder.glob("*.txt")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of both runs."""
    folder = tmp_path_factory.mktemp("processes")
    config = run_factory.tiny_config()
    config.data.train = run_factory.write_folder(folder / "images", 21, size=20)
    (folder / "images" / "08.png").write_bytes(b"no picture")
    config.data.skip_corrupt = True
    config.data.size = 20
    config.data.random_crop = True
    config.data.horizontal_flip = True
    config.data.residency = "stream"
    config.stages.stabilization_steps = 2
    config.stages.transition_steps = 3
    config.stages.final_steps = 3
    config.perceptual.layers = "8:r11 16:r11"
    config.optimizer.learning_rate = tiny_factory.RATE
    config.log_every = 1
    config_files.save(config, folder / "config.json")
    port = free_port()
    processes = [
        start(
            folder,
            f"two_{process}",
            "--workdir=two",
            f"--coordinator=localhost:{port}",
            "--processes=2",
            f"--process={process}",
        )
        for process in range(2)
    ]
    processes.append(start(folder, "one", "--workdir=one", devices=2))
    assert finish(processes) == [0, 0, 0], said(folder)
    return folder


def test_two_processes_train_as_one(trained):
    one, two = (checkpoint.restore(trained / name, 8) for name in ("one", "two"))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_two_processes_log_the_losses_of_one(trained):
    losses = []
    for name in ("one", "two"):
        lines = (trained / name / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows] == list(range(1, 9))  # of one writer
        losses.append([row["loss"] for row in rows])
    # several processes compile without our XLA options: other kernels, other rounding
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_one_process_alone_speaks_and_writes(trained):
    assert "is finished: 8 steps" in (trained / "two_0.txt").read_text()
    assert "steps" not in (trained / "two_1.txt").read_text()


def test_each_process_reads_its_share_and_knows_what_the_others_left_out(trained):
    said = (trained / "two_0.txt").read_text()
    assert "reading images: 10/10 images" in said
    assert "reading images: 21/21 images" in (trained / "one.txt").read_text()
    for name in ("one", "two"):
        data = json.loads((trained / name / "data.json").read_text())
        assert (data["images"], data["skipped"]) == (20, 1)
    kept = [(trained / name / "skipped.csv").read_text() for name in ("one", "two")]
    assert kept[0] == kept[1] and "08.png" in kept[0]


def test_two_processes_write_what_one_does(trained):
    names = [
        {p.relative_to(trained / run) for p in (trained / run).glob("*")}
        for run in ("one", "two")
    ]
    assert names[0] == names[1]
    assert len(list((trained / "two" / "tensorboard").iterdir())) == 1
    environment = json.loads((trained / "two" / "environment.json").read_text())
    assert environment["processes"] == 2 and len(environment["devices"]) == 2
