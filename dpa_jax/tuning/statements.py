"""A study's findings in words."""

from collections.abc import Mapping, Sequence

import ml_collections

from dpa_jax import config as config_lib
from dpa_jax.tuning.anomalies import Record
from dpa_jax.tuning.results import Trial, complete
from dpa_jax.tuning.selection import Optimism, Value


def counted(trials: Sequence[Trial]) -> list[str]:
    """Says how many trials ended how."""
    states = [sum(t.state == s for t in trials) for s in ("pruned", "failed")]
    done = len(complete(trials))
    return [
        f"{_plural(done, 'trial')} complete, {states[0]} pruned, {states[1]} failed."
    ]


def anomalies(record: Record | None) -> list[str]:
    """Says what the trials are ranked by, and what was made sure of."""
    statements = [] if record is None else list(record.statements)
    if record is None or not len(record.drawn):
        return [
            "No anomalies were used: this can only rank by reconstruction loss, which "
            "says how well normal images are reproduced and not how far abnormal ones "
            "stand out. The paper reports about 2 points of ROC AUC more from tuning "
            "with a few anomalies.",
            *statements,
        ]
    kinds = record.count_kinds()
    what = "of unknown kinds"
    if any(kinds):
        each = ", ".join(f"{kind or 'not stated'} {n}" for kind, n in kinds.items())
        what = f"of {_plural(len(kinds), 'kind')} ({each})"
    count = len(record.drawn)
    return [
        f"Ranked by {count:,} {'anomaly' if count == 1 else 'anomalies'} {what}, drawn "
        f"from {len(record.paths):,}.",
        *statements,
    ]


def folds(trials: Sequence[Trial]) -> list[str]:
    """Says how the normal images were divided."""
    done = complete(trials)
    if not done:
        return []
    found = done[0].folds
    images = sum(len(fold.normal) for fold in found)
    groups = {name for fold in found for name in fold.groups or ()}
    how = (
        f"split by their {_plural(len(groups), 'group')} (patients or slides)"
        if groups
        else "split image by image, as their groups (patients or slides) are unknown: "
        "if one has several images, the AUC is too good for new ones"
    )
    return [f"{_plural(len(found), 'fold')} of {images:,} normal images {how}."]


def random_weights(configs: Mapping[str, ml_collections.ConfigDict]) -> list[str]:
    """Says so if VGG19's weights were random in any of the runs."""
    random = {
        c.perceptual.weights
        for c in configs.values()
        if config_lib.uses_vgg(c) and c.perceptual.weights.startswith("random:")
    }
    if not random:
        return []
    return [
        f"VGG19's weights are random ({', '.join(sorted(random))}): what is best with "
        "those of ImageNet may be something else."
    ]


def interval(best: Value) -> list[str]:
    """Says how sure the best trial's AUC is."""
    return [
        f"The best trial's ROC AUC is {best.auc:.4f}, 95% {best.low:.4f} to "
        f"{best.high:.4f} (over other anomalies and other normal images; the models as "
        "they are)."
    ]


def optimism(found: Optimism, trials: int) -> list[str]:
    """Says how much too good the best trial's AUC may be.

    Args:
      found: see `selection.optimism`.
      trials: that it is the best of.
    """
    lines = []
    if found.sd is not None:
        lines.append(
            f"Optimism: the best trial's folds differ by {found.spread:.4f} (standard "
            f"deviation {found.sd:.4f})."
        )
    if found.resampled is not None:
        text = (
            f"The highest AUC of {trials} trials is biased upwards: chosen by resampled"
            f" anomalies and normal images, the best comes to {_less(found.resampled)}"
            f" on all of them; it is this trial in {found.first:.0%} of the resamples"
        )
        if found.nested is not None:
            text += (
                f"; chosen by all folds but one, it comes to {_less(found.nested)} on "
                "the one left out (with the same anomalies)"
            )
        lines.append(f"{text}.")
    return [
        *lines,
        "How good a run is, only a test set can tell that nothing was chosen by.",
    ]


def _less(value: float) -> str:
    return f"{abs(value):.4f} {'less' if value >= 0 else 'more'}"


def unranked(different: Sequence[str]) -> list[str]:
    """Says which fields keep trials from being ranked by loss, if any do."""
    if not different:
        return []
    return [
        "The trials are not ranked, as their losses measure different things: "
        f"{'; '.join(different)}."
    ]


def importance(shares: Mapping[str, float], reason: str) -> str:
    """Says what `importance.importance` has found."""
    if not shares:
        return f"Importance of the parameters: not computed, {reason}."
    each = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    return f"Importance of the parameters (fANOVA, shares of the variance): {each}."


def result(trial: Trial, value: Value | None) -> str:
    """Says what a trial came to."""
    if value is None:
        return f"held-out loss {trial.loss:.5g}"
    return f"ROC AUC {value.auc:.4f} (95% {value.low:.4f} to {value.high:.4f})"


def ranking(
    trials: Sequence[Trial], values: Sequence[Value | None], most: int
) -> list[str]:
    """Lists the first trials of a ranking, a line each."""
    return [
        f"{place}. trial {trial.number}: {result(trial, value)}; "
        + ", ".join(f"{name}={given}" for name, given in trial.parameters.items())
        for place, (trial, value) in enumerate(
            zip(trials[:most], values[:most], strict=True), 1
        )
    ]


def page(
    name: str,
    trials: Sequence[Trial],
    values: Sequence[Value | None],
    basis: Sequence[str],
    shares: str,
    refit: str,
) -> str:
    """Returns report.md.

    Args:
      name: of the study.
      trials: ranked, the best first.
      values: theirs; None where they are ranked by loss.
      basis: sentences on what the ranking stands on.
      shares: that on the importance of the parameters.
      refit: the command that trains the best trial again.
    """
    parts = [f"# Study {name}", ""]
    if trials:
        best = trials[0]
        steps = ", ".join(f"{fold.steps:,}" for fold in best.folds)
        parts += [
            f"Best: trial {best.number}, {result(best, values[0])}.",
            "",
            *(
                f"- {parameter}: {given}"
                for parameter, given in best.parameters.items()
            ),
            f"- steps of the last stage, by fold: {steps}",
            "",
            f"Train it on all normal images:\n\n    {refit}",
            "",
        ]
    parts += ["## What this stands on", "", *(f"- {line}" for line in basis), ""]
    if trials:
        parts += ["## Ranking", "", *_table(trials, values), ""]
        parts += ["![The ranking](ranking.png)", ""]
    return "\n".join([*parts, "## Importance", "", shares, ""])


def _table(trials: Sequence[Trial], values: Sequence[Value | None]) -> list[str]:
    names = list(trials[0].parameters)
    what = ("held-out loss",) if values[0] is None else ("ROC AUC", "95%")
    header = ["rank", "trial", *what, *names, "steps"]
    lines = [header, ["---"] * len(header)]
    for place, (trial, value) in enumerate(zip(trials, values, strict=True), 1):
        found = (f"{trial.loss:.5g}",)
        if value is not None:
            found = (f"{value.auc:.4f}", f"{value.low:.4f} to {value.high:.4f}")
        given = [str(trial.parameters.get(name, "")) for name in names]
        steps = " ".join(str(fold.steps) for fold in trial.folds)
        lines.append([str(place), str(trial.number), *found, *given, steps])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
