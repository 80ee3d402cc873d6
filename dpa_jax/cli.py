"""The command line: parses and calls; what the verbs do is in `verbs.py`.

Only what parsing needs is imported here, so that --help answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from dpa_jax import errors

_CONFIG_HELP = """
A config is FILE.py[:ARGUMENT], FILE.json or the published code's FILE.yaml; each field
can be set: --config.batch_size=64 --config.stages.final_steps=1000
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dpa-jax",
        description="Deep perceptual autoencoders: find what is abnormal in medical "
        "images after training on normal ones only.",
        epilog="Start with: dpa-jax demo",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(
        name: str, summary: str, example: str, under: Any = verbs, doc: str = ""
    ) -> argparse.ArgumentParser:
        made = under.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {doc.strip()}",
            epilog=f"example:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the traceback of an error",
        )
        return made

    _add_running(add)
    _add_data(add)
    _add_weights(add)
    _add_other(add)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of at least 1"
        )
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of at least 0"
        )
    return int(text)


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _workdir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of the run")


def _add_running(add) -> None:
    demo = add(
        "demo",
        "train and evaluate on phantom images made on the spot",
        "  dpa-jax demo --workdir=demo",
    )
    demo.add_argument(
        "--workdir",
        default="dpa_jax_demo",
        metavar="DIR",
        help="where images and the run go (default: %(default)s)",
    )
    train = add(
        "train",
        "train a run, or go on with one that was interrupted",
        "  dpa-jax train --config=configs/folder.py --workdir=run "
        "--config.data.train=normal/\n\n"
        "  several processes: the same command in each, with --distributed on Slurm or "
        "a\n  TPU slice, or with --coordinator, --processes and --process",
        doc=_CONFIG_HELP,
    )
    train.add_argument("--config", required=True, metavar="FILE[:ARGUMENT]")
    _workdir(train)
    train.add_argument(
        "--distributed",
        action="store_true",
        help="join the processes that the cluster started (Slurm, Open MPI, TPU slice)",
    )
    train.add_argument("--coordinator", metavar="HOST:PORT", help="process 0's address")
    train.add_argument("--processes", type=int, help="how many there are")
    train.add_argument("--process", type=int, help="which this is, from 0")

    _add_tune(add)

    evaluate = add(
        "evaluate",
        "measure how well a run tells abnormal from normal",
        "  dpa-jax evaluate --workdir=run --normal=test/normal --abnormal=test/abnormal"
        "\n  dpa-jax evaluate --workdir=run --test=test.csv",
        doc="Writes metrics.json, scores.csv, roc.png and histogram.png.",
    )
    _workdir(evaluate)
    evaluate.add_argument("--normal", metavar="DIR", help="normal images")
    evaluate.add_argument("--abnormal", metavar="DIR", help="abnormal images")
    evaluate.add_argument(
        "--test",
        metavar="LOCATION",
        help="labelled images instead: a manifest, .npz or tfds:NAME:SPLIT "
        "(default: data.test of the run's config)",
    )
    evaluate.add_argument(
        "--out", metavar="DIR", help="for the results (default: WORKDIR/evaluation)"
    )
    _scoring(evaluate)

    score = add(
        "score",
        "score images: the higher, the more abnormal",
        "  dpa-jax score --workdir=run image.png folder/ --out=scores.csv --maps=maps",
        doc="Writes path and score, in the order given (folders sorted).",
    )
    score.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER")
    _workdir(score)
    score.add_argument(
        "--out", default="scores.csv", metavar="FILE", help="default: %(default)s"
    )
    score.add_argument(
        "--maps", metavar="DIR", help="write anomaly maps: NAME.png and NAME.npy"
    )
    _scoring(score)

    slide = add(
        "score-slide",
        "score a whole slide tile by tile",
        "  dpa-jax score-slide slide.tif --workdir=run --out=slide_scores",
        doc="Writes a heat map over the thumbnail, a pyramidal TIFF of scores, GeoJSON "
        "for QuPath and a CSV. Resumes if interrupted.",
    )
    slide.add_argument("slide", metavar="SLIDE")
    _workdir(slide)
    slide.add_argument(
        "--out", metavar="DIR", help="default: the slide's name with _scores"
    )
    _mpp(slide)
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
        help="scores above it become regions (default: the slide's 95th percentile)",
    )
    _batching(slide, "tiles")


def _add_tune(add) -> None:
    tune = add(
        "tune",
        "choose hyper-parameters by cross-validation with a few known anomalies",
        "  dpa-jax tune --config=configs/folder.py --search=configs/search/folder.py "
        "\\\n    --workdir=study --config.data.train=normal/ "
        "--anomalies-from=anomalies/\n\n"
        "  the same command in several processes works on one study; on several\n"
        "  machines with --storage and a folder that all of them see",
        doc="Goes\non where it was interrupted; the workdir alone is then enough."
        f"{_CONFIG_HELP}A search is FILE.py[:ARGUMENT]; its fields are set so too: "
        "--search.folds=2",
    )
    tune.add_argument(
        "--config",
        metavar="FILE[:ARGUMENT]",
        help="what trials start from (default: the study's)",
    )
    tune.add_argument(
        "--search", metavar="FILE[:ARGUMENT]", help="what to try (default: the study's)"
    )
    tune.add_argument("--workdir", required=True, metavar="DIR", help="of the study")
    tune.add_argument(
        "--storage",
        default="",
        metavar="URL",
        help="database that workers share, such as postgresql://HOST/NAME, where the "
        "study is called as the workdir (default: study.db in the workdir)",
    )
    tune.add_argument(
        "--trials", type=_positive, help="how many; more than before go on from there"
    )
    tune.add_argument("--folds", type=_positive, help="parts of the normal images")
    tune.add_argument(
        "--anomalies", type=_count, metavar="N", help="how many to rank by"
    )
    tune.add_argument(
        "--anomalies-from",
        metavar="LOCATION",
        help="a folder, manifest, .npz or tfds:NAME:SPLIT of them",
    )
    tune.add_argument(
        "--learning-curve",
        type=_counts,
        metavar="N,N,...",
        help="of a finished study: choose again with so many anomalies, and look at "
        "the test set",
    )
    tune.add_argument(
        "--draws",
        type=_positive,
        default=10,
        help="of each number of the learning curve (default: %(default)s)",
    )


def _mpp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mpp",
        type=float,
        help="micrometres per level-0 pixel, instead of what slides say",
    )


def _batching(parser: argparse.ArgumentParser, unit: str) -> None:
    parser.add_argument(
        "--batch",
        type=_positive,
        default=64,
        help=f"{unit} at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "tensorfloat32", "bfloat16"),
        default="float32",
        help="default: %(default)s",
    )


def _scoring(parser: argparse.ArgumentParser) -> None:
    _batching(parser, "images")
    parser.add_argument(
        "--skip-corrupt",
        action="store_true",
        help="leave out images that cannot be read, and list them",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results of an earlier call"
    )


def _add_data(add) -> None:
    prepare = add(
        "prepare",
        "prepare a public data set for training",
        "  dpa-jax prepare nih --source=NIH --data_dir=data --protocol=pa",
    )
    which = prepare.add_subparsers(dest="dataset", metavar="DATASET", required=True)
    nih = add(
        "nih",
        "prepare NIH ChestX-ray14 from the files as distributed",
        "  dpa-jax prepare nih --source=NIH --data_dir=data --protocol=pa",
        which,
        "Images may lie in folders or still in their archives. Resumes if interrupted.",
    )
    camelyon16 = add(
        "camelyon16",
        "cut Camelyon16's slides into patches",
        "  dpa-jax prepare camelyon16 --source=CAMELYON16 --data_dir=data\n"
        "  dpa-jax prepare camelyon16 --source=gs://BUCKET/slides --data_dir=data \\\n"
        "    --runner=dataflow --parts=gs://BUCKET/parts -- --project=P --region=R",
        which,
        "Slides may lie in the challenge's folders, GigaDB's or others, on a disk or "
        "at a\nURL. Resumes if interrupted.",
    )
    for name, title in (("cifar10", "CIFAR10"), ("svhn", "SVHN")):
        small = add(
            name,
            f"download {title} and prepare it",
            f"  dpa-jax prepare {name} --data_dir=data",
            which,
            "Files that are there are not\ndownloaded again. The download itself was "
            "never run by its authors, who had no\nnetwork.",
        )
        small.add_argument(
            "--data_dir", required=True, metavar="DIR", help="of TFDS: the result"
        )
        small.add_argument(
            "--source",
            metavar="DIR",
            help="files downloaded already, under their names",
        )
    for one in (nih, camelyon16):
        one.add_argument(
            "--source", required=True, metavar="DIR", help="the files as distributed"
        )
        one.add_argument(
            "--data_dir", required=True, metavar="DIR", help="of TFDS: the result"
        )
        one.add_argument(
            "--jobs", type=int, default=0, help="at once (default: one a core)"
        )
        one.add_argument(
            "--allow-missing",
            action="store_true",
            help="go on without files that are missing or cannot be used",
        )
    nih.add_argument("--lists", metavar="DIR", help="published or own split lists")
    nih.add_argument(
        "--protocol",
        choices=("subset", "pa", "ap", "all", "native", "custom"),
        default="all",
        help="default: %(default)s",
    )
    camelyon16.add_argument(
        "--lists",
        metavar="DIR",
        help="folder with the published lists: cut exactly those patches",
    )
    camelyon16.add_argument(
        "--magnification",
        type=int,
        choices=(10, 20, 40),
        default=10,
        help="of the patches (default: %(default)s)",
    )
    camelyon16.add_argument(
        "--stain-target",
        metavar="TARGET",
        help="what stains are normalised to: SLIDE:x,y,width,height in level-0 pixels, "
        "a saved stain_target.npz, or none (default: the published crop of normal_056)",
    )
    camelyon16.add_argument(
        "--runner",
        default="multiprocess",
        help="multiprocess, or Apache Beam's direct, spark, flink or dataflow "
        "(default: %(default)s)",
    )
    camelyon16.add_argument(
        "--parts",
        metavar="DIR",
        help="for the patches of finished slides until the data set is complete: a "
        "path or URL that every Beam worker reaches (default: in --data_dir)",
    )
    _mpp(camelyon16)
    camelyon16.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the draw of 50 patches where a slide has more (default: %(default)s)",
    )
    camelyon16.add_argument(
        "beam", nargs="*", metavar="-- BEAM_OPTION", help="flags of Apache Beam"
    )


def _add_weights(add) -> None:
    weights = add(
        "weights",
        "get, import or check VGG19's weights and feature statistics",
        "  dpa-jax weights fetch",
    )
    which = weights.add_subparsers(dest="action", metavar="ACTION", required=True)
    fetch = add(
        "fetch",
        "download VGG19's ImageNet weights (575 MB) and the published statistics",
        "  dpa-jax weights fetch\n"
        "  dpa-jax weights fetch --offline --from=model.safetensors --stats=stats.pt",
        which,
        "Resumes, checks, converts once; proxies are taken from the environment.",
    )
    fetch.add_argument("--source", choices=("timm", "torchvision"), default="timm")
    fetch.add_argument("--from", dest="file", default="", metavar="FILE")
    fetch.add_argument("--stats", default="", metavar="FILE")
    fetch.add_argument("--mirror", default="", metavar="URL", help="in place of hosts")
    fetch.add_argument("--offline", action="store_true", help="use no network")
    fetch.add_argument("--keep", action="store_true", help="keep the download")
    bring = add(
        "import",
        "take any VGG19 weights as what `imagenet` means",
        "  dpa-jax weights import vgg19.pth --stats=stats.npz",
        which,
    )
    bring.add_argument("file", nargs="?", default="", metavar="FILE")
    bring.add_argument("--stats", default="", metavar="FILE")
    stats = add(
        "stats",
        "compute feature statistics over a folder of images",
        "  dpa-jax weights stats images/ --out=stats.npz --resolution=64",
        which,
    )
    stats.add_argument("images", metavar="FOLDER")
    stats.add_argument("--out", required=True, metavar="FILE.npz")
    stats.add_argument("--weights", default="imagenet", help="default: %(default)s")
    stats.add_argument(
        "--layers", default="r12,r22,r32,r42", help="default: %(default)s"
    )
    stats.add_argument(
        "--resolution", type=_positive, default=64, help="default: %(default)s"
    )
    stats.add_argument("--channels", type=int, choices=(1, 3), default=1)
    add(
        "verify",
        "recompute checksums and known activations of the cached weights",
        "  dpa-jax weights verify",
        which,
    )


def _add_other(add) -> None:
    reference = add(
        "import-reference",
        "turn a checkpoint of the published PyTorch code into a workdir",
        "  dpa-jax import-reference anomaly_detection.tar --workdir=run",
        doc="score and evaluate then use it. Needs the torch extra.",
    )
    reference.add_argument("checkpoint", metavar="CHECKPOINT.tar")
    _workdir(reference)
    reference.add_argument(
        "--weights", default="imagenet", metavar="imagenet|FILE|random:SEED"
    )
    reference.add_argument("--stats", default="imagenet", metavar="imagenet|FILE")
    add(
        "doctor",
        "show versions, devices, the cache and what is installed",
        "  dpa-jax doctor",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: without the program's name; None takes the process's own.

    Returns:
      0 on success, 1 when the work failed, 2 for wrong usage.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options, left = parser.parse_known_args(arguments)
    taken = {"train": ("--config.",), "tune": ("--config.", "--search.")}
    fields = taken.get(options.verb, ())
    strange = [a for a in left if not a.startswith(fields)]
    if strange:
        parser.error(
            f"unrecognized arguments: {' '.join(strange)} "
            "(config fields are written --config.NAME=VALUE)"
        )
    options.overrides = [a for a in left if a.startswith("--config.")]
    options.search_overrides = [a for a in left if a.startswith("--search.")]
    try:
        from dpa_jax import verbs

        verbs.run(options)
    except errors.DpaError as error:
        if options.debug:
            raise
        print(f"dpa-jax: {error}", file=sys.stderr)
        return 2 if isinstance(error, errors.UsageError) else 1
    except OSError as error:
        if options.debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"dpa-jax: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        resumes = options.verb in (
            *("demo", "train", "tune", "prepare", "score-slide", "weights"),
        )
        hint = "; the same command goes on from what was saved" if resumes else ""
        print(f"dpa-jax: stopped{hint}", file=sys.stderr)
        return 130
    return 0


def entry() -> None:
    """Is the `dpa-jax` program."""
    sys.exit(main())
