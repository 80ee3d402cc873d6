"""Which arrangements were chosen before: of a run, and of all on such a device."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from dpa_jax import errors
from dpa_jax.devices.platform import Platform
from dpa_jax.stages import Stage
from dpa_jax.storage import json_files, workdir
from dpa_jax.training.arrangement import Arrangement
from dpa_jax.training.setup import Setup
from dpa_jax.weights import files

FILE = "autotune.json"  # of a run, in its workdir
AUTO = "auto"
_FIELDS = {"device": str, "arrangement": dict, "timings": list}


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen for a stage, and why.

    Attributes:
      device: kind of the devices that it was chosen on.
      arrangement: the fastest.
      timings: of all that were tried, the usual one first: the fields that differ from
        it, and `seconds` of a step, or `failed` and why. Empty if nothing was timed.
    """

    device: str
    arrangement: Arrangement
    timings: list[dict[str, Any]]

    @classmethod
    def from_values(cls, values: Any) -> "Choice":
        """Returns the choice that JSON holds.

        Raises:
          ValueError: it holds none.
        """
        values = json_files.parse(json.dumps(values), _FIELDS)
        kinds = {name: type(value) for name, value in vars(Arrangement()).items()}
        given = json_files.parse(json.dumps(values["arrangement"]), kinds)
        if given.keys() != kinds.keys():
            raise ValueError(
                "an arrangement has fields that this version does not know"
            )
        return cls(values["device"], Arrangement(**given), values["timings"])

    def describe(self, stage: Stage) -> str:
        """Returns a line that tells what was chosen and how much it gains."""
        usual, *others = self.timings
        taken = [one["seconds"] for one in self.timings if "seconds" in one]
        was = f"{1e3 * usual['seconds']:.3f} ms" if "seconds" in usual else "it fails"
        changed = ", ".join(self.arrangement.changes())
        return (
            f"{stage.name}: of {1 + len(others)} arrangements "
            f"{changed or 'the usual one'} is the fastest, {1e3 * min(taken):.3f} ms a "
            f"step (the usual one: {was}); kept in {FILE}"
        )


def read(path: pathlib.Path) -> dict[str, Choice]:
    """Reads choices by the names of stages; none if there is no such file.

    Those of versions that had less to choose from are left out.

    Raises:
      DpaError: the file is damaged.
    """
    if not path.exists():
        return {}
    found = json_files.read(path, {}, workdir.REWRITTEN)
    try:
        return {
            name: Choice.from_values(values)
            for name, values in found.items()
            if not _is_of_before(values)
        }
    except ValueError as error:
        raise errors.DpaError(
            f"{path}: damaged, {error}; {workdir.REWRITTEN}"
        ) from None


def _is_of_before(values: Any) -> bool:
    """Returns whether a choice is of a version that had fewer fields to choose."""
    arrangement = values.get("arrangement") if isinstance(values, dict) else None
    known = vars(Arrangement()).keys()
    return isinstance(arrangement, dict) and arrangement.keys() < known


def write(path: pathlib.Path, changed: Mapping[str, Choice]) -> None:
    """Adds choices by the names of stages to a file, whose folder is made if need be.

    Raises:
      DpaError: the file cannot be written, or is damaged.
    """
    values = {n: dataclasses.asdict(c) for n, c in {**read(path), **changed}.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        workdir.write_json(path, values)
    except OSError as error:
        raise errors.DpaError(f"{path}: cannot be written: {error.strerror}") from error


def shared_file(
    folder: str, setup: Setup, stage: Stage, platform: Platform
) -> pathlib.Path:
    """Returns where runs of the same shapes, devices and versions share a choice.

    Args:
      folder: `config.autotune`.
      setup: of the runs, the stage arranged as usual.
      stage: one of its stages.
      platform: the machine.
    """
    here = workdir.environment(seed=0)
    spec = setup.spec(dataclasses.replace(stage, start=0, steps=1))
    key = repr(
        [
            *(platform.devices[0].device_kind, len(platform.devices)),
            *(here["packages"].items(), here["git_commit"]),
            *(spec, setup.batch_size, setup.alternatives(stage), platform.options),
            *(f"{a.dtype}{a.shape}" for a in jax.tree.leaves(setup.shapes(stage))),
        ]
    )
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    own = files.cache_dir() / "autotune" if folder == AUTO else pathlib.Path(folder)
    return own / f"{stage.name}_{digest}.json"
