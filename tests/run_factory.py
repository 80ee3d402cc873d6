"""Makes runs that train within seconds, and calls the command line."""

import contextlib
import io
import json
import os
import pathlib
import struct
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

from dpa_jax import training
from dpa_jax.cli import main
from dpa_jax.config import default_config
from dpa_jax.storage import checkpoints, config_files


def tiny_config():
    """Two stages and a transition of four steps each, 8 to 16 pixels, with VGG19."""
    config = default_config()
    config.data.resolution = 16
    config.model.kind = "residual9"  # half of residual18's time to compile
    config.model.latent_channels = 4
    config.model.encoder_channels = (4, 4, 4)
    config.model.decoder_channels = (4, 4, 4)
    config.stages.transition_steps = 4
    config.stages.stabilization_steps = 4
    config.stages.final_steps = 4
    config.perceptual.layers = "8:r11 16:r12"
    config.perceptual.weights = "random:0"
    config.perceptual.statistics = "train"
    config.batch_size = 8
    return config


def quick_config():
    """One stage of six steps at 8 pixels with a plain L1 loss."""
    config = tiny_config()
    config.data.resolution = 8
    config.model.encoder_channels = (4, 4)
    config.model.decoder_channels = (4, 4)
    config.stages.final_steps = 6
    config.perceptual.layers = "8:r11"
    config.loss.relative_perceptual = 0.0
    config.loss.l1 = 1.0
    return config


def images(count=24, size=16, seed=0):
    """Smooth random images, uint8 `[count, size, size]`."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 4, 4), np.uint8)
    resized = [
        Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        for image in small
    ]
    return np.stack([np.asarray(image) for image in resized])


def write_npz(path, **arrays):
    """Writes `images`, and whatever else is given, as an .npz; returns its name."""
    np.savez(path, **{"images": images(), **arrays})
    return str(path)


def write_folder(folder, count=4, size=16, seed=0):
    """Writes images as 00.png, 01.png and so on; returns the folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images(count, size, seed)):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return str(folder)


def write_config(path, config):
    """Writes a config as the JSON that --config takes; returns its name."""
    config_files.save(config, path)
    return str(path)


def call(*arguments) -> tuple[int, str, str]:
    """Calls the command line here; returns its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main.main([str(argument) for argument in arguments])
        except SystemExit as stopped:  # argparse's
            code = stopped.code
    return code, out.getvalue(), err.getvalue()


def start(*arguments, **options) -> subprocess.Popen:
    """Starts the command line as a process of its own."""
    root = pathlib.Path(__file__).resolve().parents[1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "dpa_jax", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


class Killed(Exception):
    """Stands for the end of a process."""


def train_until(config, folder, step) -> None:
    """Trains, and ends as if killed when the checkpoint of a step is written."""
    save = checkpoints.Checkpoints.save

    def save_and_end(self, number, *rest):
        save(self, number, *rest)
        if number == step:
            raise Killed

    with (
        mock.patch.object(checkpoints.Checkpoints, "save", save_and_end),
        pytest.raises(Killed),
    ):
        training.train(config, folder, visible=False)


def arrays(folder, step=None):
    """Returns all arrays of a checkpoint, by default the last."""
    step = checkpoints.latest(folder) if step is None else step
    return checkpoints.restore(folder, step).arrays


def rows(folder, without=("images_per_second",)):
    """Returns the rows of a run's metrics, without what differs from run to run."""
    lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k not in without} for row in found]


def assert_same_run(folder, other) -> None:
    """Checks that two runs ended in the same bits and wrote the same metrics."""
    step = checkpoints.latest(other)
    assert checkpoints.latest(folder) == step
    found, expected = arrays(folder, step), arrays(other, step)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert rows(folder) == rows(other)


def files(folder) -> dict[str, int]:
    """Returns when each file below a folder was written, in nanoseconds."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(pathlib.Path(folder).rglob("*"))
        if path.is_file()
    }


def events(folder):
    """Reads TensorBoard's records: a length, its checksum, an event, its checksum."""
    from tensorboardX.proto import event_pb2

    for path in sorted(pathlib.Path(folder).iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
