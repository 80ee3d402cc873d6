"""How much of the host's memory training on many large images takes.

Makes up images larger than the network sees, decodes them into a file of the cache as
`dpa-jax train` does where they would not fit, and trains on random crops of them, a few
steps a stage, streamed from the host: all in a process of its own, whose memory is
looked at. Fails where its peak exceeds a limit. Pages of the file that are mapped count
as the process's, though the system may take them back.
"""

import concurrent.futures
import csv
import dataclasses
import json
import multiprocessing
import os
import pathlib
import resource
import tempfile
import threading
import time
from typing import Any

from benchmarks import input as files
from benchmarks import measure, problem
from dpa_jax import errors
from dpa_jax.storage import config_files

COLUMNS = {
    "images": ",d",
    "side": "d",
    "image_megabytes": ",.0f MB of images",
    "peak_megabytes": ",.0f peak MB",
    "anonymous_megabytes": ",.0f anonymous MB",
    "file_megabytes": ",.0f mapped MB",
    "seconds": ",.0f s",
}
_DRAWN = 16  # pictures, each listed many times
_EVERY = 0.02  # seconds between looks


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("host_memory", run, argv)


def run(argv: list[str]) -> None:
    """Measures what the arguments ask for, prints and writes it.

    Raises:
      DpaError: the peak exceeds the limit.
    """
    parser = measure.arguments("host_memory", __doc__)
    add = parser.add_argument
    add("--config", default="configs/nih.py:subset,pg", metavar="FILE[:ARGS]")
    add("--images", type=int, default=100_000, help="training images")
    add("--side", type=int, default=512, help="of them, in pixels")
    add("--batch", type=int, default=32, help="images per step")
    add("--steps", type=int, default=4, help="of every stage")
    add("--limit", type=float, default=4.0, metavar="GIB", help="of the peak")
    add("--folder", metavar="DIR", help="for files, which are deleted; on a large disk")
    args = parser.parse_args(argv)
    if args.images < args.batch or args.steps < 1 or not args.limit > 0:
        raise errors.UsageError(
            "--images must be at least --batch, --steps at least 1 and --limit above 0"
        )
    print(problem.NOTE)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        config = write_run(args, pathlib.Path(folder))
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            row = pool.submit(trained, config, folder).result()
    rows = [{"images": args.images, "side": args.side, **row}]
    measure.show(rows, COLUMNS)
    measure.write("host_memory", args, argv, rows, note=problem.NOTE)
    check_limit(row["peak_bytes"] / 2**30, args.limit)


def check_limit(peak: float, limit: float) -> None:
    """Refuses a peak above the limit, both in GiB.

    Raises:
      DpaError: it is.
    """
    if peak > limit:
        raise errors.DpaError(
            f"the peak of {peak:.2f} GiB is above the limit of {limit:g} GiB"
        )


def write_run(args, folder: pathlib.Path) -> str:
    """Writes images, a manifest and statistics; returns the run's config as JSON."""
    given = problem.make(args.config, args.batch, "random:0", args.batch)
    steps = ("transition_steps", "stabilization_steps", "final_steps")
    given = given.changed(
        {
            "data.size": args.side,
            "data.random_crop": True,
            "data.residency": "stream",
            **{f"stages.{name}": args.steps for name in steps},
        }
    )
    pictures = folder / "images"
    pictures.mkdir()
    files.draw_files(pictures, _DRAWN, args.side, given.config.data.channels)
    names = sorted(path.name for path in pictures.iterdir())
    config = problem.as_run(given, folder)
    config.data.train = str(folder / "images.csv")
    with open(config.data.train, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path"])
        for number in range(args.images):
            writer.writerow([f"images/{names[number % _DRAWN]}"])
    return config_files.to_json(config)


def trained(text: str, folder: str) -> dict[str, Any]:
    """Trains a run in this process, and returns what memory that took.

    Args:
      text: the run's config, as JSON.
      folder: for the cache and the workdir.
    """
    os.environ["DPA_JAX_CACHE"] = folder
    from dpa_jax import training
    from dpa_jax.devices.platform import Platform

    # no memory for decoded images, so that any number of them is kept in a file
    platform = dataclasses.replace(Platform.here(), host_memory=0)
    highest = {"RssAnon": 0, "RssFile": 0}
    is_done = threading.Event()

    def look() -> None:
        while not is_done.wait(_EVERY):
            for name in highest:
                highest[name] = max(highest[name], measure.resident(name))

    looking = threading.Thread(target=look)
    looking.start()
    begun = time.perf_counter()
    try:
        config = config_files.from_values(json.loads(text), "the run")
        training.train(
            config, pathlib.Path(folder) / "run", platform=platform, visible=False
        )
    finally:
        is_done.set()
        looking.join()
    (kept,) = (pathlib.Path(folder) / "images").glob("*.uint8")
    found = {
        "image": kept.stat().st_size,
        # of Linux in KiB; at least what the process that started this one holds
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "anonymous": highest["RssAnon"],
        "file": highest["RssFile"],
    }
    return {
        **{f"{name}_bytes": size for name, size in found.items()},
        **{f"{name}_megabytes": size / 1e6 for name, size in found.items()},
        "seconds": time.perf_counter() - begun,
    }


if __name__ == "__main__":
    raise SystemExit(main())
