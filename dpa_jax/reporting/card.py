"""The model card of a run: README.md as Hugging Face's model repositories have it.

The front matter follows the specification of model cards of the Hub (`license`,
`library_name`, `pipeline_tag`, `tags`, `model-index`).
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from dpa_jax import errors
from dpa_jax.reporting import card_sections, evaluation_files, run_files
from dpa_jax.reporting.evaluation_files import Evaluation
from dpa_jax.reporting.run_files import Run
from dpa_jax.weights import formats

FILE = "README.md"
# what no file of a run says, and must be given
TEXTS = ("intended_use", "out_of_scope", "data", "license")
OPTIONAL = ("license_name", "license_link")  # of a licence that is `other`


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
    found = None if evaluation is None else evaluation_files.read(evaluation)
    text = render(run_files.read(workdir), found, texts)
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
    return f"---\n{front}---\n\n{card_sections.text(run, evaluation, texts)}"


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
