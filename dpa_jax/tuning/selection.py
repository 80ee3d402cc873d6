"""Which trial is best, how sure that is, and how much too good it looks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from dpa_jax import config as config_lib
from dpa_jax import errors, roc
from dpa_jax.tuning.results import Fold, Trial, complete

# what an image is before it is scored
_SEEN = ("train", "normal", "channels", "resolution", "resize", "crop", "equalize")
_DIGITS = 12  # of AUCs that are equal but for how their mean was taken
_TERMS = ("relative_perceptual", "perceptual", "l1", "l2")


@dataclasses.dataclass(frozen=True)
class Value:
    """A trial's mean ROC AUC over the folds, its 95% interval, and that of each."""

    auc: float
    low: float
    high: float
    folds: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Optimism:
    """What speaks against taking the best trial's AUC at its word.

    Attributes:
      spread: its highest fold less its lowest.
      sd: the standard deviation over its folds; None of a single one.
      nested: by how much a choice by all folds but one is worse on that one, the mean
        over the folds; None if there are fewer than two folds or two trials.
      resampled: by how much the best of a resample has less of all images, the mean
        over the resamples; None of a single trial.
      first: the share of the resamples in which the best trial is still the best.
    """

    spread: float
    sd: float | None
    nested: float | None
    resampled: float | None
    first: float


def alone(folds: Sequence[Fold]) -> np.ndarray:
    """Returns each fold's ROC AUC of each anomaly of the pool alone.

    That of several anomalies is the mean of theirs.

    Returns:
      float64 `[K, m]`.
    """
    return np.array([roc.wins(f.normal, f.anomalies) / len(f.normal) for f in folds])


def fold_aucs(folds: Sequence[Fold], drawn: np.ndarray) -> np.ndarray:
    """Returns each fold's ROC AUC of the drawn anomalies: float64 `[K]`.

    Args:
      folds: `K` of them.
      drawn: int, at least one index into the pool.
    """
    return alone(folds)[:, drawn].mean(axis=1)


def highest(aucs: np.ndarray) -> int:
    """Returns the index of the highest AUC `[T]`, the first of equal ones."""
    return int(np.round(aucs, _DIGITS).argmax())


def trial_value(
    folds: Sequence[Fold],
    drawn: np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Value:
    """Returns the mean ROC AUC over the folds with its interval.

    Args:
      folds: of the trial.
      drawn: int, at least one index into the pool.
      groups: of the whole pool's anomalies (patient, slide), None if unknown.
      resamples: of the percentile bootstrap.
      seed: of the bootstrap.
    """
    found = fold_aucs(folds, drawn)
    around = resampled(folds, drawn, groups, resamples=resamples, seed=seed)
    low, high = np.percentile(around, [2.5, 97.5])
    return Value(float(found.mean()), float(low), float(high), tuple(found.tolist()))


def resampled(
    folds: Sequence[Fold],
    drawn: np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Returns the mean ROC AUC over the folds in resamples, float64 `[R]`.

    The arguments are those of `trial_value`; see `roc.mean_resamples`.
    """
    return roc.mean_resamples(
        [fold.normal for fold in folds],
        [fold.anomalies[drawn] for fold in folds],
        [fold.groups for fold in folds],
        None if groups is None else [groups[i] for i in drawn],
        resamples=resamples,
        seed=seed,
    )


def ranked(trials: Sequence[Trial], drawn: np.ndarray) -> list[Trial]:
    """Returns the complete trials, the best first; of equals the first tried.

    Args:
      trials: of a study.
      drawn: int, indices into the pool. With none, trials are ranked by the held-out
        loss instead, the lowest first.

    Raises:
      UsageError: without anomalies, the losses of the trials cannot be compared.
    """
    trials = complete(trials)
    if len(drawn):
        aucs = [round(fold_aucs(t.folds, drawn).mean(), _DIGITS) for t in trials]
        order = sorted(range(len(aucs)), key=lambda i: (-aucs[i], trials[i].number))
        return [trials[i] for i in order]
    check_comparable(by_name(trials))
    return sorted(trials, key=lambda t: (t.loss, t.number))


def optimism(
    trials: Sequence[Trial],
    drawn: np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Optimism:
    """Estimates how much too good the best trial's AUC is for being the best.

    `nested` chooses the trial by the mean of all folds but one and looks at the one
    left out: the anomalies are the same in every fold, so that what suits them alone
    does not show. `resampled` chooses by resampled anomalies and normal images and
    looks at all of them, as Efron estimates a bias: both show, though less than in
    truth where many trials are alike (0.075 of 0.11 with 20 equal ones).

    Args:
      trials: of a study, at least one complete.
      drawn: int, at least one index into the pool.
      groups: of the whole pool's anomalies, None if unknown.
      resamples: of the bootstrap.
      seed: of the bootstrap.
    """
    done = complete(trials)
    table = np.array([fold_aucs(t.folds, drawn) for t in done])  # [T, K]
    means = table.mean(axis=1)
    best, fold = highest(means), np.arange(table.shape[1])
    several = len(fold) > 1
    nested = flattery = None
    if several and len(done) > 1:
        others = (table.sum(axis=1, keepdims=True) - table) / (len(fold) - 1)
        chosen = [highest(others[:, k]) for k in fold]
        nested = float((others[chosen, fold] - table[chosen, fold]).mean())
    around = np.array(
        [
            resampled(t.folds, drawn, groups, resamples=resamples, seed=seed)
            for t in done
        ]
    )  # [T, R]
    if len(done) > 1:
        flattery = float((around.max(axis=0) - means[around.argmax(axis=0)]).mean())
    return Optimism(
        spread=float(np.ptp(table[best])),
        sd=float(table[best].std(ddof=1)) if several else None,
        nested=nested,
        resampled=flattery,
        first=float((around[best] >= around.max(axis=0) - 1e-12).mean()),
    )


def incomparable(configs: Mapping[str, ml_collections.ConfigDict]) -> list[str]:
    """Returns the fields that make losses of runs measure different things.

    Args:
      configs: by the name that each is called by.

    Returns:
      Descriptions of fields, each with the first two values that differ.
    """
    names, measures = list(configs), [_measure(c) for c in configs.values()]
    found = []
    for field in measures[0] if measures else ():
        values = [measure[field] for measure in measures]
        other = next((i for i, v in enumerate(values) if v != values[0]), None)
        if other is not None:
            found.append(
                f"{field} ({values[0]!r} in {names[0]}, {values[other]!r} in "
                f"{names[other]})"
            )
    return found


def check_comparable(configs: Mapping[str, ml_collections.ConfigDict]) -> None:
    """Refuses to rank runs by loss if their losses do not measure the same.

    Raises:
      UsageError: naming the fields that differ; see `incomparable`.
    """
    if different := incomparable(configs):
        raise errors.UsageError(
            "without anomalies trials can be ranked by reconstruction loss alone, and "
            "losses are not comparable where they measure different things: "
            f"{'; '.join(different)}. Give anomalies, or leave that out of the search"
        )


def by_name(trials: Sequence[Trial]) -> dict[str, ml_collections.ConfigDict]:
    """Returns the configurations of complete trials as `incomparable` takes them."""
    return {f"trial {t.number}": t.config() for t in complete(trials)}


def _measure(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns what the loss of a held-out image is a function of, beside the model."""
    found = {f"data.{name}": config.data[name] for name in _SEEN}
    found["data.size"] = config_lib.stored_size(config)
    found |= {f"loss.{name}": config.loss[name] for name in _TERMS}
    features = config_lib.uses_vgg(config)
    layers = config_lib.perceptual_layers(config.perceptual.layers) if features else {}
    found["perceptual.layers"] = layers.get(config.data.resolution)
    for name in ("weights", "statistics", "image_weight"):
        found[f"perceptual.{name}"] = config.perceptual[name] if features else None
    found["perceptual.normalize"] = (
        config.perceptual.normalize if config.loss.perceptual else None
    )
    return found
