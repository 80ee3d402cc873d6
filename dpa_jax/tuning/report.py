"""The tables, pictures and sentences that a study leaves."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpa_jax import workdir
from dpa_jax.tuning import (
    anomalies,
    importance,
    plots,
    results,
    selection,
    statements,
)
from dpa_jax.tuning.results import Trial
from dpa_jax.tuning.selection import Value
from dpa_jax.weights import formats

_HEAD = 5  # trials of the ranking that are printed


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """The state of a study.

    Attributes:
      trials: all that have ended, by number.
      ranking: the complete ones, the best first; none if they cannot be ranked.
      values: their mean ROC AUC, in the order of the ranking; None each if they are
        ranked by loss.
      lines: what to tell whoever ran it.
    """

    trials: tuple[Trial, ...]
    ranking: tuple[Trial, ...]
    values: tuple[Value | None, ...]
    lines: tuple[str, ...]

    @property
    def best(self) -> Trial | None:
        """The trial to train again, None if there is none."""
        return self.ranking[0] if self.ranking else None


def write(study: str | os.PathLike) -> Report:
    """Writes the tables, pictures and report.md of a study anew, from its trials.

    These are trials.csv (all that have ended), ranking.csv and ranking.png (complete
    ones), importance.csv and importance.png (where it can be told) and report.md.

    Args:
      study: its folder: `search.json`, `trials` and, if any were given,
        `anomalies.npz`.

    Raises:
      DpaError: a file of the study is damaged, or Optuna is not installed.
    """
    folder = pathlib.Path(study)
    trials = results.read_trials(folder)
    pool = folder / "anomalies.npz"
    record = anomalies.read(pool) if pool.exists() else None
    drawn = np.zeros(0, np.int64) if record is None else record.drawn

    # --- rank ---
    configs = selection.by_name(trials)
    different = [] if len(drawn) else selection.incomparable(configs)
    ranking = [] if different else selection.ranked(trials, drawn)
    values: list[Value | None] = [None] * len(ranking)
    doubt: list[str] = []
    if record is not None and len(drawn) and ranking:
        found = [selection.trial_value(t.folds, drawn, record.groups) for t in ranking]
        optimism = selection.optimism(trials, drawn, record.groups)
        doubt += statements.interval(found[0])
        doubt += statements.optimism(optimism, len(ranking))
        values = [*found]

    # --- tables and pictures ---
    _write_tables(folder, trials, ranking, values)
    if ranking:
        plots.ranking(folder / "ranking.png", ranking, values)
    goals = [
        trial.loss if value is None else value.auc
        for trial, value in zip(ranking, values, strict=True)
    ]
    shares, reason = importance.importance(ranking, goals, _space(folder))
    if shares:
        rows = [(name, f"{share:.6f}") for name, share in shares.items()]
        workdir.write_csv(folder / "importance.csv", ("parameter", "importance"), rows)
        plots.importance(folder / "importance.png", shares)

    # --- words ---
    basis = [
        *statements.counted(trials),
        *statements.anomalies(record),
        *statements.folds(trials),
        *statements.random_weights(configs),
        *doubt,
        *statements.unranked(different),
    ]
    told = statements.importance(shares, reason)
    best = f"--config={folder / 'best.json'}"
    refit = f"dpa-jax train {best} --workdir={folder / 'refit'}"
    with formats.replacing(folder / "report.md") as temporary:
        name = folder.resolve().name
        text = statements.page(name, ranking, values, basis, told, refit)
        temporary.write_text(text, encoding="utf-8")
    lines = [*statements.ranking(ranking, values, _HEAD), *basis, told]
    lines.append(f"see {folder}/report.md, ranking.csv, trials.csv, ranking.png")
    if ranking:
        lines.append(f"to train the best on all normal images: {refit}")
    return Report(tuple(trials), tuple(ranking), tuple(values), tuple(lines))


def _write_tables(
    folder: pathlib.Path,
    trials: Sequence[Trial],
    ranking: Sequence[Trial],
    values: Sequence[Value | None],
) -> None:
    names = list(dict.fromkeys(name for t in trials for name in t.parameters))
    folds = range(max((len(t.folds) for t in trials), default=0))
    value_of = {t.number: v for t, v in zip(ranking, values, strict=True)}
    header = [
        *("number", "state", *names, "auc", "auc_low", "auc_high"),
        *(f"auc_{k}" for k in folds),
        *(f"steps_{k}" for k in folds),
        "held_out_loss",
    ]

    def row(trial: Trial) -> list[Any]:
        aucs, rest = [""] * (3 + len(folds)), [""] * (len(folds) + 1)
        if value := value_of.get(trial.number):
            found = (value.auc, value.low, value.high, *value.folds)
            aucs = [f"{v:.6f}" for v in found]
        if trial.folds:
            rest = [*(str(fold.steps) for fold in trial.folds), f"{trial.loss:.6g}"]
        given = (trial.parameters.get(name, "") for name in names)
        return [trial.number, trial.state, *given, *aucs, *rest]

    workdir.write_csv(
        folder / "trials.csv",
        [*header, "seconds", "retries", "reason"],
        [[*row(t), f"{t.seconds:.1f}", t.retries, t.reason] for t in trials],
    )
    workdir.write_csv(
        folder / "ranking.csv",
        ["rank", *header],
        [[rank, *row(trial)] for rank, trial in enumerate(ranking, 1)],
    )


def _space(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "search.json"
    with formats.reading(path):
        return json.loads(path.read_text(encoding="utf-8"))["space"]
