"""What the folder of an evaluation says, read without its images."""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpa_jax import errors
from dpa_jax.reporting import cases
from dpa_jax.reporting.run_files import Run, check_pair
from dpa_jax.storage import evaluations, json_files

_AGAIN = "evaluate --overwrite writes it anew"
_METRICS: json_files.Fields = {
    "roc_auc": float,
    "roc_auc_interval": list,
    "average_precision": float,
    "average_precision_by_chance": float,
    "normal": int,
    "abnormal": int,
    "shortcuts": dict,
    "warnings": list,
    "trained_steps": int,
    "random_weights": bool,
}
_NONE = type(None)  # where all images of a label were calibrated on
_CALIBRATED: json_files.Fields = {
    "alpha": float,
    "units": str,
    "false_positive_rate": (float, _NONE),
    "false_positive_rate_interval": (list, _NONE),
    "true_positive_rate": (float, _NONE),
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What the folder of an evaluation says.

    Attributes:
      name: of its folder.
      metrics: of metrics.json.
      paths: `N` names of the images.
      labels: int8 `[N]`, 0 normal and 1 abnormal.
      groups: `N` names of what images share, or None if none is known.
      scores: float64 `[N]`.
      p_values: float64 `[N]`, or None where the run was not calibrated.
      abnormal: bool `[N]`, what was decided, or None likewise.
      cases: the images kept, or None.
    """

    name: str
    metrics: Mapping[str, Any]
    paths: Sequence[str]
    labels: np.ndarray
    groups: Sequence[str] | None
    scores: np.ndarray
    p_values: np.ndarray | None
    abnormal: np.ndarray | None
    cases: cases.Cases | None


def named(folder: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Returns the folders of a run's evaluations by their names."""
    folder = pathlib.Path(folder)
    # an evaluation/ is that of an earlier version
    found = [
        folder / "evaluation",
        *sorted((folder / evaluations.FOLDER).glob("*")),
    ]
    return {path.name: path for path in found if (path / evaluations.METRICS).exists()}


def choose(folder: str | os.PathLike, name: str | None) -> pathlib.Path | None:
    """Returns the folder of the evaluation that is meant.

    Args:
      folder: the workdir.
      name: of an evaluation, or a folder that holds one; None takes the newest.

    Returns:
      The folder, or None where no name is given and the run was not evaluated.

    Raises:
      UsageError: there is none of this name.
    """
    found = named(folder)
    if name is None:
        return max(found.values(), key=_written, default=None)
    if name in found:
        return found[name]
    if (pathlib.Path(name) / evaluations.METRICS).exists():
        return pathlib.Path(name)
    names = ", ".join(found) or "none"
    raise errors.UsageError(f"{folder} has no evaluation {name}; it has {names}")


def _written(folder: pathlib.Path) -> int:
    return (folder / evaluations.METRICS).stat().st_mtime_ns


def read(folder: pathlib.Path) -> Evaluation:
    """Reads what the folder of an evaluation says.

    Raises:
      DpaError: a file of it is absent or damaged, or two do not fit each other.
    """
    found = json_files.read(folder / evaluations.METRICS, _METRICS, _AGAIN)
    try:
        _check_figures(found)
    except ValueError as error:
        raise errors.DpaError(
            f"{folder / 'metrics.json'}: damaged, {error}; {_AGAIN}"
        ) from None
    path = folder / "scores.csv"
    table = _columns(path)
    scores, labels = _numbers(table, "score", path), table.get("label", [])
    if not set(labels) <= {"normal", "abnormal"} or len(labels) != len(scores):
        raise errors.DpaError(f"{path}: damaged, labels are normal or abnormal")
    counts = labels.count("normal"), labels.count("abnormal")
    if counts != (found["normal"], found["abnormal"]):
        raise errors.DpaError(
            f"{path} and metrics.json are of different evaluations: {counts[0]} normal "
            f"and {counts[1]} abnormal, {found['normal']} and {found['abnormal']}"
        )
    groups = table.get("group", [])
    decided = _numbers(table, "abnormal", path) if "abnormal" in table else None
    return Evaluation(
        name=folder.resolve().name,
        metrics=found,
        paths=table["path"],
        labels=np.array([label == "abnormal" for label in labels], np.int8),
        groups=groups if any(groups) else None,
        scores=scores,
        p_values=_numbers(table, "p_value", path) if "p_value" in table else None,
        abnormal=None if decided is None else decided == 1,
        cases=_cases(folder / cases.FILE, scores),
    )


def _check_figures(found: Mapping[str, Any]) -> None:
    """Raises a ValueError if what is nested in metrics.json is not of numbers."""
    calibrated = found.get("calibration", {})
    parts = [
        json_files.check(part, {"normal": int, "abnormal": int})
        for name in ("by_view", "by_finding")
        for part in json_files.check(found.get(name, {}), {}).values()
    ]
    for part in parts:
        if "roc_auc" in part:
            json_files.check(part, {"roc_auc": float, "roc_auc_interval": list})
    json_files.check(found["shortcuts"], dict.fromkeys(found["shortcuts"], float))
    if calibrated:
        json_files.check(calibrated, _CALIBRATED)
    for part in (found, calibrated, *parts):
        for name in part:
            if name.endswith("_interval") and part[name] is not None:
                check_pair(part[name])


def _cases(path: pathlib.Path, scores: np.ndarray) -> cases.Cases | None:
    if not path.exists():
        return None
    found = cases.read(path)
    row = found.row
    fits = not len(row) or (row.min() >= 0 and row.max() < len(scores))
    if not fits or not np.array_equal(np.float32(scores[row]), np.float32(found.score)):
        raise errors.DpaError(
            f"{path} and scores.csv are of different evaluations; {_AGAIN}"
        )
    return found


def thresholds(run: Run, evaluation: Evaluation) -> dict[str, float]:
    """Returns the score that each stratum of the calibration decides from.

    There are none if the evaluation was made before the calibration or after another.
    """
    then, now = evaluation.metrics.get("calibration"), run.calibration
    if not now or not then or then["alpha"] != now["alpha"]:
        return {}
    if evaluation.metrics["trained_steps"] != now["trained"]:
        return {}
    return {name: float(each["threshold"]) for name, each in now["strata"].items()}


def _columns(path: pathlib.Path) -> dict[str, list[str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
            return dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    except OSError as error:
        raise errors.DpaError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, csv.Error) as error:  # of the text, or of uneven rows
        raise errors.DpaError(f"{path}: damaged, {error}; {_AGAIN}") from None


def _numbers(
    table: Mapping[str, Sequence[str]], name: str, path: pathlib.Path
) -> np.ndarray:
    try:
        found = np.array([float(text) for text in table[name]])
    except (KeyError, ValueError):
        found = np.array([np.nan])
    if "path" not in table or not np.isfinite(found).all():
        raise errors.DpaError(f"{path}: damaged, not all of {name} are numbers")
    return found
