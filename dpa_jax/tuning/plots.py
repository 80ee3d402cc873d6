"""The pictures of a study: ranking, importance, learning curve."""

import pathlib
from collections.abc import Sequence
from typing import Any

from dpa_jax.tuning.results import Trial
from dpa_jax.tuning.selection import Value
from dpa_jax.weights import formats

_MOST = 40  # trials that a picture can show legibly


def ranking(
    path: pathlib.Path, trials: Sequence[Trial], values: Sequence[Value | None]
) -> None:
    """Draws the trials, the best on top: the mean, its interval, and each fold.

    Args:
      path: of the PNG.
      trials: complete ones, the best first.
      values: theirs; None each if they are ranked by loss.
    """
    shown, by_loss = trials[:_MOST], values[0] is None
    figure, axes = _figure(6.4, 1.4 + 0.24 * len(shown))
    for row, (trial, value) in enumerate(zip(shown, values[:_MOST], strict=True)):
        mean, folds = trial.loss, [fold.loss for fold in trial.folds]
        if value is not None:
            mean, folds = value.auc, list(value.folds)
            axes.plot([value.low, value.high], [row, row], color="tab:blue", lw=1.5)
        axes.plot(folds, [row] * len(folds), "|", color="0.45", ms=9)
        axes.plot([mean], [row], "o", color="tab:blue", ms=5)
    axes.set_yticks(range(len(shown)), [f"trial {trial.number}" for trial in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    part = f"{len(trials)} trials"
    if len(shown) < len(trials):
        part = f"Best {len(shown)} of {part}"
    what = "mean, each fold (|)" if by_loss else "mean, 95% interval, each fold (|)"
    axes.set(xlabel="held-out loss" if by_loss else "ROC AUC", title=f"{part}: {what}")
    axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def importance(path: pathlib.Path, found: dict[str, float]) -> None:
    """Draws the share of each parameter as a bar, the largest on top."""
    names = list(found)
    figure, axes = _figure(6.4, 1.4 + 0.3 * len(names))
    bars = axes.barh(range(len(names)), list(found.values()), color="tab:blue")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set(
        xlim=(0, 1.12), xlabel="share of the variance (fANOVA)", title="Importance"
    )
    _save(figure, path)


def curve(
    path: pathlib.Path,
    points: Sequence[tuple[int, float]],
    summary: Sequence[tuple[int, float, float | None]],
    oracle: float | None,
) -> None:
    """Draws the test AUC of what was chosen over the number of anomalies.

    Args:
      path: of the PNG.
      points: number of anomalies and test AUC of each draw.
      summary: number of anomalies, mean and standard deviation over the draws.
      oracle: the best trial's test AUC, None if that is not known.
    """
    figure, axes = _figure(6.4, 4.6)
    counts = [count for count, _, _ in summary]
    place = {count: x for x, count in enumerate(counts)}
    axes.plot(
        [place[count] for count, _ in points],
        [auc for _, auc in points],
        "o",
        color="0.6",
        ms=4,
        alpha=0.6,
        label="each draw",
    )
    axes.errorbar(
        range(len(counts)),
        [mean for _, mean, _ in summary],
        yerr=[sd or 0.0 for _, _, sd in summary],
        fmt="o-",
        color="tab:blue",
        capsize=3,
        label="mean and standard deviation",
    )
    if oracle is not None:
        axes.axhline(oracle, color="tab:red", ls="--", label="best on the test set")
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set(
        xlabel="anomalies to choose by",
        ylabel="test ROC AUC of the chosen trial",
        title="How many anomalies are enough",
    )
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    # no pyplot: its global state and its choice of a backend are not ours to change
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots()


def _save(figure, path: pathlib.Path) -> None:
    with formats.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
