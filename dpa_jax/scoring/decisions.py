"""What a calibration says of a batch: p-values, what is abnormal, whether it holds."""

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.stats

from dpa_jax.data.image_set import ImageSet
from dpa_jax.scoring import conformal
from dpa_jax.scoring.calibration import Calibration
from dpa_jax.scoring.units import Units

# capital of the bets against a batch that is like the calibration: such a batch ever
# reaches it with a probability of at most one in as many
LIMIT = 100
_SEED = 0  # of the drawing of places among equal scores


@dataclasses.dataclass(frozen=True, eq=False)
class Decisions:
    """Decisions on a batch of images.

    Attributes:
      calibration: that they are made by.
      units: of the batch.
      p_values: of the units, float64 `[U]`.
      abnormal: bool `[U]`, whether a unit is.
      seen: bool `[U]`, whether it has an image of the calibration.
      has_groups: False if images were each taken for a group, for want of groups.
      fdr: false discovery rate of the batch; None for alpha, of each unit.
    """

    calibration: Calibration
    units: Units
    p_values: np.ndarray
    abnormal: np.ndarray
    seen: np.ndarray
    has_groups: bool
    fdr: float | None

    def columns(self) -> dict[str, np.ndarray]:
        """Returns `p_value`, float64 `[N]`, and `abnormal`, int64 `[N]` 0 or 1."""
        index = self.units.index
        abnormal = self.abnormal.astype(np.int64)
        return {"p_value": self.p_values[index], "abnormal": abnormal[index]}

    def rates(self, labels: np.ndarray) -> dict[str, Any]:
        """Compares the decisions with labels.

        Args:
          labels: of the images, int `[N]`, 0 normal and 1 abnormal. A unit is abnormal
            if one of its images is.

        Returns:
          `alpha`, the false positive rate that is promised; `false_positive_rate` and
          `true_positive_rate`, each with its 95% interval of Clopper and Pearson
          (1934); `units` (what they are of: images or the column of groups),
          `normal_units` and `abnormal_units`, how many; `calibrated_on`, how many
          more are of the calibration and left out; and `shift` of the normal images,
          see `shift`. What is of no unit is None.
        """
        is_abnormal = np.zeros(len(self.p_values), bool)
        np.logical_or.at(is_abnormal, self.units.index, labels == 1)
        result: dict[str, Any] = {
            "alpha": self.calibration.alpha,
            "units": self._kind(),
        }
        for name, label in (("false", False), ("true", True)):
            chosen = self.abnormal[(is_abnormal == label) & ~self.seen]
            rate, interval = None, None
            if chosen.size:
                test = scipy.stats.binomtest(int(chosen.sum()), chosen.size)
                rate, interval = float(chosen.mean()), list(test.proportion_ci())
            result[f"{name}_positive_rate"] = rate
            result[f"{name}_positive_rate_interval"] = interval
        counts = np.bincount(is_abnormal[~self.seen], minlength=2).tolist()
        result["normal_units"], result["abnormal_units"] = counts
        result["calibrated_on"] = int(self.seen.sum())
        return {**result, "shift": self.shift(~is_abnormal & ~self.seen)}

    def shift(self, chosen: np.ndarray) -> dict[str, Any] | None:
        """Returns whether units are still like those of the calibration.

        Args:
          chosen: of the units, bool `[U]`.

        Returns:
          `log10_capital`, the most that betting against their p-values makes of 1 (see
          `conformal.log_martingale`); `is_shifted`, whether that reaches `LIMIT`;
          `at_most_alpha`, the share of p-values of at most alpha; and
          `median_difference` of their scores from the medians of the calibration, in
          standard deviations of the calibration. None if there are no units, or their
          groups are not known.
        """
        if not chosen.any() or not self.has_groups:
            return None
        rng = np.random.default_rng(_SEED)
        scores = self.units.scores
        places, distance = np.empty(len(scores)), np.empty(len(scores))
        for name, inside in self.units.by_stratum().items():
            inside = inside & chosen
            known = self.calibration.strata[name]
            places[inside] = conformal.sequential(known, scores[inside], rng)
            distance[inside] = (scores[inside] - np.median(known)) / known.std()
        capital = float(conformal.log_martingale(places[chosen]).max())
        at_most = self.p_values[chosen] <= self.calibration.alpha
        return {
            "log10_capital": capital / math.log(10),
            "is_shifted": capital >= math.log(LIMIT),
            "at_most_alpha": float(at_most.mean()),
            "median_difference": float(np.median(distance[chosen])),
        }

    def _kind(self) -> str:
        """Names what units are: images, or the column of their groups."""
        return (self.has_groups and self.calibration.group) or "images"

    def describe(self) -> str:
        """Returns a line on how many units are abnormal."""
        rule = f"a p-value of at most {self.calibration.alpha:.3g}"
        if self.fdr is not None:
            rule = f"a false discovery rate of {self.fdr:.3g}"
        counts = f"{self.abnormal.sum():,} of {len(self.abnormal):,}"
        text = f"{counts} {_counted(self._kind())} are abnormal by {rule}"
        if self.fdr is not None and not self.abnormal.any():
            least = 1 / (1 + max(map(len, self.calibration.strata.values())))
            needed = math.ceil(least * len(self.abnormal) / self.fdr)
            text += f" (of {least:.2g}, the least possible, it takes {needed:,})"
        return text

    def warnings(self) -> list[str]:
        """Returns sentences on what a reader of the p-values must know."""
        if not self.has_groups:
            return [
                f"the run is calibrated by {self.calibration.group}, which is unknown "
                "here: each image is taken for a group of its own, and its p-value is "
                "rather too high than too low"
            ]
        lines = _seen(int(self.seen.sum()))
        found = self.shift(~self.seen)
        if found is not None and found["is_shifted"]:
            text = describe_shift(found, self.calibration.alpha, "these images")
            lines.append(f"{text}, or many are abnormal")
        return lines


def check(calibration: Calibration | None, images: ImageSet) -> None:
    """Refuses what `decide` would, before images are scored, which may take long."""
    if calibration is not None:
        calibration.check(images)


def decide(
    calibration: Calibration | None,
    images: ImageSet,
    scores: np.ndarray,
    fdr: float | None = None,
) -> Decisions | None:
    """Decides which images are abnormal, if the run is calibrated.

    Args:
      calibration: of the run; None if it has none, and no decision is made.
      images: with the columns that it needs, if any.
      scores: of the images by the run, float `[N]`.
      fdr: false discovery rate of the batch, instead of alpha for each unit.

    Raises:
      DpaError: a score is not finite, or a stratum is not known.
    """
    if calibration is None:
        return None
    groups, strata = calibration.columns_of(images)
    units = calibration.units_of(scores, groups, strata)
    found = calibration.unit_p_values(units)
    abnormal = found <= calibration.alpha
    if fdr is not None:
        abnormal = conformal.benjamini_hochberg(found, fdr)
    seen = np.zeros(len(found), bool)
    np.logical_or.at(seen, units.index, calibration.has(images))
    has_groups = calibration.group is None or groups is not None
    return Decisions(calibration, units, found, abnormal, seen, has_groups, fdr)


def describe(result: dict[str, Any]) -> str:
    """Returns a line on what `Decisions.rates` found."""
    parts = []
    for name, kind in (("false", "normal"), ("true", "abnormal")):
        rate = result[f"{name}_positive_rate"]
        if rate is not None:
            low, high = result[f"{name}_positive_rate_interval"]
            count = result[f"{kind}_units"]
            parts.append(f"{rate:.1%} (95% {low:.1%} to {high:.1%}) of {count} {kind}")
    return (
        f"calibrated for a false positive rate of {result['alpha']:.3g}; called "
        f"abnormal are {' and '.join(parts)} {_counted(result['units'])}"
    )


def warnings_of(rates: dict[str, Any]) -> list[str]:
    """Returns sentences on what `Decisions.rates` found that must be known."""
    lines, shift = _seen(rates["calibrated_on"]), rates["shift"]
    if shift is not None and shift["is_shifted"]:
        lines.append(describe_shift(shift, rates["alpha"], "the normal images"))
    return lines


def describe_shift(found: dict[str, Any], alpha: float, what: str) -> str:
    """Returns a sentence on a shift.

    Args:
      found: see `Decisions.shift`.
      alpha: of the calibration.
      what: has shifted, such as `these images`.
    """
    side = "above" if found["median_difference"] > 0 else "below"
    return (
        f"{what} are not like those of the calibration: a bet of 1 against their "
        f"p-values has grown to 10^{found['log10_capital']:.1f}, where that of images "
        f"like them reaches {LIMIT} in at most one of {LIMIT} batches. "
        f"{found['at_most_alpha']:.1%} have a p-value of at most {alpha:.3g}; the "
        f"median score is {abs(found['median_difference']):.2g} standard deviations of "
        f"the calibration {side} its median. Something has changed since then"
    )


def _seen(count: int) -> list[str]:
    if not count:
        return []
    return [
        f"{count:,} of these were calibrated on: their p-values say nothing, and they "
        "are left out of rates"
    ]


def _counted(kind: str) -> str:
    return "images" if kind == "images" else f"units by {kind}"
