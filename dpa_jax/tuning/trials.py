"""A trial at work: its folds trained, and what they score.

What tuning needs of the training core is imported here alone.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from dpa_jax import data, folds, metrics, roc, score, stages, stopping, training
from dpa_jax.tuning import anomalies, selection

# what a run as it stands makes of images
Scorer = Callable[[np.ndarray], np.ndarray]


class Images:
    """The images of the folds and the anomalies, as a config preprocesses them.

    Those of the last config stay in memory.

    Args:
      options: of the search.
      visible: whether to show progress.
    """

    def __init__(self, options: ml_collections.ConfigDict, visible: bool):
        self._options, self.visible = options, visible
        self._key: Any = None
        self._found: Any = None

    def load(
        self, config: ml_collections.ConfigDict
    ) -> tuple[data.ImageSet, data.ImageSet, anomalies.Pool | None]:
        """Returns all normal images, those that folds are made of, and the pool."""
        key, options = data.Preprocessing.from_config(config), self._options
        if key != self._key:
            self._found = None  # not two sets in memory at once
            normal = training.training_images(config, visible=self.visible)
            pool = anomalies.load(options.anomalies, config, visible=self.visible)
            kept = anomalies.usable(normal, pool, options.folds)
            self._found, self._key = (normal, kept, pool), key
        return self._found


def train_fold(
    config: ml_collections.ConfigDict,
    path: pathlib.Path,
    images: Images,
    after_stage: Callable[[int, float], bool] | None,
) -> str:
    """Trains and scores a fold of a trial, or goes on with it.

    Args:
      config: of the fold's run.
      path: of the fold's scores, in the workdir of its run.
      images: see `Images`.
      after_stage: called between stages with their number and the value by then; where
        it returns False, the run is given up and not scored. None for never.

    Returns:
      Why training failed, empty if it did not.
    """
    _, normal, pool = images.load(config)
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
            visible=images.visible,
        )
    except jax.errors.JaxRuntimeError as error:  # most often too little memory
        failure = str(error).splitlines()[0]
    if failure is None and not any(given_up):
        selection.write_fold(path, _scored(config, path.parent, held, pool))
    return failure or ""


def value(scorer: Scorer, held: data.ImageSet, pool: anomalies.Pool | None) -> float:
    """Returns the ROC AUC of held-out normal images against the drawn anomalies.

    Without anomalies it is the mean loss of the held-out images.
    """
    normal = scorer(held.images)
    if pool is None or not len(pool.drawn):
        return float(normal.mean(dtype=np.float64))
    abnormal = scorer(pool.images.images[pool.drawn])
    labels = np.repeat([0, 1], [len(normal), len(abnormal)])
    return roc.auc(np.concatenate([normal, abnormal]), labels)


def _scored(config, folder: pathlib.Path, held, pool) -> selection.Fold:
    scorer = score.load(folder)
    normal = scorer(held.images)
    steps, loss = config.stages.final_steps, float(normal.mean(dtype=np.float64))
    if (stopped := stopping.result(folder)) is not None:
        steps, loss = stopped.steps, stopped.loss
    found = np.zeros(0, np.float32) if pool is None else scorer(pool.images.images)
    groups = np.array(held.groups or [""] * len(held), np.str_)
    return selection.Fold(normal, groups, found, steps, loss)


def score_run(folder: pathlib.Path, images: np.ndarray, show: metrics.Show):
    """Scores images with the run in a folder: float `[N]`."""
    return score.load(folder)(images, show)
