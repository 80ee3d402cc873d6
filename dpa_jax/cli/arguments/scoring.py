"""The arguments of evaluate, score and score-slide."""

import argparse

from dpa_jax.cli.arguments import options


def add_verbs(add: options.Add) -> None:
    """Adds evaluate, score and score-slide."""
    _add_evaluate(add)
    _add_score(add)
    _add_score_slide(add)


def _add_evaluate(add: options.Add) -> None:
    evaluate = add(
        "evaluate",
        "measure how well a run tells abnormal from normal",
        "  dpa-jax evaluate --workdir=run --normal=test/normal --abnormal=test/abnormal"
        "\n  dpa-jax evaluate --workdir=run --test=test.csv --name=hospital-2",
        doc="Writes report.html, metrics.json, scores.csv, roc.png, histogram.png and "
        "cases.npz.\nWhere a manifest's column mask names masks of abnormal pixels, "
        "the maps are measured too.",
    )
    options.workdir(evaluate)
    evaluate.add_argument("--normal", metavar="DIR", help="normal images")
    evaluate.add_argument("--abnormal", metavar="DIR", help="abnormal images")
    evaluate.add_argument(
        "--test",
        metavar="LOCATION",
        help="labelled images instead: a manifest FILE.csv or FILE.csv:SPLIT, .npz or "
        "tfds:NAME:SPLIT "
        "(default: data.test of the run's config)",
    )
    evaluate.add_argument(
        "--name",
        help="results go to WORKDIR/evaluations/NAME (default: the name of the test "
        "set, with -2, -3 and so on if that is taken)",
    )
    evaluate.add_argument("--out", metavar="DIR", help="for the results, elsewhere")
    add_shared(evaluate)


def _add_score(add: options.Add) -> None:
    score = add(
        "score",
        "score images: the higher, the more abnormal",
        "  dpa-jax score --workdir=run image.png folder/ --out=scores.csv --maps=maps"
        "\n  dpa-jax score --workdir=run test.csv:val a.npz --explain --json --out=-"
        "\n  dpa-jax score --workdir=run folder/ --score=layers --score=mine:sharpness",
        doc="Writes path and score, in the order given (folders sorted), and a column "
        "for each\n--score: loss, layers (of each by itself), l1 (of the pixels), "
        "latent_norm, or a function of\nyour own; with --explain what part of the "
        "score comes from each layer and term; with --maps the\nfile of each image's "
        "map.",
    )
    score.add_argument(
        "images",
        nargs="+",
        metavar="LOCATION",
        help="an image, a folder, a manifest FILE.csv or FILE.csv:SPLIT, .npz, a "
        "volume, or tfds:NAME:SPLIT",
    )
    options.workdir(score)
    score.add_argument(
        "--out",
        metavar="FILE",
        help="- for stdout (default: scores.csv, with --json scores.jsonl)",
    )
    score.add_argument(
        "--json",
        action="store_true",
        help="write a JSON object for each image, by line",
    )
    score.add_argument(
        "--quiet", action="store_true", help="show warnings and errors alone"
    )
    score.add_argument(
        "--explain",
        action="store_true",
        help="add share.LAYER, and share.l1 and others that the loss has: they add up "
        "to 1",
    )
    score.add_argument(
        "--score",
        action="append",
        default=[],
        metavar="NAME",
        help="one more column (repeatable): loss, layers, l1, latent_norm or "
        "module:function; a function that returns maps needs --maps",
    )
    score.add_argument(
        "--fdr",
        type=options.share,
        metavar="Q",
        help="of a calibrated run: call abnormal as many as keep the expected share of "
        "normal ones among them at most Q, instead of each by alpha",
    )
    score.add_argument(
        "--maps", metavar="DIR", help="write anomaly maps: NAME.png and NAME.npy"
    )
    add_shared(score)


def _add_score_slide(add: options.Add) -> None:
    slide = add(
        "score-slide",
        "score a whole slide tile by tile",
        "  dpa-jax score-slide slide.tif --workdir=run --out=slide_scores",
        doc="Writes a heat map over the thumbnail, a pyramidal TIFF of scores, GeoJSON "
        "for QuPath and a CSV. Resumes if interrupted.",
    )
    slide.add_argument("slide", metavar="SLIDE")
    options.workdir(slide)
    slide.add_argument(
        "--out", metavar="DIR", help="default: the slide's name with _scores"
    )
    options.mpp(slide)
    slide.add_argument(
        "--magnification",
        type=int,
        choices=(10, 20, 40),
        help="of the tiles (default: that of the run's patches, or 10)",
    )
    slide.add_argument(
        "--stain-target",
        metavar="FILE.npz",
        help="what stains are normalised to: a saved stain_target.npz, or none "
        "(default: what the run's patches were)",
    )
    slide.add_argument(
        "--threshold",
        type=float,
        help="scores above it become regions (default: that of the run's calibration, "
        "or no regions)",
    )
    _batching(slide, "tiles")


def _batching(parser: argparse.ArgumentParser, unit: str) -> None:
    parser.add_argument(
        "--batch",
        type=options.positive,
        default=64,
        help=f"{unit} at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "tensorfloat32", "bfloat16"),
        default="float32",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="import the functions outside of dpa_jax that the run names",
    )


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Adds what verbs that read and score images have in common."""
    _batching(parser, "images")
    parser.add_argument(
        "--skip-corrupt",
        action="store_true",
        help="leave out images that cannot be read, and list them",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results of an earlier call"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse images unlike those of training, instead of a warning",
    )
