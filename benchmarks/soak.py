"""Hours in one process: does its memory, its files or its threads grow?

A third of the time each: one run trained further and further, a folder of images scored
by a run that is loaded anew each time, and the trials of a study. After each round it
is counted what the process holds; between the end of the first third of the rounds and
the last round, growth is bounded.
"""

import gc
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

import dpa_jax
from benchmarks import measure
from dpa_jax import data, errors
from dpa_jax.config import default_config
from dpa_jax.storage import checkpoints

MEBIBYTES, FILES, THREADS = 64, 4, 2  # growth that is allowed
COLUMNS = {
    "work": "s",
    "rounds": "d",
    "mebibytes": ".0f MiB",
    "growth": "+.0f MiB more",
    "files": "d",
    "more_files": "+d more",
    "threads": "d",
    "more_threads": "+d more",
}
SEARCH = """
def get_options(config):
    return {"sampler": "random", "folds": 2, "early_stopping": {"every": 20}}


def suggest(trial, config):
    config.optimizer.learning_rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("soak", run, argv)


def run(argv: list[str]) -> None:
    """Works as long as the arguments say, prints and writes the table.

    Raises:
      DpaError: something grew beyond its bound.
    """
    parser = measure.arguments("soak", __doc__)
    parser.add_argument("--minutes", type=float, default=60, help="in all")
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="dpa_jax_soak_") as name:
        folder = pathlib.Path(name)
        config = _config(folder)
        kinds = {"training": _training, "scoring": _scoring, "tuning": _tuning}
        for kind, make in kinds.items():
            work = make(folder, config)
            rows.append({"work": kind, **_repeat(work, 60 * args.minutes / len(kinds))})
            measure.show(rows[-1:], COLUMNS)
    measure.write("soak", args, argv, rows)
    grown = [
        f"{row['work']} by {row[key]:+,.0f} {what}"
        for row in rows
        for key, what, bound in (
            ("growth", "MiB", MEBIBYTES),
            ("more_files", "open files", FILES),
            ("more_threads", "threads", THREADS),
        )
        if row[key] > bound
    ]
    if grown:
        raise errors.DpaError(f"the process grew: {', '.join(grown)}")


def _repeat(work: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Does some work again and again, three times at least; says what grew."""
    held, begun = [], time.monotonic()
    while len(held) < 3 or time.monotonic() - begun < seconds:
        work()
        gc.collect()
        held.append(_held())
    first, last = held[len(held) // 3], held[-1]
    return {
        "rounds": len(held),
        "mebibytes": last[0],
        "growth": last[0] - first[0],
        "files": last[1],
        "more_files": last[1] - first[1],
        "threads": last[2],
        "more_threads": last[2] - first[2],
    }


def _held() -> tuple[float, int, int]:
    """Returns the process's memory in MiB, its open files and its threads."""
    files = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    return measure.resident("VmRSS") / 2**20, files, threading.active_count()


def _config(folder: pathlib.Path) -> ml_collections.ConfigDict:
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8)
    np.savez(folder / "images.npz", images=images)
    (folder / "pictures").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / "pictures" / f"{i:02d}.png")
    config = default_config()
    config.data.train = str(folder / "images.npz")
    config.data.resolution = config.stages.initial_resolution = 8
    config.model.latent_channels = 4
    config.model.encoder_channels = config.model.decoder_channels = (4, 4)
    config.loss.relative_perceptual, config.loss.l1 = 0.0, 1.0
    config.stages.final_steps = 100
    config.batch_size = 16
    return config


def _training(
    folder: pathlib.Path, config: ml_collections.ConfigDict
) -> Callable[[], Any]:
    longer = config.copy_and_resolve_references()

    def work() -> None:
        longer.stages.final_steps += 5_000
        dpa_jax.train(longer, folder / "run", visible=False)
        assert checkpoints.latest(folder / "run") == longer.stages.final_steps

    return work


def _scoring(
    folder: pathlib.Path, config: ml_collections.ConfigDict
) -> Callable[[], Any]:
    paths = data.list_images(folder / "pictures")
    form = data.Preprocessing.from_config(config, scoring=True)

    def work() -> None:
        dpa_jax.load(folder / "run")(data.load(paths, form))

    return work


def _tuning(
    folder: pathlib.Path, config: ml_collections.ConfigDict
) -> Callable[[], Any]:
    from dpa_jax.tuning import search, study

    (folder / "search.py").write_text(SEARCH)
    found = search.load(folder / "search.py", config)
    found.options.trials = 0

    def work() -> None:
        found.options.trials += 1
        study.tune(config, found, folder / "study", visible=False)

    return work


if __name__ == "__main__":
    raise SystemExit(main())
