"""Whether a precision costs accuracy: the demo's run trained in each, and evaluated.

Phantom radiographs and VGG19 at random: the ROC AUCs say something beside each other
alone.
"""

import pathlib
import tempfile
from typing import Any

import numpy as np

from benchmarks import measure
from dpa_jax import data, errors
from dpa_jax.data import phantoms
from dpa_jax.scoring import loading, roc
from dpa_jax.storage import config_files
from dpa_jax.training import train

COLUMNS = {
    "precision": "s",
    "seed": "d",
    "steps": ",d steps",
    "roc_auc": ".4f ROC AUC",
    "low": ".4f",
    "high": ".4f",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("phantom_auc", run, argv)


def run(argv: list[str]) -> None:
    """Trains and evaluates what the arguments ask for, prints and writes it."""
    parser = measure.arguments("phantom_auc", __doc__)
    add = parser.add_argument
    add("--config", default="configs/demo.py", metavar="FILE[:ARGS]")
    add("--precisions", default="float32,bfloat16", help="to train in")
    add("--seeds", type=int, default=3, help="runs in each precision")
    add("--phantoms", type=int, default=600, help="normal ones to train on")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        raise errors.UsageError(f"--seeds is {args.seeds}; one is the least")
    known = ("float32", "tensorfloat32", "bfloat16")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        images = phantoms.make_phantoms(folder / "images", train=args.phantoms)
        for precision in measure.one_of("--precisions", args.precisions, known):
            for seed in range(args.seeds):
                config = config_files.load(args.config)
                config.precision, config.seed = precision, seed
                config.data.train = str(images / "train" / "normal")
                run = folder / f"{precision}_{seed}"
                train(config, run, visible=False)
                rows.append(
                    {"precision": precision, "seed": seed, **evaluated(run, images)}
                )
    measure.show(rows, COLUMNS)
    measure.write("phantom_auc", args, argv, rows)


def evaluated(run: pathlib.Path, images: pathlib.Path) -> dict[str, Any]:
    """Returns a run's ROC AUC on the phantoms that test, with its interval."""
    scorer = loading.load(run)
    preprocessing = data.Preprocessing.from_config(scorer.config)
    normal, abnormal = (
        scorer(data.load(str(images / "test" / kind), preprocessing).images)
        for kind in ("normal", "abnormal")
    )
    scores = np.concatenate([normal, abnormal])
    labels = np.repeat([0, 1], [len(normal), len(abnormal)])
    low, high = roc.interval(scores, labels)
    return {
        "steps": scorer.trained,
        "roc_auc": roc.auc(scores, labels),
        "low": low,
        "high": high,
    }


if __name__ == "__main__":
    raise SystemExit(main())
