"""From a configuration and images to a trained workdir."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections

from dpa_jax import console, data, errors, population, stages, validation
from dpa_jax.backbones import frozen
from dpa_jax.data import inputs, training_images
from dpa_jax.devices import parallel, processes
from dpa_jax.devices.platform import Platform
from dpa_jax.ops import compute
from dpa_jax.slides import provenance
from dpa_jax.storage import checkpoints, lock, workdir
from dpa_jax.training import early_stopping, events, feeding, loop
from dpa_jax.training.compiled import Programs
from dpa_jax.training.loop import AfterStage
from dpa_jax.training.run import Run, past_failure
from dpa_jax.training.setup import Problem


def train(
    config: ml_collections.ConfigDict,
    folder: str | os.PathLike,
    *,
    images: Any = None,
    callbacks: Sequence[events.Callback] = (),
    platform: Platform | None = None,
    visible: bool = True,
) -> pathlib.Path:
    """Trains a run, or goes on with it where it was interrupted.

    Args:
      config: see `config.default_config`.
      folder: the workdir; made if it does not exist. With `population.seeds` above 1
        the runs lie in its `members/0`, `members/1` and so on, each an ordinary
        workdir.
      images: the normal training images instead of `data.train`, of any kind that
        `data.as_image_set` takes. To go on with the run, give the same again.
      callbacks: called with each `events.Event`, such as a row of metrics.
      platform: the machine; None takes the one at hand, with all processes that
        `jax.distributed` has joined.
      visible: whether to show progress on stderr.

    Returns:
      The workdir, as `score.load` takes it.

    Raises:
      UsageError: the configuration cannot work, or is not that of the workdir.
      DpaError: images or weights cannot be used, the loss diverged, or the workdir
        cannot be written. What was saved before stays.
      Interrupted: SIGTERM or SIGINT asked for it; all was saved.
    """
    folder = workdir.local(folder)
    platform = platform or Platform.here(processes.join())
    visible = visible and platform.is_main
    configs = population.members(config)
    folders = [folder]
    if len(configs) > 1:
        folders = [folder / workdir.MEMBERS / str(i) for i in range(len(configs))]
    end = stages.schedule(config)[-1].end
    try:
        trained = _train(
            configs,
            folders,
            platform,
            images=images,
            callbacks=callbacks,
            visible=visible,
            parent=(folder, config) if len(configs) > 1 else None,
        )
    except errors.Interrupted as stopped:
        again = f"dpa-jax train --config={folder}/config.json --workdir={folder}"
        if images is not None:
            again = "train() with the same images"
        raise errors.Interrupted(
            f"{stopped}, which is saved; go on by: {again}", stopped.signal
        ) from None
    for place, failure in zip(folders, trained.failures, strict=True):
        if failure is not None:
            where = f"{place}: " if len(folders) > 1 else ""
            raise errors.DpaError(where + failure)
    if visible:
        results = [early_stopping.result(place) for place in folders]
        steps = [f"{r.trained if r else end:,}" for r in results]
        nothing = "" if trained.anything else "; nothing left to train"
        console.print_line(f"{folder} is finished: {', '.join(steps)} steps{nothing}.")
        console.print_line(f"Next: dpa-jax evaluate --workdir={folder}")
    return folder


def train_together(
    configs: Sequence[ml_collections.ConfigDict],
    folders: Sequence[str | os.PathLike],
    *,
    images: data.ImageSet | None = None,
    after_stage: AfterStage | None = None,
    compiled: Programs | None = None,
    platform: Platform | None = None,
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
      compiled: programs of runs before, which those of these replace: given again it
        spares compiling them for runs of the same shapes on the same machine.
      platform: see `train`.
      visible: whether to show progress on stderr.

    Returns:
      For each run why it failed; None if it did not.

    Raises:
      UsageError: a configuration cannot work, is not that of its workdir, or differs
        from the others in more than the above.
      DpaError: images or weights cannot be used, or a workdir cannot be written.
      Interrupted: SIGTERM or SIGINT asked for it; all was saved.
    """
    platform = platform or Platform.here(processes.join())
    places = [workdir.local(folder) for folder in folders]
    visible = visible and platform.is_main
    return _train(
        configs,
        places,
        platform,
        images=images,
        after_stage=after_stage,
        compiled=compiled,
        visible=visible,
    ).failures


@dataclasses.dataclass(frozen=True)
class _Trained:
    """Why runs failed, None where they did not, and whether any was left to train."""

    failures: list[str | None]
    anything: bool


def _train(
    configs: Sequence[ml_collections.ConfigDict],
    folders: Sequence[pathlib.Path],
    platform: Platform,
    *,
    images: Any = None,
    callbacks: Sequence[events.Callback] = (),
    after_stage: AfterStage | None = None,
    compiled: Programs | None = None,
    visible: bool,
    parent: tuple[pathlib.Path, ml_collections.ConfigDict] | None = None,
) -> _Trained:
    """Prepares workdirs, images, weights and statistics, and trains."""
    configs = [validation.validate(one) for one in configs]
    if parent is not None:
        parent = (parent[0], validation.validate(parent[1]))
    config, group = configs[0], platform.group
    population.check_alike(configs)
    population.check_same_everywhere(configs, platform)
    parallel.check_batch(config.batch_size, len(platform.devices))
    plan = stages.schedule(config)
    end = plan[-1].end
    with contextlib.ExitStack() as stack:
        # --- the workdirs: process 0's alone ---
        def claim() -> dict[str, Any]:
            pairs = list(zip(folders, configs, strict=True))
            todo = [i for i, pair in enumerate(pairs) if _remaining(*pair, end)]
            all_pairs = [*([parent] if parent else []), *pairs]
            for place, _ in all_pairs if todo else ():
                workdir.make(place)
                conflict = f"{place} is being trained in"
                held = lock.hold(place / "lock", conflict, "give another --workdir")
                stack.enter_context(held)
            for pair in all_pairs:
                workdir.claim(*pair)
            reasons = [past_failure(place) for place in folders]
            return {"todo": todo, "failures": reasons}

        claimed = group.decide(claim)
        todo, failures = claimed["todo"], claimed["failures"]
        if not todo:
            return _Trained(failures, False)
        runs = [Run(configs[i], folders[i], callbacks=callbacks) for i in todo]

        # --- the backbone's weights, before anything that takes long ---
        layers = frozen.layers_in_use(config, plan)

        def load_weights() -> Any:
            frozen.check_present(config, layers, runs[0].folder)
            return frozen.load_weights(config, layers)

        weights = group.share(load_weights)

        # --- images ---
        preprocessing = data.Preprocessing.from_config(config)
        if images is None:
            images = training_images.training_images(
                config, platform=platform, visible=visible
            )
        else:
            images = data.as_image_set(images, preprocessing)
            images = training_images.normal(images, visible)
        if images.skipped and visible:
            console.print_line(
                f"{len(images.skipped)} of {len(images) + len(images.skipped)} images "
                f"cannot be used and are left out: see {runs[0].folder}/skipped.csv"
            )
        images, held_out = training_images.divided(images, config)
        # refused before anything is computed, if there are too few images
        feeding.batch_indices(0, len(images), config.batch_size, 0, 1)

        # --- statistics, precision: those of process 0, the same everywhere ---
        def fixed() -> dict[str, Any]:
            for run in runs:
                workdir.record_extensions(run.folder, run.config)
                workdir.record_images(run.folder, images, config.data.resolution)
                inputs.record(run.folder, images, preprocessing)
                provenance.keep_stains(run.folder, run.config)
                frozen.check_fingerprint(run.folder, run.config, weights)
            first, *others = (run.folder for run in runs)
            found = frozen.load_or_compute_statistics(
                config, layers, weights, images, first, platform.backend, visible
            )
            frozen.share_statistics(first, others)
            return found

        statistics = group.share(fixed)
        precision = group.decide(lambda: _precision(runs, platform, visible))

        # --- train ---
        def after_stage_of_all(number, stage, scorer):
            assert after_stage is not None
            return after_stage(todo[number], stage, scorer)

        problem = Problem(
            plan=plan,
            images=images.base,
            rows=images.rows,
            held_out=held_out,
            weights=weights,
            statistics=statistics,
            precision=precision,
        )
        loop.train(
            runs,
            problem,
            platform,
            after_stage=None if after_stage is None else after_stage_of_all,
            compiled=compiled,
            visible=visible,
        )
        found = group.decide(lambda: [run.failure for run in runs])
        for i, failure in zip(todo, found, strict=True):
            failures[i] = failure
    return _Trained(failures, True)


def _remaining(folder: pathlib.Path, config, end: int) -> bool:
    """Returns whether there is something left to train of a run."""
    if past_failure(folder) is not None:
        return False
    stopped = early_stopping.result(folder)
    if stopped is not None and stopped.stopped:
        return False
    done = checkpoints.latest(folder) or 0
    return done < end or (bool(config.early_stopping.every) and stopped is None)


def _precision(runs: Sequence[Run], platform: Platform, visible: bool) -> str:
    """Returns what to compute in: what a run began with, on whatever machine.

    Notes it, with the versions and devices of this session.
    """
    asked = runs[0].config.precision
    usual = compute.resolve(asked, platform.backend)
    kept = next(filter(None, (workdir.precision(r.folder) for r in runs)), usual)
    if kept != usual and visible:
        console.print_line(
            f"computing in {kept}, in which this run began, and not in {usual}, which "
            f"is usual on {platform.backend}"
        )
    for run in runs:
        step = checkpoints.latest(run.folder) or 0
        workdir.record_session(run.folder, run.config.seed, step, kept, platform)
    return kept
