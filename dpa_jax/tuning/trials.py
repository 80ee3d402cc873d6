"""A trial at work: its folds trained, and what they score.

What tuning needs of the training core is imported here alone.
"""

import pathlib
from collections.abc import Callable

import ml_collections
import numpy as np

from dpa_jax import console, data, stages, training
from dpa_jax.data import folds
from dpa_jax.scoring import loading, roc
from dpa_jax.training import early_stopping, programs
from dpa_jax.training.compiled import Programs
from dpa_jax.tuning import anomalies, selection

# what a run as it stands makes of images
Scorer = Callable[[np.ndarray], np.ndarray]


# all normal images, those that folds are made of, and the pool of anomalies
Images = tuple[data.ImageSet, data.ImageSet, anomalies.Pool | None]
Loader = Callable[[ml_collections.ConfigDict], Images]


def loader(options: ml_collections.ConfigDict, visible: bool) -> Loader:
    """Returns a function that loads images as a config preprocesses them."""
    kept: dict[str, Images] = {}

    def load(config: ml_collections.ConfigDict) -> Images:
        if (key := str(config.data)) not in kept:
            kept.clear()  # not two sets in memory at once
            normal = training.training_images(config, visible=visible)
            pool = anomalies.load(options.anomalies, config, visible)
            kept[key] = normal, anomalies.usable(normal, pool, options.folds), pool
        return kept[key]

    return load


def train_fold(
    config: ml_collections.ConfigDict,
    path: pathlib.Path,
    images: Images,
    after_stage: Callable[[int, float], bool] | None,
    compiled: Programs,
    visible: bool,
) -> str:
    """Trains and scores a fold of a trial, or goes on with it.

    Args:
      config: of the fold's run.
      path: of the fold's scores, in the workdir of its run.
      images: as `loader` loads them.
      after_stage: called between stages with their number and the value by then; where
        it returns False, the run is given up and not scored. None for never.
      compiled: the programs of the fold before, replaced by those of this one.
      visible: whether to show progress.

    Returns:
      Why training failed, empty if it did not.
    """
    _, normal, pool = images
    held = normal.select(folds.held_out(normal, config.data.folds, config.data.fold))
    plan, given_up = stages.schedule(config), []

    def report(number: int, stage: stages.Stage, scorer: Scorer) -> bool:
        assert after_stage is not None
        given_up[:] = [not after_stage(plan.index(stage), value(scorer, held, pool))]
        return not given_up[0]

    try:
        (failure,) = training.train_together(
            [config],
            [path.parent],
            images=normal,
            after_stage=None if after_stage is None else report,
            compiled=compiled,
            visible=visible,
        )
    except programs.OutOfMemoryError as error:
        failure = str(error)  # of this trial: another may fit
    if failure or any(given_up):
        return failure or ""

    # --- score ---
    scorer = loading.load(path.parent)
    found, stopped = scorer(held.images), early_stopping.result(path.parent)
    steps, loss = config.stages.final_steps, float(found.mean(dtype=np.float64))
    if stopped is not None:
        steps, loss = stopped.steps, stopped.loss
    others = np.zeros(0, np.float32) if pool is None else scorer(pool.images.images)
    groups = np.array(held.groups or [""] * len(held), np.str_)
    selection.write_fold(path, selection.Fold(found, groups, others, steps, loss))
    return ""


def value(scorer: Scorer, held: data.ImageSet, pool: anomalies.Pool | None) -> float:
    """Returns the ROC AUC of held-out images and drawn anomalies, or else the loss."""
    normal = scorer(held.images)
    if pool is None or not len(pool.drawn):
        return float(normal.mean(dtype=np.float64))
    abnormal = scorer(pool.images.images[pool.drawn])
    labels = np.repeat([0, 1], [len(normal), len(abnormal)])
    return roc.auc(np.concatenate([normal, abnormal]), labels)


def score_run(folder: pathlib.Path, images: np.ndarray, show: console.Progress):
    """Scores images with the run in a folder: float `[N]`."""
    return loading.load(folder)(images, show)
