"""How a run is calibrated: it scores normal images that it was not trained on."""

import hashlib
import math
from collections.abc import Callable

import numpy as np

from dpa_jax import errors
from dpa_jax.data import leakage
from dpa_jax.data.image_set import ImageSet
from dpa_jax.scoring import calibration, conformal
from dpa_jax.scoring.scorer import Scorer
from dpa_jax.scoring.units import Units, column

_MAPPED = 1000  # images at most whose maps give the range of maps


def calibrate(
    scorer: Scorer,
    images: ImageSet,
    location: str,
    *,
    alpha: float,
    group: str | None = None,
    by: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> calibration.Calibration:
    """Scores normal images that were not trained on.

    Args:
      scorer: the run.
      images: normal ones, that were neither trained on nor chose anything.
      location: of the images.
      alpha: see `calibration.Calibration`.
      group: a column that names groups; None for the groups of the images if they have
        any.
      by: a column that parts strata.
      progress: called with the images done and in all.

    Raises:
      UsageError: alpha is not between 0 and 1.
      DpaError: there is no such column, a stratum has too few units for alpha, or its
        scores are all the same.
    """
    if not 0 < alpha < 1:
        raise errors.UsageError(f"alpha must lie between 0 and 1, not {alpha:g}")
    if group is None and images.groups is not None:
        group = "group"
    groups = leakage.fingerprints(images) if group is None else column(images, group)
    strata = None if by is None else column(images, by)
    planned = Units.of(np.zeros(len(images)), groups, strata)
    for name, chosen in planned.by_stratum().items():
        where = "" if by is None else f"{by}={name}: "
        _check_count(int(chosen.sum()), alpha, where, group)
    scores = scorer(images, progress)
    calibration.check_finite(scores)
    found = Units.of(scores, groups, strata)
    ordered = {n: np.sort(found.scores[c]) for n, c in found.by_stratum().items()}
    for name, values in ordered.items():
        if values[0] == values[-1]:
            raise errors.DpaError(f"all {len(values)} scores of {name} are the same")
    some = np.linspace(0, len(images) - 1, min(len(images), _MAPPED)).astype(int)
    maps = scorer.maps(images.select(some))
    digest = hashlib.sha256("".join(leakage.fingerprints(images)).encode())
    return calibration.Calibration(
        alpha=alpha,
        images=len(images),
        units=len(found.scores),
        group=group,
        by=by,
        strata=ordered,
        data={"location": location, "sha256": digest.hexdigest()},
        trained=scorer.trained,
        precision=scorer.precision,
        hashes=np.sort(leakage.hashes_of(images, scorer.config.data.resolution)),
        size=scorer.config.data.resolution,
        score_range=_normal_range(scores),
        map_range=_normal_range(maps),
    )


def _normal_range(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (50, 99.5))
    return float(low), float(high)


def _check_count(count: int, alpha: float, where: str, group: str | None) -> None:
    if count < conformal.fewest(alpha):
        what = "distinct normal images" if group is None else f"groups ({group})"
        least = math.ceil(1e4 / (count + 1)) / 1e4
        raise errors.DpaError(
            f"{where}alpha {alpha:g} needs at least {conformal.fewest(alpha)} {what}; "
            f"{count} are enough for {least:g}"
        )
