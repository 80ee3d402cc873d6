"""What is attacked: a run, one that stands halfway, and a prepared data set."""

import json
import pathlib
import shutil
from typing import Any
from unittest import mock

import jax
import ml_collections
import numpy as np
from PIL import Image

import dpa_jax
from dpa_jax import data, errors
from dpa_jax.config import default_config
from dpa_jax.storage import checkpoints, config_files

STEPS, _HALF = 240, 120
_FORM = data.Preprocessing(1, 8)


class Lost(Exception):
    """An attack that was not survived."""


class Target:
    """A run that was left alone, one that stands halfway, and a prepared data set.

    Attributes:
      folder: where they are.
      config: of both runs.
      whole: the workdir of the run that was left alone.
      half: that of the other.
      data_set: the folder of the data set `tfds:chaos:train`.
      images: that it holds.
    """

    def __init__(self, folder: pathlib.Path):
        # compiled once, not once for each attack
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        self.folder, self.config = folder, _config(folder)
        self.whole, self.half = folder / "whole", folder / "half"
        _train(self.config, self.whole, self.half)
        self.data_set = _prepare(folder)
        self.images = load(self.data_set)

    def copy(self, folder: pathlib.Path) -> pathlib.Path:
        """Copies the run that stands halfway, to be attacked."""
        return shutil.copytree(self.half, folder / "run")

    def go_on(self, workdir: pathlib.Path) -> str:
        """Trains on; returns an error's message, empty if it came to its end.

        Raises:
          Lost: it fails in any other way.
        """
        try:
            dpa_jax.train(self.config, workdir, visible=False)
        except errors.DpaError as error:
            return str(error)
        except Exception as error:
            raise Lost(f"{type(error).__name__}: {error}") from error
        return ""

    def compare(self, workdir: pathlib.Path, log: bool = True) -> None:
        """Compares a run that came to its end with the one that was left alone.

        Args:
          workdir: of the run.
          log: whether its metrics must be the same too.

        Raises:
          Lost: they differ.
        """
        ends = [checkpoints.restore(place, STEPS) for place in (workdir, self.whole)]
        found, expected = (jax.tree.leaves(end.arrays) for end in ends)
        if not all(map(np.array_equal, found, expected)):
            raise Lost("other parameters")
        if log and _rows(workdir) != _rows(self.whole):
            raise Lost("other metrics")

    def finish(self, workdir: pathlib.Path) -> None:
        """Trains on to the end, which must come, and compares."""
        message = self.go_on(workdir)
        if message:
            raise Lost(message)
        self.compare(workdir)


# --- what is attacked


def _config(folder: pathlib.Path) -> ml_collections.ConfigDict:
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (64, 8, 8), np.uint8))
    config = default_config()
    config.data.train = str(folder / "images.npz")
    config.data.resolution = config.stages.initial_resolution = 8
    config.model.latent_channels = 4
    config.model.encoder_channels = config.model.decoder_channels = (4, 4)
    config.stages.final_steps = STEPS
    config.perceptual.layers = "8:r11"
    config.perceptual.weights = "random:0"
    config.perceptual.statistics = "train"
    config.batch_size = 16
    config.checkpoint_every, config.log_every, config.steps_per_chunk = 40, 50, 20
    config_files.save(config, folder / "config.json")
    return config


def _train(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, half: pathlib.Path
) -> None:
    """Trains, and copies the workdir as it is after half of the steps."""
    save = checkpoints.Checkpoints.save

    def save_and_copy(self, step, *rest):
        save(self, step, *rest)
        if step == _HALF:
            self.wait()
            shutil.copytree(workdir, half)

    with mock.patch.object(checkpoints.Checkpoints, "save", save_and_copy):
        dpa_jax.train(config, workdir, visible=False)


def _prepare(folder: pathlib.Path) -> pathlib.Path:
    import tensorflow_datasets as tfds

    from dpa_jax.datasets import from_manifest

    tfds.disable_progress_bar()
    rng = np.random.default_rng(1)
    lines = ["path,label"]
    for i, image in enumerate(rng.integers(0, 256, (8, 8, 8), np.uint8)):
        Image.fromarray(image).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{('normal', 'abnormal')[i % 2]}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    from_manifest.prepare(str(folder / "list.csv"), "chaos", folder / "data", 1)
    return folder / "data"


def load(data_set: pathlib.Path) -> data.ImageSet:
    """Loads the images of a prepared data set."""
    return data.load("tfds:chaos:train", _FORM, data_dir=str(data_set))


def _rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row.pop("images_per_second")
    return rows
