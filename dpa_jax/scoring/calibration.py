"""A run's calibration: its scores of held-out normal images, kept in its workdir."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpa_jax import errors
from dpa_jax.data import leakage
from dpa_jax.data.image_set import ImageSet
from dpa_jax.scoring import conformal
from dpa_jax.scoring.units import Units, columns
from dpa_jax.storage import json_files, workdir

FILE = "calibration.json"
_REMEDY = "delete it and calibrate again"
_TEXT = (str, type(None))
_FIELDS: json_files.Fields = {
    **{"alpha": float, "images": int, "units": int, "group": _TEXT, "by": _TEXT},
    **{"strata": dict, "data": dict, "trained": int, "precision": str},
    **{"hashes": list, "size": int, "score_range": list, "map_range": list},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """The scores of held-out normal images, and what they are of.

    Attributes:
      alpha: the false positive rate that is promised.
      images: how many were scored.
      units: how many units they are, see `units`; equal images without a group are one.
      group: the column that groups are named in; None if images are units.
      by: the column that parts strata; None if there is one stratum.
      strata: float64 `[n]` by name: the scores of the stratum's units, ascending.
      data: `location` and `sha256` of the images.
      trained: the step of the run.
      precision: that was computed in.
      hashes: uint64, ascending, of the images; see `leakage.hashes`.
      size: of the centres that are hashed, in pixels.
      score_range: median and 99.5th percentile of the images' scores.
      map_range: those of the images' anomaly maps.
    """

    alpha: float
    images: int
    units: int
    group: str | None
    by: str | None
    strata: Mapping[str, np.ndarray]
    data: Mapping[str, str]
    trained: int
    precision: str
    hashes: np.ndarray
    size: int
    score_range: tuple[float, float]
    map_range: tuple[float, float]

    def threshold(self, stratum: str) -> float:
        """Returns the score above which a unit's p-value is at most alpha."""
        return conformal.threshold(self.strata[stratum], self.alpha)

    def has(self, images: ImageSet) -> np.ndarray:
        """Returns which images it is of, by their pixels: bool `[N]`."""
        return np.isin(leakage.hashes_of(images, self.size), self.hashes)

    def describe(self) -> list[str]:
        """Returns a line on each stratum."""
        lines = []
        for name, scores in self.strata.items():
            low, high = conformal.rate_range(len(scores), self.alpha)
            stratum = "" if self.by is None else f"{self.by}={name}: "
            kind = "images" if self.group is None else f"units by {self.group}"
            lines.append(
                f"{stratum}{len(scores):,} {kind}, abnormal above "
                f"{self.threshold(name):.4g}: at most {self.alpha:.3g} of the normal "
                f"ones on average, {low:.2g} to {high:.2g} in 90% of such calibrations"
            )
        return lines

    def p_values(
        self,
        scores: np.ndarray,
        groups: Sequence[Any] | None = None,
        by: Sequence[Any] | None = None,
    ) -> np.ndarray:
        """Returns the p-value of each image's unit; see `conformal.p_values`.

        Args:
          scores: of the run, float `[N]`.
          groups: `N` names of what images share, ignored if images are units here; None
            makes each image a group of its own. Its p-value is then too high rather
            than too low: one score is compared with the highest of several.
          by: `N` names of strata, if there are any here.

        Returns:
          float64 `[N]`, the same for all images of a unit.

        Raises:
          DpaError: see `units_of`.
        """
        units = self.units_of(scores, groups, by)
        return self.unit_p_values(units)[units.index]

    def units_of(
        self,
        scores: np.ndarray,
        groups: Sequence[Any] | None = None,
        by: Sequence[Any] | None = None,
    ) -> Units:
        """Returns the units that scores are of; the arguments are of `p_values`.

        Raises:
          DpaError: a score is not finite, or a stratum is not given or not known.
        """
        check_finite(scores)
        self.check_strata(by)
        found = Units.of(scores, groups if self.group else None, by)
        unknown = sorted(set(found.by_stratum()) - set(self.strata))
        if unknown:
            raise errors.DpaError(
                f"{self.by}={unknown[0]}: the calibration has no such images, only "
                f"{', '.join(self.strata)}; calibrate again with images of it"
            )
        return found

    def unit_p_values(self, units: Units) -> np.ndarray:
        """Returns the p-value of each unit, float64 `[U]`."""
        found = np.empty(len(units.scores))
        for name, chosen in units.by_stratum().items():
            found[chosen] = conformal.p_values(self.strata[name], units.scores[chosen])
        return found

    def columns_of(
        self, images: ImageSet
    ) -> tuple[Sequence[Any] | None, Sequence[Any] | None]:
        """Returns the groups of images, None if they have none, and their strata.

        Raises:
          DpaError: there are strata here, and the images have no such column.
        """
        known = columns(images)
        by = known.get(self.by) if self.by else None
        self.check_strata(by)
        return known.get(self.group) if self.group else None, by

    def check_strata(self, by: Sequence[Any] | None) -> None:
        """Raises a DpaError if strata are not given, or given where there are none."""
        if by is None and self.by is not None:
            raise errors.DpaError(
                f"the run is calibrated by {self.by}, which these images do not name: "
                "give a manifest with a column of it"
            )
        if by is not None and self.by is None:
            raise errors.DpaError("the run is calibrated without strata: give none")

    def check(self, images: ImageSet) -> None:
        """Refuses images whose stratum is not known, before they are scored.

        Raises:
          DpaError: see `units_of`.
        """
        self.units_of(np.zeros(len(images)), *self.columns_of(images))


def check_absent(folder: pathlib.Path) -> None:
    """Raises a DpaError if a run is calibrated already."""
    if (folder / FILE).exists():
        raise errors.DpaError(
            f"{folder} is calibrated already; --overwrite replaces the calibration"
        )


def find(folder: pathlib.Path) -> Calibration | None:
    """Reads the calibration of a run, None if it has none.

    Raises:
      DpaError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    values = json_files.read(path, _FIELDS, _REMEDY)
    try:
        return _parsed(values)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise errors.DpaError(f"{path}: damaged, {error}; {_REMEDY}") from None


def write(folder: pathlib.Path, calibration: Calibration) -> None:
    """Writes the calibration of a run to its workdir."""
    values: dict[str, Any] = dataclasses.asdict(calibration)
    values["hashes"] = calibration.hashes.tolist()
    values["strata"] = {
        name: {
            "units": len(scores),
            "threshold": calibration.threshold(name),
            "scores": scores.tolist(),
        }
        for name, scores in calibration.strata.items()
    }
    workdir.write_json(folder / FILE, values)


def _parsed(values: Mapping[str, Any]) -> Calibration:
    names = [field.name for field in dataclasses.fields(Calibration)]
    if not 0 < values["alpha"] < 1:
        raise ValueError(f"alpha is {values['alpha']}")
    strata = {}
    for name, stratum in values["strata"].items():
        strata[name] = scores = np.array(stratum["scores"], np.float64)
        if scores.ndim != 1 or len(scores) < conformal.fewest(values["alpha"]):
            raise ValueError(f"too few scores of {name}")
        if not (np.isfinite(scores).all() and (np.diff(scores) >= 0).all()):
            raise ValueError(f"scores of {name} that are not finite and ascending")
    found: dict[str, Any] = {name: values[name] for name in names}
    for name in ("score_range", "map_range"):
        low, high = map(float, values[name])
        found[name] = (low, high)
    hashes = np.array(values["hashes"], np.uint64)
    return Calibration(**found | {"strata": strata, "hashes": hashes})


def check_finite(scores: np.ndarray) -> None:
    """Raises a DpaError if a score is not finite."""
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise errors.DpaError(
            f"{bad.size} scores are not finite, the first is {bad[0]}"
        )
