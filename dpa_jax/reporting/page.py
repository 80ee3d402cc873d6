"""The report of a run: one page that needs nothing beside itself."""

import base64
import hashlib
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2
import markupsafe
import numpy as np
import sklearn.metrics

from dpa_jax.data.image_set import ImageSet
from dpa_jax.reporting import cases, charts, evaluation_files, pictures, run_files
from dpa_jax.reporting.evaluation_files import Evaluation
from dpa_jax.reporting.run_files import Run
from dpa_jax.scoring import roc
from dpa_jax.scoring.scorer import Scorer
from dpa_jax.weights import formats

FILE = "report.html"
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("dpa_jax.reporting"),
    autoescape=True,  # names and texts of a workdir are whatever its maker chose
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["figure"] = lambda value, form: (
    "unknown" if value is None else form % value
)


def write(
    workdir: str | os.PathLike, evaluation: pathlib.Path | None, out: pathlib.Path
) -> None:
    """Writes the report of a run, from its files alone.

    Args:
      workdir: of the run.
      evaluation: the folder of the evaluation that it shows; None for none.
      out: the page.

    Raises:
      DpaError: a file is damaged, or the page cannot be written.
    """
    found = None if evaluation is None else evaluation_files.read(evaluation)
    text = render(run_files.read(workdir), found)
    with formats.replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_with_cases(
    workdir: str | os.PathLike,
    evaluation: pathlib.Path,
    scorer: Scorer,
    images: ImageSet,
    scores: np.ndarray,
) -> None:
    """Writes cases.npz and report.html beside the other files of an evaluation.

    Args:
      workdir: of the run.
      evaluation: the folder, with metrics.json and scores.csv of these scores.
      scorer: the run.
      images: of the evaluation.
      scores: float32 `[N]`.
    """
    cases.write(evaluation / cases.FILE, cases.compute(scorer, images, scores))
    write(workdir, evaluation, evaluation / FILE)


def render(run: Run, evaluation: Evaluation | None) -> str:
    """Returns the page as HTML."""
    style, script = (_source(f"page.{kind}") for kind in ("css", "js"))
    return _TEMPLATES.get_template("page.html").render(
        run=run,
        evaluation=evaluation,
        # the package's own files, not text of a stranger
        style=markupsafe.Markup(style),  # nosec B704
        script=markupsafe.Markup(script),  # nosec B704
        hashes={"style": _hash(style), "script": _hash(script)},
        box=charts,
        training=_training(run),
        curve=None if evaluation is None else _roc(evaluation),
        histogram=None if evaluation is None else _histogram(evaluation, run),
        **_gallery(evaluation, run),
    )


def _source(name: str) -> str:
    assert _TEMPLATES.loader is not None
    return _TEMPLATES.loader.get_source(_TEMPLATES, name)[0]


def _hash(text: str) -> str:
    """Returns what a Content-Security-Policy names an inline element by."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _training(run: Run) -> dict[str, Any] | None:
    """Returns the plot of a run's losses, None if none is known."""
    curves = {}
    for name in ("loss", "held_out_loss"):
        pairs = [
            (row["step"], row[name])
            for row in run.training
            if isinstance(row.get(name), (int, float)) and np.isfinite(row[name])
        ]
        if pairs:
            curves[name] = np.array(pairs, float).T
    if not curves:
        return None
    values = np.concatenate([y for _, y in curves.values()])
    steps = np.concatenate([x for x, _ in curves.values()])
    # the first rows of a run are far above all others
    top = float(np.percentile(values, 98)) * 1.1 or 1.0
    plot = charts.plot(("step", 0, float(steps.max())), ("loss", 0, top))
    stages = [
        (str(name), [float(row["step"]) for row in rows])
        for name, rows in itertools.groupby(run.training, lambda row: row.get("stage"))
    ]
    ends = [0.0, *(steps[-1] for _, steps in stages)]
    return {
        "plot": plot,
        "curves": {
            name: plot.points(x, np.minimum(y, top)) for name, (x, y) in curves.items()
        },
        "stages": [
            (name, round(float(plot.x.at(a)), 1), round(float(plot.x.at(b)), 1))
            for (name, _), (a, b) in zip(stages, itertools.pairwise(ends), strict=True)
        ],
        "last": {name: float(y[-1]) for name, (_, y) in curves.items()},
        "clipped": bool(values.max() > top),
    }


def _roc(evaluation: Evaluation) -> dict[str, Any]:
    labels, scores = evaluation.labels, evaluation.scores
    plot = charts.plot(("false positive rate", 0, 1), ("true positive rate", 0, 1))
    false, true, _ = sklearn.metrics.roc_curve(labels, scores)
    rates = np.linspace(0, 1, 101)
    low, high = roc.band(scores, labels, rates, evaluation.groups)
    around = np.concatenate([rates, rates[::-1]]), np.concatenate([low, high[::-1]])
    found: dict[str, Any] = {"plot": plot, "curve": plot.points(false, true)}
    found["band"] = plot.points(*around)
    if evaluation.abnormal is not None:
        x, y = (float(evaluation.abnormal[labels == label].mean()) for label in (0, 1))
        found["decision"] = float(plot.x.at(x)), float(plot.y.at(y))
    return found


def _histogram(evaluation: Evaluation, run: Run) -> dict[str, Any]:
    scores, labels = evaluation.scores, evaluation.labels
    # a few scores far off would leave no room for the others
    low, high = np.percentile(scores, (0.2, 99.8))
    edges = np.histogram_bin_edges(np.clip(scores, low, high), 40)
    shares = [
        np.histogram(np.clip(scores[labels == label], low, high), edges)[0]
        / (labels == label).sum()
        for label in (0, 1)
    ]
    plot = charts.plot(
        ("anomaly score", float(edges[0]), float(edges[-1])),
        ("share of images, %", 0, 105 * float(np.max(shares))),
    )
    x = np.repeat(edges, 2)
    shapes = [
        plot.points(x, np.concatenate([[0], np.repeat(100 * share, 2), [0]]))
        for share in shares
    ]
    return {
        "plot": plot,
        "shapes": shapes,
        "thresholds": [
            (name, value, round(float(plot.x.at(value)), 1))
            for name, value in evaluation_files.thresholds(run, evaluation).items()
            if edges[0] <= value <= edges[-1]
        ],
        "clipped": bool((scores < low).any() or (scores > high).any()),
    }


def _gallery(evaluation: Evaluation | None, run: Run) -> dict[str, Any]:
    """Returns what the page's script draws the cases from."""
    kept = None if evaluation is None else evaluation.cases
    if evaluation is None or kept is None or not len(kept):
        return {"cases": None, "pixels": ""}
    low, top = run.calibration.get("map_range") or pictures.scale(kept)
    found = pictures.encode(kept, low, top)
    offsets = np.cumsum([0, *map(len, found.encoded)]).tolist()
    row, p_values, abnormal = kept.row, evaluation.p_values, evaluation.abnormal
    ranks = np.empty(len(evaluation.scores), int)
    ranks[np.argsort(-evaluation.scores, kind="stable")] = np.arange(len(ranks)) + 1
    return {
        "cases": {
            "side": found.side,
            "scale": [low, top],
            "normal": bool(run.calibration),
            "of": len(evaluation.scores),
            "quality": found.quality,
            "path": [evaluation.paths[i] for i in row],
            "group": evaluation.groups and [evaluation.groups[i] for i in row],
            "label": evaluation.labels[row].tolist(),
            "score": _rounded(evaluation.scores[row]),
            "rank": ranks[row].tolist(),
            "p": None if p_values is None else _rounded(p_values[row]),
            "abnormal": None
            if abnormal is None
            else abnormal[row].astype(int).tolist(),
            "layers": kept.layers.tolist(),
            "share": [_rounded(share) for share in kept.share],
            "offset": offsets,
        },
        # Base64 that was encoded here, tens of megabytes not to be looked through
        "pixels": markupsafe.Markup("".join(found.encoded)),  # nosec B704
    }


def _rounded(values: np.ndarray) -> Sequence[float | None]:
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values.tolist()]
