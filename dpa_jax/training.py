"""From a configuration and images to a trained workdir."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np

from dpa_jax import (
    checkpoint,
    data,
    errors,
    folds,
    frozen,
    metrics,
    parallel,
    stages,
    stopping,
    validation,
    workdir,
)
from dpa_jax import config as config_lib
from dpa_jax.data import feeding, labels
from dpa_jax.member import Member
from dpa_jax.run import AfterStage, Run
from dpa_jax.slides import provenance

# what runs that are trained at once may differ in
_OWN = ("seed", "optimizer.learning_rate")


def train(
    config: ml_collections.ConfigDict,
    folder: str | os.PathLike,
    *,
    visible: bool = True,
) -> pathlib.Path:
    """Trains a run, or goes on with it where it was interrupted.

    Args:
      config: see `config.default_config`.
      folder: the workdir; made if it does not exist. With `population.seeds` above 1
        the runs lie in its `members/0`, `members/1` and so on, each an ordinary
        workdir.
      visible: whether to show progress on stderr.

    Returns:
      The workdir, as `score.load` takes it.

    Raises:
      UsageError: the configuration cannot work, or is not that of the workdir.
      DpaError: images or weights cannot be used, the loss diverged, or the workdir
        cannot be written. What was saved before stays.
    """
    validation.validate(config)
    parallel.check_batch(config.batch_size, jax.device_count())
    folder, main = pathlib.Path(folder), parallel.is_main_process()
    visible = visible and main
    configs = members(config)
    folders = [folder]
    if len(configs) > 1:
        folders = [folder / workdir.MEMBERS / str(i) for i in range(len(configs))]
    if main:
        for one, place in zip(configs, folders, strict=True):
            workdir.claim(place, one)
        workdir.claim(folder, config)
    parallel.barrier("workdir")
    end = stages.schedule(config)[-1].end
    if not any(_remaining(*pair, end) for pair in zip(configs, folders, strict=True)):
        if visible:
            metrics.say(f"{folder} is finished: {end:,} steps; nothing left to train.")
            metrics.say(f"Next: dpa-jax evaluate --workdir={folder}")
        return folder
    failures = train_together(configs, folders, visible=visible)
    for place, failure in zip(folders, failures, strict=True):
        if failure is not None:
            where = f"{place}: " if len(folders) > 1 else ""
            raise errors.DpaError(where + failure)
    if visible:
        stopped = [stopping.result(place) for place in folders]
        steps = [s.trained if s else end for s in stopped]
        metrics.say(
            f"{folder} is finished: {', '.join(f'{s:,}' for s in steps)} steps."
        )
        metrics.say(f"Next: dpa-jax evaluate --workdir={folder}")
    return folder


def members(
    config: ml_collections.ConfigDict,
) -> list[ml_collections.ConfigDict]:
    """Returns the configuration of each run of a population: this one, if it is none.

    Each can be trained alone, with the same result but for rounding.
    """
    count = config.population.seeds
    if count == 1:
        return [config]
    return [
        config_lib.updated(
            config,
            {
                "population.seeds": 1,
                "seed": config.seed + i,
                "data.seed": config_lib.data_seed(config),
            },
            "population",
        )
        for i in range(count)
    ]


def train_together(
    configs: Sequence[ml_collections.ConfigDict],
    folders: Sequence[str | os.PathLike],
    *,
    images: data.ImageSet | None = None,
    after_stage: AfterStage | None = None,
    visible: bool = True,
) -> list[str | None]:
    """Trains several runs at once on the same batches, or goes on with them.

    The features of the real images are computed once for all of them. One alone is
    trained just as well.

    Args:
      configs: that differ in seed and learning rate alone, their `data.seed` the same.
      folders: the workdir of each.
      images: the training images of all folds, if they are loaded already.
      after_stage: called after each stage but the last with the number of a run, the
        stage, and the run as it stands; where it returns False, that run is given up.
        Not called again, on resumption, for stages that were done before.
      visible: whether to show progress on stderr.

    Returns:
      For each run why it failed; None if it did not.

    Raises:
      UsageError: a configuration cannot work, is not that of its workdir, or differs
        from the others in more than the above.
      DpaError: images or weights cannot be used, or a workdir cannot be written.
    """
    config, main = configs[0], parallel.is_main_process()
    for one in configs:
        validation.validate(one)
    _check_alike(configs)
    parallel.check_batch(config.batch_size, jax.device_count())
    visible = visible and main
    plan = stages.schedule(config)
    places = [pathlib.Path(folder) for folder in folders]

    # --- the workdirs, and how far they have come ---
    if main:
        for place, one in zip(places, configs, strict=True):
            workdir.claim(place, one)
    parallel.barrier("workdirs")
    todo = [
        i
        for i, (one, place) in enumerate(zip(configs, places, strict=True))
        if _remaining(one, place, plan[-1].end)
    ]
    failures: list[str | None] = [None] * len(places)
    if not todo:
        return failures
    done = min(checkpoint.latest(places[i]) or 0 for i in todo)
    with contextlib.ExitStack() as stack:
        together = []
        for i in todo:
            # with early stopping the best step is among the last ones looked at
            last = config.early_stopping.patience + 3
            checkpoints = checkpoint.Checkpoints(
                places[i],
                keep=[stage.end for stage in plan],
                last=last if config.early_stopping.every else 2,
            )
            stack.enter_context(checkpoints)
            checkpoints.forget(done)
            together.append(Member(configs[i], places[i], checkpoints))

        # --- images, weights, statistics ---
        if images is None:
            images = training_images(config, visible=visible)
        if images.skipped and visible:
            metrics.say(
                f"{len(images.skipped)} of {len(images) + len(images.skipped)} images "
                "cannot be used and are left out: see "
                f"{places[todo[0]]}/skipped.csv"
            )
        images, held = _divided(images, config)
        seed = config_lib.data_seed(config)
        # refused before anything is computed, if there are too few images
        feeding.batch_indices(seed, len(images), config.batch_size, 0, 1)
        layers = frozen.layers_in_use(config, plan)
        weights = frozen.load_weights(config, layers)
        for i in todo if main else ():
            workdir.record_images(places[i], images)
            provenance.keep_stains(places[i], config)
            frozen.check_fingerprint(places[i], config, weights)
            workdir.write_json(
                places[i] / "environment.json", workdir.environment(configs[i].seed)
            )
        if main:
            first, *others = (places[i] for i in todo)
            frozen.load_or_compute_statistics(
                config, layers, weights, images.images, first, visible
            )
            frozen.share_statistics(first, others)
        parallel.barrier("statistics")
        statistics = frozen.load_or_compute_statistics(
            config, layers, weights, images.images, places[todo[0]], False
        )

        # --- train ---
        ask = None
        if after_stage is not None:

            def ask(number, stage, scorer):
                return after_stage(todo[number], stage, scorer)

        Run(
            together,
            plan,
            images.images,
            weights,
            statistics,
            held_out=held,
            after_stage=ask,
            visible=visible,
        ).go(done)
        for i, member in zip(todo, together, strict=True):
            failures[i] = member.failure
    return failures


def _check_alike(configs: Sequence[ml_collections.ConfigDict]) -> None:
    """Refuses runs that one program cannot train together."""
    first = config_lib.flat(configs[0])
    for other in map(config_lib.flat, configs[1:]):
        for name, value in first.items():
            if name not in _OWN and other[name] != value:
                raise errors.UsageError(
                    f"runs trained together differ in {name}: {value!r} and "
                    f"{other[name]!r}; only {' and '.join(_OWN)} may differ"
                )
    if len(configs) > 1 and len({config_lib.data_seed(one) for one in configs}) > 1:
        raise errors.UsageError(
            "runs trained together see the same batches: give them the same data.seed"
        )


def _remaining(config, folder: pathlib.Path, end: int) -> bool:
    """Says whether there is something left to train of a run."""
    if config.early_stopping.every:
        return stopping.result(folder) is None
    return (checkpoint.latest(folder) or 0) < end


def training_images(
    config: ml_collections.ConfigDict, *, visible: bool = True
) -> data.ImageSet:
    """Loads the normal training images, those of all folds.

    Args:
      config: validated.
      visible: whether to show progress on stderr.

    Raises:
      DpaError: they cannot be used, or none is normal.
    """
    if not config.data.train:
        raise errors.UsageError(
            "data.train is empty: say where the normal training images are, "
            "such as --config.data.train=DIR"
        )
    with metrics.counting("reading images", "images", visible) as show:
        images = data.load(
            config.data.train,
            data.Preprocessing.from_config(config),
            skip_corrupt=config.data.skip_corrupt,
            workers=config.data.workers,
            progress=show,
            data_dir=config.data.data_dir or None,
            shared=True,
        )
    if config.data.normal:
        found = labels.matches(images, config.data.normal)
        images = dataclasses.replace(images, labels=(~found).astype(np.int8))
    return _normal(images, visible)


def _divided(
    images: data.ImageSet, config: ml_collections.ConfigDict
) -> tuple[data.ImageSet, np.ndarray | None]:
    """Returns the images to train on, and those held out if there are folds."""
    if not config.data.folds:
        return images, None
    held = folds.held_out(images, config.data.folds, config.data.fold)
    return images.select(~held), images.images[held]


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
