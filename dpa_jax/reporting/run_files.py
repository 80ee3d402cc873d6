"""What the workdir of a run says of it, read without its networks."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dpa_jax import errors
from dpa_jax.config import flat, is_perceptual
from dpa_jax.storage import json_files, metrics, workdir

_CALIBRATION: json_files.Fields = {
    **{"alpha": float, "images": int, "units": int, "strata": dict, "data": dict},
    **{"trained": int, "map_range": list},
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What the workdir of a run says.

    Attributes:
      name: of its folder.
      config: by dotted names.
      is_perceptual: whether the loss compares features of a backbone.
      data: of data.json; empty if it is absent, as all of the following may be.
      weights: of weights.json.
      environment: of environment.json.
      calibration: of calibration.json.
      training: the rows of metrics.jsonl.
    """

    name: str
    config: Mapping[str, Any]
    is_perceptual: bool
    data: Mapping[str, Any]
    weights: Mapping[str, Any]
    environment: Mapping[str, Any]
    calibration: Mapping[str, Any]
    training: Sequence[Mapping[str, Any]]


def read(folder: str | os.PathLike) -> Run:
    """Reads what a workdir says.

    Raises:
      DpaError: it holds no run or several, or a file of it is damaged.
    """
    folder = pathlib.Path(folder)
    config = workdir.read_config(folder)
    if config.population.seeds > 1:
        raise errors.DpaError(
            f"{folder} holds {config.population.seeds} runs; give one of them, such as "
            f"{folder / workdir.MEMBERS / '0'}"
        )

    def file(name: str, fields: json_files.Fields) -> dict[str, Any]:
        path = folder / name
        if not path.exists():
            return {}
        return json_files.read(path, fields, workdir.REWRITTEN)

    return Run(
        folder.resolve().name,
        flat(config),
        is_perceptual(config),
        file("data.json", {"images": int, "sha256": str}),
        file("weights.json", {"source": str, "sha256": str}),
        file("environment.json", {"packages": dict}),
        _calibration(folder / "calibration.json"),
        _training(folder / metrics.FILE),
    )


def _calibration(path: pathlib.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    again = "calibrate again with --overwrite"
    found = json_files.read(path, _CALIBRATION, again)
    try:
        for stratum in found["strata"].values():
            json_files.check(stratum, {"threshold": float})
        json_files.check(found["data"], {"location": str, "sha256": str})
        check_pair(found["map_range"])
    except ValueError as error:
        raise errors.DpaError(f"{path}: damaged, {error}; {again}") from None
    return found


def check_pair(value: Any) -> None:
    """Raises a ValueError if what was read from JSON is no list of two numbers."""
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("not two numbers where there should be")
    json_files.check(dict(zip("ab", value, strict=True)), {"a": float, "b": float})


def _training(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json_files.parse(line.decode("utf-8"), {"step": int}))
        except ValueError as error:
            # a killed run may have left half a line at the end
            if number < len(lines) or line.endswith(b"\n"):
                raise errors.DpaError(
                    f"{path}, line {number}: damaged, {error}"
                ) from None
    return rows
