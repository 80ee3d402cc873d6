"""A study: hyper-parameters chosen by cross-validation with a few known anomalies.

The paper's protocol (method, section 6). Each trial is trained once for each fold of
the normal images and ranked by how well it tells the held-out ones from the anomalies.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from dpa_jax import config as config_lib
from dpa_jax import config_files, errors, workdir
from dpa_jax.tuning import report, results
from dpa_jax.tuning import search as search_lib
from dpa_jax.tuning import storage as storage_lib
from dpa_jax.tuning.space import Parameter
from dpa_jax.tuning.worker import Worker

# what may change between calls, of the config and of the search
_FREE = {*workdir.FREE, "trials", "population", "retries"}


def tune(
    config: ml_collections.ConfigDict,
    search: ml_collections.ConfigDict,
    folder: str | os.PathLike,
    *,
    storage: str = "",
    visible: bool = True,
) -> report.Report:
    """Runs the trials of a study that are left, beside any other workers.

    Args:
      config: what every trial starts from.
      search: see `search.default_search`.
      folder: of the study; made if it does not exist. Workers on several machines
        need one that all of them see.
      storage: URL of the database that they share; empty for a file in the folder.
      visible: whether to show progress on stderr.

    Returns:
      What was found; `best.json` in the folder is the config to train again.

    Raises:
      UsageError: the search or a config that it leads to cannot work, or is not that
        of the folder.
      DpaError: Optuna is not installed, images cannot be used, an anomaly is among
        those trained or tested on, the database cannot be used, or no trial could be
        completed.
    """
    storage_lib.require_optuna()
    folder = pathlib.Path(folder)
    search = search_lib.validate(search, config)
    search = claim(folder, config, search)
    url = storage or storage_lib.default_url(folder)
    name = folder.resolve().name if storage else "study"

    def renew() -> report.Report:
        return refresh(folder, config, search)

    worker = Worker(config, search, folder, renew, visible)
    with storage_lib.reaching(url):
        worker.work_on(url, name, _digest(config, search))
    found = renew()
    if found.best is None:
        reasons = "; ".join(
            sorted({f"trial {t.number} {t.reason or t.state}" for t in found.trials})
        )
        raise errors.DpaError(f"no trial of {folder} could be completed: {reasons}")
    return found


def claim(
    folder: pathlib.Path,
    config: ml_collections.ConfigDict,
    search: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
    """Makes a folder this study's own, or checks that it already is.

    As long as no trial was begun in it, another search may take it over, so that a
    first attempt that was refused can be corrected.

    Args:
      folder: of the study.
      config: what every trial starts from.
      search: validated.

    Returns:
      The search, with as many trials as were ever asked for.

    Raises:
      UsageError: it belongs to a study of another config or search; the fields are
        named.
      DpaError: it holds other files, or cannot be written.
    """
    kept = folder / "search.json"
    if not kept.exists():
        if (folder / "config.json").exists() or (folder / "trials").exists():
            raise errors.DpaError(
                f"{folder} holds a run or parts of a study but no search.json; "
                "give an empty or a new folder as --workdir"
            )
    elif any(folder.glob("trials/*")):
        before = search_lib.from_json(kept.read_text(encoding="utf-8"), str(kept))
        search = search.copy_and_resolve_references()
        search.trials = max(search.trials, before.trials)
        _check_same(kept, before, search)
        _check_same(folder / "config.json", workdir.read_config(folder), config)
    else:
        for name in ("anomalies.npz", storage_lib.FILE):
            (folder / name).unlink(missing_ok=True)
    config_files.save(config, folder / "config.json")
    config_files.save(search, kept)
    return search


def _check_same(path: pathlib.Path, before, now) -> None:
    was, values = _fixed(before), _fixed(now)
    different = [
        f"{name} was {was.get(name)!r}, is {values.get(name)!r}"
        for name in dict.fromkeys([*was, *values])
        if was.get(name) != values.get(name)
    ]
    if different:
        raise errors.UsageError(
            f"{path.parent} belongs to another study, by its {path.name}: "
            f"{'; '.join(different)}. Give another --workdir, or the same values"
        )


def _fixed(values: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns what may not change, tuples as the lists that JSON makes of them."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in config_lib.flat(values).items()
        if name not in _FREE
    }


def _digest(config, search) -> str:
    fixed = json.dumps([_fixed(config), _fixed(search)], sort_keys=True)
    return hashlib.sha256(fixed.encode()).hexdigest()


def check_finished(folder: str | os.PathLike) -> None:
    """Refuses a study of which trials are left.

    Raises:
      DpaError: there is none, or it has not ended.
    """
    folder = pathlib.Path(folder)
    kept = folder / "search.json"
    if not kept.exists():
        raise errors.DpaError(f"there is no study in {folder}: it has no search.json")
    search = search_lib.from_json(kept.read_text(encoding="utf-8"), str(kept))
    parameters = search_lib.parameters(search, workdir.read_config(folder))
    plan = search_lib.planned(search, parameters)
    left = len(plan) - len(results.read_trials(folder))
    if left > 0:
        raise errors.DpaError(
            f"{left} of {len(plan)} trials of {folder} are left: "
            f"dpa-jax tune --workdir={folder} goes on with them"
        )


def refresh(
    folder: pathlib.Path,
    config: ml_collections.ConfigDict,
    search: ml_collections.ConfigDict,
) -> report.Report:
    """Writes the tables, report and best config of a study as it stands."""
    found = report.write(folder)
    if found.best is not None:
        parameters = search_lib.parameters(search, config)
        best = best_config(config, parameters, found.best)
        config_files.save(best, folder / "best.json")
    return found


def best_config(
    config: ml_collections.ConfigDict,
    parameters: Sequence[Parameter],
    trial: results.Trial,
) -> ml_collections.ConfigDict:
    """Returns the config that trains a trial again on all normal images.

    Its last stage lasts as long as the folds' did on average, and nothing stops it
    early (method, section 6).

    Args:
      config: of the study.
      parameters: of its search.
      trial: complete.
    """
    best = search_lib.applied(config, parameters, dict(trial.parameters))
    best.stages.final_steps = round(np.mean([fold.steps for fold in trial.folds]))
    return best
