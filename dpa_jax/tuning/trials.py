"""Trials at work: the folds of some trials trained, and what they score."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from dpa_jax import data, folds, roc, score, stages, training
from dpa_jax.scorer import Scorer
from dpa_jax.training import checkpoints, early_stopping
from dpa_jax.tuning import anomalies, results


@dataclasses.dataclass
class Work:
    """A trial that a worker has taken.

    Attributes:
      trial: Optuna's.
      number: in the plan.
      values: its hyper-parameters by name.
      configs: of the run of each fold.
      folder: `STUDY/trials/NNNN`.
      retries: how often it was begun before by a worker that died.
      begun: when, by `time.monotonic`.
      state: running, then complete, pruned, failed or, if another worker took it
        over, lost.
      reason: why it failed or was pruned.
    """

    trial: Any
    number: int
    values: dict[str, Any]
    configs: Sequence[ml_collections.ConfigDict]
    folder: pathlib.Path
    retries: int
    begun: float = dataclasses.field(default_factory=time.monotonic)
    state: str = "running"
    reason: str = ""

    def fold_folder(self, fold: int) -> pathlib.Path:
        """Returns the workdir of a fold's run."""
        return self.folder / f"fold_{fold}"

    def scores(self, fold: int) -> pathlib.Path:
        """Returns the file of what a fold's run scores."""
        return self.fold_folder(fold) / results.SCORES

    def end(self, state: str, reason: str = "") -> None:
        """Notes how the trial ended."""
        self.state, self.reason = state, reason

    def told(self) -> dict[str, Any]:
        """Returns what trial.json holds."""
        return {
            "number": self.number,
            "state": self.state,
            "reason": self.reason,
            "parameters": self.values,
            "seconds": time.monotonic() - self.begun,
            "retries": self.retries,
        }


class Images:
    """The normal training images and the anomalies, as a config preprocesses them.

    Those of the last config stay in memory.

    Args:
      search: of the study.
      visible: whether to show progress.
    """

    def __init__(self, search: ml_collections.ConfigDict, visible: bool):
        self._search, self.visible = search, visible
        self._key: Any = None
        self._found: Any = None

    def __call__(self, config: ml_collections.ConfigDict):
        """Returns the normal images of all folds, and the pool or None."""
        key = data.Preprocessing.from_config(config)
        if key != self._key:
            self._found = None  # not two sets in memory at once
            self._found = (
                training.training_images(config, visible=self.visible),
                anomalies.load(self._search.anomalies, config, visible=self.visible),
            )
            self._key = key
        return self._found


# Told a trial's value after a stage; may end the trial.
Judge = Callable[[Work, stages.Stage, int, float], None]


def train_fold(works: Sequence[Work], fold: int, images: Images, judge: Judge) -> None:
    """Trains and scores a fold of trials that have equal shapes; or goes on with it.

    What fails or is given up has its state changed; of the others there are scores.

    Args:
      works: that are running.
      fold: from 0.
      images: see `Images`.
      judge: asked between the stages of the first fold.
    """
    todo = [work for work in works if not work.scores(fold).exists()]
    if not todo:
        return
    normal, pool = images(todo[0].configs[fold])
    held = normal.select(folds.held_out(normal, len(works[0].configs), fold))

    def step(work: Work) -> int:
        return checkpoints.latest(work.fold_folder(fold)) or 0

    # runs trained together begin at the same step: one that is further waits its turn
    for at in sorted({step(work) for work in todo}, reverse=True):
        equal = [work for work in todo if step(work) == at]
        if equal:
            _train(equal, fold, normal, held, pool, judge, images.visible)
    for work in todo:
        if work.state == "running":
            results.write_fold(work.scores(fold), _scored(work, fold, held, pool))


def _train(works, fold, normal, held, pool, judge, visible) -> None:
    plan = stages.schedule(works[0].configs[fold])

    def after_stage(number: int, stage: stages.Stage, scorer: Scorer) -> bool:
        work = works[number]
        judge(work, stage, plan.index(stage), value(scorer, held, pool))
        return work.state == "running"

    try:
        failures = training.train_together(
            [work.configs[fold] for work in works],
            [work.fold_folder(fold) for work in works],
            images=normal,
            after_stage=None if fold else after_stage,
            visible=visible,
        )
    except jax.errors.JaxRuntimeError as error:
        # most often too little memory: for all of them, perhaps not for each
        if len(works) > 1:
            for work in works:
                if work.state == "running":
                    _train([work], fold, normal, held, pool, judge, visible)
            return
        failures = [str(error).splitlines()[0]]
    for work, failure in zip(works, failures, strict=True):
        if failure is not None:
            work.end("failed", f"fold {fold}: {failure}")


def value(scorer: Scorer, held: data.ImageSet, pool: anomalies.Pool | None) -> float:
    """Returns the ROC AUC of held-out normal images against the drawn anomalies.

    Without anomalies it is the mean loss of the held-out images.

    Args:
      scorer: of a run as it stands.
      held: normal images that it was not trained on.
      pool: of anomalies.
    """
    normal = scorer(held.images)
    if pool is None or not len(pool.drawn):
        return float(normal.mean(dtype=np.float64))
    abnormal = scorer(pool.images.images[pool.drawn])
    labels = np.repeat([0, 1], [len(normal), len(abnormal)])
    return roc.auc(np.concatenate([normal, abnormal]), labels)


def _scored(work, fold, held, pool) -> results.Fold:
    config, folder = work.configs[fold], work.fold_folder(fold)
    scorer = score.load(folder)
    normal = scorer(held.images)
    steps = config.stages.final_steps
    loss = float(normal.mean(dtype=np.float64))
    if (stopped := early_stopping.result(folder)) is not None:
        steps, loss = stopped.steps, stopped.loss
    return results.Fold(
        normal,
        None if held.groups is None else tuple(held.groups),
        tuple(held.paths),
        np.zeros(0, np.float32) if pool is None else scorer(pool.images.images),
        steps,
        loss,
    )
