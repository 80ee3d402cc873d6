"""The sections of a run's model card, as Markdown."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dpa_jax.reporting import evaluation_files
from dpa_jax.reporting.evaluation_files import Evaluation
from dpa_jax.reporting.run_files import Run

_INTRODUCTION = (
    "A deep perceptual autoencoder (Shvetsova et al., 2021), trained on normal images "
    "alone by dpa\\_jax. It\ngives an image a score, the higher the more abnormal, and "
    "a map of where."
)
_USE = "    dpa-jax score --workdir=. image.png --out=scores.csv --maps=maps"
_TERMS = ("relative_perceptual", "perceptual", "l1", "l2", "adversarial")


def text(run: Run, evaluation: Evaluation, texts: Mapping[str, str]) -> str:
    """Returns the card below its front matter.

    Args:
      run: of which the card is.
      evaluation: that it reports, made after a calibration.
      texts: Markdown of the author's, by the names in `card.TEXTS`.
    """
    sections = {
        "Use": [_USE],
        "Intended use": [texts["intended_use"]],
        "Out-of-scope use": [texts["out_of_scope"]],
        "Data": [texts["data"], *_data(run, evaluation)],
        "Training": _training(run, evaluation),
        "Weights": _weights(run),
        "Evaluation": _evaluation(evaluation),
        "Shortcuts": _shortcuts(evaluation),
        "Calibration": _calibration(run, evaluation),
        "Limits": _limits(run, evaluation),
    }
    parts = [f"# {_plain(run.name)}", _INTRODUCTION]
    for title, paragraphs in sections.items():
        parts += [f"## {title}", *paragraphs]
    return "\n\n".join(parts) + "\n"


def _data(run: Run, evaluation: Evaluation) -> list[str]:
    config, metrics, calibration = run.config, evaluation.metrics, run.calibration
    lines = []
    if run.data:
        lines.append(
            f"Trained on {run.data['images']:,} normal images of "
            f"{_plain(config['data.train'])}, SHA-256 {_plain(run.data['sha256'])}"
        )
    if "data" in calibration:
        lines.append(
            f"Calibrated on {calibration['images']:,} normal images of "
            f"{_plain(calibration['data']['location'])}, SHA-256 "
            f"{_plain(calibration['data']['sha256'])}"
        )
    lines.append(
        f"Evaluated on {metrics['normal']:,} normal and {metrics['abnormal']:,} "
        f"abnormal images ({_plain(evaluation.name)})"
    )
    side = config["data.resolution"]
    flags = ("equalize", "random_crop", "horizontal_flip", "vertical_flip")
    used = [name.replace("_", " ") for name in flags if config[f"data.{name}"]]
    lines.append(
        f"Prepared as {side} x {side} pixels, "
        f"{'grey' if config['data.channels'] == 1 else 'colour'}"
        + (f", {', '.join(used)}" if used else "")
    )
    return [_listed(lines)]


def _training(run: Run, evaluation: Evaluation) -> list[str]:
    config = run.config
    values = {name.replace("_", " "): config[f"loss.{name}"] for name in _TERMS}
    if config["loss.extra"]:
        values[_plain(config["loss.extra"])] = config["loss.extra_weight"]
    terms = [f"{name} {value:g}" for name, value in values.items() if value]
    lines = [
        f"{evaluation.metrics['trained_steps']:,} steps of {config['batch_size']} "
        f"images, growing from {config['stages.initial_resolution']} to "
        f"{config['data.resolution']} pixels",
        f"Networks {_plain(config['model.kind'])}, learning rate "
        f"{config['optimizer.learning_rate']:g}, seed {config['seed']}",
        f"Weights of the loss's terms: {', '.join(terms)}",
    ]
    packages = run.environment.get("packages", {})
    if packages:
        versions = ", ".join(f"{name} {version}" for name, version in packages.items())
        lines.append(f"Versions: {_plain(versions)}")
    return [_listed(lines)]


def _weights(run: Run) -> list[str]:
    if not run.is_perceptual:
        return ["The loss compares pixels alone: no pretrained network is used."]
    backbone, weights = run.config["perceptual.backbone"], run.weights
    return [
        f"Features are compared of {_plain(backbone)} with the weights "
        f"{_plain(weights['source'])}, SHA-256 {_plain(weights['sha256'])}."
    ]


def _evaluation(evaluation: Evaluation) -> list[str]:
    metrics = evaluation.metrics
    precision, chance = (
        metrics[f"average_precision{name}"] for name in ("", "_by_chance")
    )
    parts = {"all": metrics}
    for name in ("by_view", "by_finding"):
        parts |= {key: part for key, part in metrics.get(name, {}).items()}
    rows = [
        (
            _plain(name),
            f"{part['roc_auc']:.4f}",
            "{:.4f} to {:.4f}".format(*part["roc_auc_interval"]),
            f"{part['normal']:,}",
            f"{part['abnormal']:,}",
        )
        for name, part in parts.items()
        if "roc_auc" in part
    ]
    header = ("Images", "ROC AUC", "95% interval", "Normal", "Abnormal")
    return [
        _table(header, rows),
        f"Average precision {precision:.4f}, by chance {chance:.4f}. Intervals take "
        f"{'groups' if evaluation.groups else 'images'} for independent.",
    ]


def _shortcuts(evaluation: Evaluation) -> list[str]:
    found = evaluation.metrics["shortcuts"]
    rows = [(_plain(name), f"{value:.4f}") for name, value in found.items()]
    return [
        "What tells the labels apart without a look at the anatomy, each used as the "
        "score; 0.5 is chance.",
        _table(("Score", "ROC AUC"), rows),
        *(f"Warning: {_plain(text)}" for text in evaluation.metrics["warnings"]),
    ]


def _calibration(run: Run, evaluation: Evaluation) -> list[str]:
    found = evaluation.metrics["calibration"]
    rows = [("False positive rate, promised", f"{found['alpha']:g}", "")]
    for name in ("false_positive_rate", "true_positive_rate"):
        value, around = found[name], found.get(f"{name}_interval")
        rows.append(
            (
                f"{name.replace('_', ' ').capitalize()}, observed",
                "unknown" if value is None else f"{value:.4f}",
                "{:.4f} to {:.4f}".format(*around) if around else "",
            )
        )
    for name, value in evaluation_files.thresholds(run, evaluation).items():
        rows.append((f"Threshold, {_plain(name)}", f"{value:.6g}", ""))
    what = found["units"]
    of = "images" if what == "images" else f"groups ({_plain(what)}), by their highest"
    return [
        f"Decisions are of {of}.",
        _table(("Figure", "Value", "95% interval"), rows),
    ]


def _limits(run: Run, evaluation: Evaluation) -> list[str]:
    metrics = evaluation.metrics
    calibrated, side = metrics["calibration"], run.config["data.resolution"]
    lines = [
        "The figures hold for the images named above; they are no clinical validation",
        "The promised false positive rate holds on average over calibrations, and for "
        "images of the same origin as the calibration's: another scanner, site or "
        "population voids it",
        f"Images are seen in {side} x {side} pixels; what is smaller is not",
        "A high score says that an image is unusual, not which disease it shows",
    ]
    around = calibrated["false_positive_rate_interval"]
    if around and around[0] > calibrated["alpha"]:
        lines.append(
            "On the images of the evaluation more of the normal ones were called "
            "abnormal than was promised, beyond the chance in these images: they are "
            "not like those of the calibration, or it had too few"
        )
    if metrics["random_weights"]:
        lines.append(
            "The weights of the backbone are random, not pretrained: the figures show "
            "that everything works, not how well the method does"
        )
    return [_listed(lines)]


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(text: Any) -> str:
    """Returns text of a workdir so that Markdown takes none of it for its own."""
    return re.sub(r"([\\`*_{}\[\]<>|#&])", r"\\\1", " ".join(str(text).split()))
