"""The evaluations of a run, side by side in its workdir under names."""

import itertools
import os
import pathlib
import re
from collections.abc import Sequence

from dpa_jax import errors

FOLDER = "evaluations"
METRICS = "metrics.json"  # written last, so that it tells an evaluation is complete


def folder(workdir: str | os.PathLike, name: str) -> pathlib.Path:
    """Returns where the evaluation of a name lies in a workdir.

    Raises:
      UsageError: the name is not that of a file.
    """
    if name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise errors.UsageError(f"--name={name}: the name of a folder, without slashes")
    return pathlib.Path(workdir) / FOLDER / name


def name_of(locations: Sequence[str]) -> str:
    """Returns what an evaluation on a test set is called, if nobody names it.

    Args:
      locations: of labelled images, such as `data/test.csv:val` (`test-val`) or
        `tfds:set/config:test` (`set-config-test`); or of normal and abnormal ones,
        named by the folder that both are in.
    """
    if len(locations) == 1:
        named = os.path.basename(locations[0].rstrip("/"))
        if locations[0].startswith("tfds:"):
            named = locations[0].removeprefix("tfds:")
        named = re.sub(r"\.(csv|npz)(?=:|$)", "", named, flags=re.IGNORECASE)
    else:
        parents = {os.path.dirname(os.path.abspath(place)) for place in locations}
        named = os.path.basename(parents.pop()) if len(parents) == 1 else ""
    return re.sub(r"[^\w.]+", "-", named).strip("-.") or "test"


def claim(workdirs: Sequence[pathlib.Path], name: str) -> str:
    """Makes the folder of a new evaluation in the first of some workdirs.

    Args:
      workdirs: that the evaluation is of: of a population its own and its members'.
      name: that is wanted.

    Returns:
      The name, with -2, -3 or so on if it is taken in one of them.
    """
    for number in itertools.count(1):
        free = name if number == 1 else f"{name}-{number}"
        first, *others = (folder(workdir, free) for workdir in workdirs)
        if any(other.exists() for other in others):
            continue
        try:
            first.mkdir(parents=True)
        except FileExistsError:
            continue
        return free
    raise AssertionError("numbers do not end")
