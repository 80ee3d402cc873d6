"""A study: hyper-parameters chosen by cross-validation with a few known anomalies.

The paper's protocol (method, section 6). Each trial is trained once for each fold of
the normal images and ranked by how well it tells the held-out ones from the anomalies.
"""

import hashlib
import json
import os
import pathlib
import time
from typing import Any

import ml_collections
import numpy as np
import optuna

from dpa_jax import console, errors, validation
from dpa_jax.config import flattened
from dpa_jax.data import leakage, test_set
from dpa_jax.storage import config_files, json_files, workdir
from dpa_jax.tuning import anomalies, queue, report, selection, trials
from dpa_jax.tuning.search import Search
from dpa_jax.tuning.search import load as load_search
from dpa_jax.weights import formats

_POLL = 1.0  # seconds between queries for trials that other workers leave behind
# what may change between calls, of the config and of the search
_FREE = {*workdir.FREE, "trials", "retries"}


def tune(
    config: ml_collections.ConfigDict,
    search: Search,
    folder: str | os.PathLike,
    *,
    storage: str = "",
    visible: bool = True,
) -> tuple[selection.Ranking, list[str]]:
    """Runs the trials of a study that are left, beside any other workers.

    Args:
      config: what every trial starts from.
      search: see `search.load`.
      folder: of the study; made if it does not exist. Workers on several machines
        need one that all of them see.
      storage: URL of the database that they share; empty for a file in the folder.
      visible: whether to show progress on stderr.

    Returns:
      The ranking, and lines to print; the config to train again is in `best.json`.

    Raises:
      DpaError: the search or a config that it leads to cannot work, the folder or the
        database is another study's, images cannot be used, an anomaly is among those
        trained or tested on, or no trial could be completed.
    """
    folder = pathlib.Path(folder)
    log = console.print_line if visible else lambda text: None
    config = validation.validate(config)
    with queue.reaching():
        search.check(config)
        if (folder / "checkpoints").exists():
            raise errors.DpaError(f"{folder} holds a run: give another --workdir")

        # --- images, and which anomalies serve ---
        images = trials.loader(search.options, visible)
        normal, kept, pool = images(config)
        attributes: dict[str, Any] = {"checked": [], "drawn": []}
        if pool is not None:
            test = test_set.load(config, visible=visible)
            attributes = {"checked": anomalies.check(pool, normal, kept, test)}
            attributes |= pool.summary()

        # --- the study in the database and in the folder ---
        folder.mkdir(parents=True, exist_ok=True)
        joined = queue.Queue(
            folder,
            storage,
            search,
            _identity(config, search, pool),
            maximize=bool(attributes["drawn"]),
        )
        for name, value in attributes.items():
            joined.study.set_user_attr(name, value)
        config_files.save(config, folder / "config.json")
        workdir.write_json(folder / "search.json", search.values())
        with formats.replacing(folder / "search.py") as temporary:
            temporary.write_text(search.source, encoding="utf-8")

        # --- trial after trial, until none is left ---
        def work(trial: optuna.Trial) -> None:
            try:
                made = search.config(config, trial)
                configs = [search.fold_config(made, k) for k in range(count)]
            except errors.UsageError as error:
                return joined.end(trial, reason=str(error))
            number, done = trial.user_attrs["index"], []
            log(f"trial {number}: {trial.params}")
            for k, one in enumerate(configs):
                path, failure = selection.scores(folder, number, k), ""
                if not path.exists():
                    asked = None if k else lambda *now: joined.goes_on(trial, *now)
                    failure = trials.train_fold(
                        one, path, images(one), asked, compiled, visible
                    )
                if failure or not path.exists() or not joined.owns(trial):
                    # pruned, or taken over by another worker, if it has not failed
                    log(f"trial {number}, fold {k}: {failure or 'given up'}")
                    return joined.end(trial, reason=failure and f"fold {k}: {failure}")
                done.append(selection.read_fold(path))
                (value,) = selection.fold_values(done[-1:], drawn)
                log(f"trial {number}, fold {k}: {value:.4f} ({done[-1].steps:,} steps)")
            joined.end(trial, float(selection.fold_values(done, drawn).mean()))

        compiled = trials.Programs()
        count, drawn = search.options.folds, np.array(attributes["drawn"], np.int64)
        with joined.beating():
            while (trial := joined.take()) is not None or queue.left(joined.study):
                if trial is None:
                    time.sleep(_POLL)
                else:
                    work(trial)
                    report.write(joined.study, folder, config, search)
        ranking, lines = report.write(joined.study, folder, config, search)
    if not ranking.trials:
        raise errors.DpaError(f"{folder} has no best trial: {' '.join(lines)}")
    return ranking, lines


def load(folder: pathlib.Path) -> tuple[ml_collections.ConfigDict, Search]:
    """Loads the config and the search that a study was begun with."""
    if not (folder / "search.py").exists():
        raise errors.DpaError(f"there is no study in {folder}: it has no search.py")
    config = workdir.read_config(folder)
    options = json_files.read(folder / "search.json", {}, "restore it from a copy")
    return config, load_search(folder / "search.py", config, options)


def _identity(config, search: Search, pool: anomalies.Pool | None) -> dict[str, Any]:
    """Returns what makes a study another one, as JSON has it, by name."""
    pixels = "" if pool is None else "".join(leakage.fingerprints(pool.images))
    found = dict(flattened({"config": config.to_dict(), "search": search.values()}))
    for name, text in (("search.py", search.source), ("anomalies", pixels)):
        found[name] = hashlib.sha256(text.encode()).hexdigest()
    kept = {k: v for k, v in found.items() if k.partition(".")[2] not in _FREE}
    return json.loads(json.dumps(kept))
