"""The table, figures and page that a study leaves."""

import collections
import contextlib
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np
import optuna

from dpa_jax import errors
from dpa_jax.config import is_perceptual
from dpa_jax.storage import config_files, workdir
from dpa_jax.tuning import selection
from dpa_jax.tuning.search import Search, check_comparable
from dpa_jax.tuning.selection import Ranking
from dpa_jax.weights import formats

_LISTED, _PAGE = 5, 20  # trials that are printed, and that fit a page and a figure


def write(
    study: optuna.Study,
    folder: pathlib.Path,
    config: ml_collections.ConfigDict,
    search: Search,
) -> tuple[Ranking, list[str]]:
    """Writes ranking.csv, figures, report.md and best.json of a study as it stands.

    best.json trains the best trial again on all normal images: its last stage lasts as
    long as the folds' did on average, and nothing stops it early (method, section 6).

    Returns:
      The ranking, without trials if none can be ranked, and what to print.
    """
    known, name = study.user_attrs, folder.resolve().name
    drawn = np.array(known["drawn"], np.int64)
    trials = selection.read_trials(study, folder, search.options.folds)
    ranking = selection.rank(trials, drawn, known.get("groups"))
    configs = [search.config(config, trial.parameters) for trial in ranking.trials]
    states = collections.Counter(trial.state for trial in trials)
    basis = [f"Trials: {', '.join(f'{n} {state}' for state, n in states.items())}."]
    basis += [f"Trial {t.number} failed: {t.reason}." for t in trials if t.reason]
    if not known["drawn"]:
        try:
            check_comparable(configs)
        except errors.UsageError as error:
            basis.append(f"Not ranked: {error}.")
            ranking = selection.rank([], drawn)
    weights = [c.perceptual.weights for c in configs if is_perceptual(c)]
    if any(name.startswith("random:") for name in weights):
        basis.append("The backbone is random: with other weights, others may be best.")
    header, *rows = _rows(ranking)
    pairs = [map("=".join, zip(header, row, strict=True)) for row in rows[:_LISTED]]
    lines = [", ".join(each) for each in pairs]
    page = [f"# Hyper-parameters of {name}\n"]
    if rows:
        basis += [*_sentences(ranking, known), *known["checked"]]
        workdir.write_csv(folder / "ranking.csv", header, rows)
        steps = [fold.steps for fold in ranking.trials[0].folds]
        configs[0].stages.final_steps = round(float(np.mean(steps)))
        best = config_files.with_absolute_paths(configs[0])
        config_files.save(best, folder / "best.json")
        refit = f"dpa-jax train --config={folder}/best.json --workdir={folder}/refit"
        page.append(f"The first is best. On all normal images:\n\n    {refit}\n")
        table = [header, ["---"] * len(header), *rows[:_PAGE]]
        page += [f"| {' | '.join(row)} |" for row in table]
        figures = _draw(study, folder, ranking)
        page += [f"\n![{text}]({file})\n\n*{text}*" for file, text in figures]
        lines.append(f"To train the best on all normal images: {refit}")
    page += ["\n## Basis and limits\n", *(f"- {sentence}" for sentence in basis), ""]
    with formats.replacing(folder / "report.md") as temporary:
        temporary.write_text("\n".join(page), encoding="utf-8")
    return ranking, [*lines, *basis, f"See {folder}/report.md."]


def _rows(ranking: Ranking) -> Iterator[list[str]]:
    """Yields the table of the complete trials, the best first; before it the header."""
    names = list(dict.fromkeys(name for t in ranking.trials for name in t.parameters))
    value = ["held-out loss"] if ranking.intervals is None else ["ROC AUC", "95%"]
    yield ["rank", "trial", *names, *value, "folds", "steps"]
    for row, trial in enumerate(ranking.trials):
        cells = [str(trial.parameters.get(name, "")) for name in names]
        cells.append(f"{ranking.values[row]:.6f}")
        if ranking.intervals is not None:
            cells.append("{:.6f} to {:.6f}".format(*ranking.intervals[row]))
        cells.append(" ".join(f"{each:.6f}" for each in ranking.folds[row]))
        cells.append(" ".join(f"{fold.steps}" for fold in trial.folds))
        yield [f"{row + 1}", f"{trial.number}", *cells]


def _sentences(ranking: Ranking, known: dict[str, Any]) -> Iterator[str]:
    """Yields what the ranking stands on, and how optimistic it is."""
    folds = ranking.trials[0].folds
    groups = {name for fold in folds for name in fold.groups if name}
    yield (
        f"{len(folds)} folds of {sum(len(fold.normal) for fold in folds):,} normal "
        f"images of {len(groups) or 'unknown'} patients or slides"
        f"{'.' if groups else ': if one has several images, the AUC is too high.'}"
    )
    if ranking.intervals is None:
        yield (
            "No anomalies were used: trials are ranked by reconstruction loss, which "
            "does not tell how far abnormal images stand out. The paper reports 2 "
            "points of ROC AUC more with a few anomalies."
        )
        return
    kinds = collections.Counter(known["kinds"]).most_common()
    each = ", ".join(f"{kind or 'unknown'} {count}" for kind, count in kinds)
    yield f"Ranked by {len(known['drawn'])} of {known['of']:,} anomalies: {each}."
    yield (
        "Intervals are of resampled anomalies and normal images. The highest AUC of "
        f"{len(ranking.trials)} trials is optimistic: the best of a resample has "
        f"{ranking.bias:.4f} less on all images, and only a new test set is unbiased."
    )


def _draw(
    study: optuna.Study, folder: pathlib.Path, ranking: Ranking
) -> Iterator[tuple[str, str]]:
    """Draws the figures of a study; yields the file of each and its caption."""
    from optuna.visualization import matplotlib as figures

    trials, rows = ranking.trials[:_PAGE], np.arange(min(_PAGE, len(ranking.trials)))
    name = "held-out loss" if ranking.intervals is None else "ROC AUC"
    with figure(folder / "ranking.png") as axes:
        if ranking.intervals is not None:
            axes.hlines(rows, *ranking.intervals[rows].T, color="tab:blue", lw=1.5)
        axes.plot(ranking.folds[rows], rows, "|", color="0.45", ms=9)
        axes.plot(ranking.values[rows], rows, "o", color="tab:blue", ms=5)
        axes.set_yticks(rows, [f"trial {trial.number}" for trial in trials])
        axes.set(xlabel=name, ylim=(len(rows) - 0.5, -0.5))
    yield "ranking.png", f"{name}: mean (dot), 95% interval, folds (|)."
    given = [{k: str(v) for k, v in t.parameters.items()} for t in ranking.trials]
    varied = [k for k in given[0] if len({values.get(k) for values in given}) > 1]
    # values that rounding alone tells apart depend on no hyper-parameter
    if not varied or np.ptp(ranking.values) < 1e-9:
        return
    # Optuna's default compares the best tenth with the rest, which needs many trials;
    # its fANOVA keeps every tree it grows for the life of the process (Optuna 5.0)
    impurity = optuna.importance.MeanDecreaseImpurityImportanceEvaluator(seed=0)
    with figure(folder / "parameters.png"):
        figures.plot_slice(study, params=varied, target_name=name)
    with figure(folder / "importance.png"):
        figures.plot_param_importances(study, impurity, varied, target_name=name)
    yield "parameters.png", f"{name} of each trial by hyper-parameter."
    share = f"Share of each hyper-parameter in what a random forest explains of {name}."
    yield "importance.png", share


@contextlib.contextmanager
def figure(path: pathlib.Path) -> Iterator[Any]:
    """Saves what the body draws in the axes given, or anew with pyplot, as a PNG."""
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    with warnings.catch_warnings(), plt.rc_context():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield plt.figure(figsize=(6.4, 4.8)).gca()
        with formats.replacing(path) as temporary:
            plt.savefig(temporary, dpi=150, format="png", bbox_inches="tight")
        for number in set(plt.get_fignums()) - set(before):
            plt.close(number)
