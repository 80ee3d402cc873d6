"""From a configuration and images to a trained workdir."""

import os
import pathlib

import jax
import ml_collections

from dpa_jax import (
    checkpoint,
    data,
    errors,
    frozen,
    metrics,
    parallel,
    stages,
    workdir,
)
from dpa_jax import config as config_lib
from dpa_jax.data import feeding
from dpa_jax.run import Run
from dpa_jax.slides import provenance


def train(
    config: ml_collections.ConfigDict,
    folder: str | os.PathLike,
    *,
    visible: bool = True,
) -> pathlib.Path:
    """Trains a run, or goes on with it where it was interrupted.

    Args:
      config: see `config.default_config`.
      folder: the workdir; made if it does not exist.
      visible: whether to show progress on stderr.

    Returns:
      The workdir, as `score.load` takes it.

    Raises:
      UsageError: the configuration cannot work, or is not that of the workdir.
      DpaError: images or weights cannot be used, the loss diverged, or the workdir
        cannot be written. What was saved before stays.
    """
    config_lib.validate(config)
    parallel.check_batch(config.batch_size, jax.device_count())
    folder, main = pathlib.Path(folder), parallel.is_main_process()
    visible = visible and main
    plan = stages.schedule(config)

    # --- the workdir, and how far it has come ---
    if main:
        workdir.claim(folder, config)
    parallel.barrier("workdir")
    done = checkpoint.latest(folder) or 0
    if done >= plan[-1].end:
        if visible:
            metrics.say(f"{folder} is finished: {done:,} steps; nothing left to train.")
            metrics.say(f"Next: dpa-jax evaluate --workdir={folder}")
        return folder
    with checkpoint.Checkpoints(folder, keep=[s.end for s in plan]) as checkpoints:
        # --- images, weights, statistics ---
        with metrics.counting("reading images", "images", visible) as show:
            images = data.load(
                _location(config),
                data.Preprocessing.from_config(config),
                skip_corrupt=config.data.skip_corrupt,
                workers=config.data.workers,
                progress=show,
                data_dir=config.data.data_dir or None,
            )
        if images.skipped and visible:
            metrics.say(
                f"{len(images.skipped)} of {len(images) + len(images.skipped)} images "
                f"cannot be used and are left out: see {folder}/skipped.csv"
            )
        images = _normal(images, visible)
        # refused before anything is computed, if there are too few images
        feeding.batch_indices(config.seed, len(images), config.batch_size, 0, 1)
        layers = frozen.layers_in_use(config, plan)
        weights = frozen.load_weights(config, layers)
        if main:
            workdir.record_images(folder, images)
            provenance.keep_stains(folder, config)
            frozen.check_fingerprint(folder, config, weights)
            frozen.load_or_compute_statistics(
                config, layers, weights, images.images, folder, visible
            )
            workdir.write_json(
                folder / "environment.json", workdir.environment(config.seed)
            )
        parallel.barrier("statistics")
        statistics = frozen.load_or_compute_statistics(
            config, layers, weights, images.images, folder, False
        )

        # --- train ---
        run = Run(config, folder, plan, images.images, weights, statistics, visible)
        run.go(checkpoints, done)
    if visible:
        metrics.say(f"{folder} is finished: {plan[-1].end:,} steps.")
        metrics.say(f"Next: dpa-jax evaluate --workdir={folder}")
    return folder


def _location(config: ml_collections.ConfigDict) -> str:
    if not config.data.train:
        raise errors.UsageError(
            "data.train is empty: say where the normal training images are, "
            "such as --config.data.train=DIR"
        )
    return config.data.train


def _normal(images: data.ImageSet, visible: bool) -> data.ImageSet:
    """Leaves out what a source marks as abnormal: the method learns normal images."""
    if images.labels is None or not images.labels.any():
        return images
    normal = images.select(images.labels == 0)
    if visible:
        metrics.say(
            f"{len(images) - len(normal)} of {len(images)} training images are marked "
            "abnormal and left out"
        )
    if not len(normal):
        raise errors.DpaError("every training image is marked abnormal")
    return normal
