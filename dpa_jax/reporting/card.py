"""The model card of a run: README.md as Hugging Face's model repositories have it.

The front matter follows the specification of model cards of the Hub (`license`,
`library_name`, `pipeline_tag`, `tags`, `model-index`).
"""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dpa_jax import errors
from dpa_jax.reporting import collect
from dpa_jax.reporting.collect import Evaluation, Run
from dpa_jax.weights import formats

FILE = "README.md"
# what no file of a run says, and must be given
TEXTS = ("intended_use", "out_of_scope", "data", "license")
OPTIONAL = ("license_name", "license_link")  # of a licence that is `other`
_INTRODUCTION = (
    "A deep perceptual autoencoder (Shvetsova et al., 2021), trained on normal images "
    "alone by dpa\\_jax. It\ngives an image a score, the higher the more abnormal, and "
    "a map of where."
)
_USE = "    dpa-jax score --workdir=. image.png --out=scores.csv --maps=maps"
_TERMS = ("relative_perceptual", "perceptual", "l1", "l2", "adversarial")


def read_texts(path: str | os.PathLike) -> dict[str, str]:
    """Reads what no file of a run says from a YAML file.

    Raises:
      UsageError: it cannot be read, or holds another name or something else than text.
    """
    try:
        found = yaml.safe_load(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise errors.UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise errors.UsageError(f"{path}: not YAML: {reason}") from None
    names = (*TEXTS, *OPTIONAL)
    if not isinstance(found, dict) or not set(found) <= set(names):
        raise errors.UsageError(f"{path}: holds {', '.join(names)}, and nothing else")
    for name, text in found.items():
        if not isinstance(text, str):
            raise errors.UsageError(f"{path}: {name} is not text")
    return found


def write(
    workdir: str | os.PathLike,
    evaluation: pathlib.Path | None,
    texts: Mapping[str, str],
    out: pathlib.Path,
) -> None:
    """Writes the model card of a run, from its files and what its author says.

    Args:
      workdir: of the run.
      evaluation: the folder of the evaluation that it reports; None for none.
      texts: Markdown by the names in `TEXTS` and `OPTIONAL`.
      out: the file.

    Raises:
      UsageError: a section would be empty; all of them are named.
      DpaError: a file is damaged, or the card cannot be written.
    """
    found = None if evaluation is None else collect.evaluation(evaluation)
    text = render(collect.run(workdir), found, texts)
    with formats.replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(run: Run, evaluation: Evaluation | None, texts: Mapping[str, str]) -> str:
    """Returns the model card; see `write`."""
    texts = {name: text.strip() for name, text in texts.items() if text.strip()}
    missing = _missing(run, evaluation, texts)
    if missing or evaluation is None:
        raise errors.UsageError(
            f"the model card would have empty sections: {'; '.join(missing)}"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", texts["license"]):
        raise errors.UsageError(
            f"--license={texts['license']}: an identifier of Hugging Face's list, such "
            "as apache-2.0, mit or other"
        )
    front = yaml.safe_dump(
        _front_matter(run, evaluation, texts), sort_keys=False, allow_unicode=True
    )
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
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def _missing(
    run: Run, evaluation: Evaluation | None, texts: Mapping[str, str]
) -> list[str]:
    """Returns what is missing for a card, each with where it comes from."""
    needed = [*TEXTS, *(OPTIONAL if texts.get("license") == "other" else ())]
    found = [
        f"{name.replace('_', ' ')} (--{name.replace('_', '-')})"
        for name in needed
        if name not in texts
    ]
    if run.is_perceptual and not run.weights:
        found.append("weights (weights.json of the workdir)")
    if evaluation is None:
        found.append("evaluation and shortcuts (dpa-jax evaluate)")
    if evaluation is None or "calibration" not in evaluation.metrics:
        found.append("calibration (dpa-jax calibrate, then evaluate)")
    return found


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
    for name, value in collect.thresholds(run, evaluation).items():
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


def _front_matter(
    run: Run, evaluation: Evaluation, texts: Mapping[str, str]
) -> dict[str, Any]:
    metrics = evaluation.metrics
    low, high = metrics["roc_auc_interval"]
    calibrated = metrics["calibration"]
    figures = [
        ("roc_auc", f"ROC AUC (95% {low:.3f} to {high:.3f})", metrics["roc_auc"]),
        ("average_precision", "Average precision", metrics["average_precision"]),
        (
            "false_positive_rate",
            f"False positive rate (promised: {calibrated['alpha']:g})",
            calibrated["false_positive_rate"],
        ),
        ("true_positive_rate", "True positive rate", calibrated["true_positive_rate"]),
    ]
    return {
        **{name: texts[name] for name in ("license", *OPTIONAL) if name in texts},
        "library_name": "dpa-jax",
        "pipeline_tag": "image-classification",
        "tags": ["anomaly-detection", "medical-imaging", "autoencoder", "jax"],
        "metrics": ["roc_auc"],
        "model-index": [
            {
                "name": run.name,
                "results": [
                    {
                        "task": {
                            "type": "image-classification",
                            "name": "Anomaly detection",
                        },
                        "dataset": {"type": "custom", "name": evaluation.name},
                        "metrics": [
                            {"type": kind, "value": value, "name": name}
                            for kind, name, value in figures
                            if value is not None
                        ],
                    }
                ],
            }
        ],
    }


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(text: Any) -> str:
    """Returns text of a workdir so that Markdown takes none of it for its own."""
    return re.sub(r"([\\`*_{}\[\]<>|#&])", r"\\\1", " ".join(str(text).split()))
