"""How fast images are decoded, and whether training ever waits for them.

Decoding: PNG files of a given size, read from a folder as training reads them. Feeding:
one stage, trained with its images on the device and again with images streamed from the
host, in turns; the difference is what the accelerator waits. Features of the images are
not cached in either, so that both do the same arithmetic.
"""

import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks import measure, problem
from dpa_jax import data, errors

DECODING = {
    "workers": "d threads",
    "images": "d",
    "images_per_second": ",.1f images/s",
    "megabytes_per_second": ",.1f MB/s of files",
}
FEEDING = {
    "residency": "s images",
    "stage": "s",
    "batch": "d",
    "steps": "d",
    "ms_per_step": ",.3f ms/step",
    "images_per_second": ",.0f images/s",
    "gap": "+.1%",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("input", run, argv)


def run(argv: list[str]) -> None:
    """Measures what the arguments ask for, prints and writes it."""
    parser = measure.arguments("input", __doc__)
    add = parser.add_argument
    add("--config", default="configs/nih.py:subset,wo_pg", metavar="FILE[:ARGS]")
    add("--batch", type=int, help="images per step; as configured if left out")
    add("--steps", type=int, help="trained each time; 2,000, or 10 on CPU")
    add("--repeats", type=int, default=5)
    add("--images", type=int, default=4096, help="training images")
    add("--weights", default="random:0", help="of VGG19, or a file")
    add("--files", type=int, default=64, help="PNG files to decode; 0: do not")
    add("--side", type=int, default=1024, help="of the files, in pixels")
    args = parser.parse_args(argv)
    load = measure.load_before()
    if args.steps is None:
        args.steps = 10 if jax.default_backend() == "cpu" else 2000
    for name, least in (("steps", 1), ("repeats", 1), ("files", 0), ("side", 8)):
        if getattr(args, name) < least:
            raise errors.UsageError(f"--{name} must be at least {least}")
    given = problem.make(args.config, args.images, args.weights, args.batch)
    print(problem.NOTE)
    rows = decoding(given, args.files, args.side, args.repeats) if args.files else []
    measure.show(rows, DECODING)
    fed = feeding(given, args.steps, args.repeats)
    measure.show(fed, FEEDING)
    measure.write("input", args, argv, rows + fed, load_before=load, note=problem.NOTE)


def decoding(
    given: problem.Problem, count: int, side: int, repeats: int
) -> list[dict[str, Any]]:
    """Measures how fast files are decoded, on one thread and on all."""
    preprocessing = data.Preprocessing.from_config(given.config)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        size = draw_files(pathlib.Path(folder), count, side, preprocessing.channels)
        for workers in sorted({1, os.cpu_count() or 1}):
            each = []
            for _ in range(1 + repeats):  # once to warm up: files come from memory
                begun = time.perf_counter()
                data.load(folder, preprocessing, workers=workers)
                each.append(time.perf_counter() - begun)
            spent = statistics.median(each[1:])
            rows.append(
                {
                    "what": "decode",
                    "workers": workers,
                    "images": count,
                    "side": side,
                    "images_per_second": count / spent,
                    "megabytes_per_second": size / spent / 1e6,
                }
            )
    return rows


def draw_files(folder: pathlib.Path, count: int, side: int, channels: int) -> int:
    """Writes smooth pictures with a little noise as PNG; returns their bytes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
        noise = rng.normal(0, 3, (side, side, channels))
        pixels = np.clip(smooth[..., None] + noise, 0, 255).astype(np.uint8)
        picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        picture.save(folder / f"{number:05d}.png")
    return sum(path.stat().st_size for path in folder.iterdir())


def feeding(given: problem.Problem, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Measures the last stage with its images on the device, and streamed."""
    from benchmarks import timed_run

    last, layers = given.plan[-1], given.config.perceptual.layers.split()
    alone = given.changed(
        {
            "stages.initial_resolution": last.resolution,
            "stages.final_steps": steps,
            "perceptual.layers": " ".join(
                entry for entry in layers if entry.startswith(f"{last.resolution}:")
            ),
            "perceptual.cache_targets": "never",
        }
    )
    rates: dict[str, list[float]] = {"device": [], "stream": []}
    with tempfile.TemporaryDirectory() as folder:
        # the same programs again and again: compiled once
        jax.config.update("jax_compilation_cache_dir", f"{folder}/compilations")
        for number in range(repeats):
            names = list(rates) if number % 2 == 0 else list(rates)[::-1]
            for residency in names:
                place = pathlib.Path(folder) / f"{residency}_{number}"
                place.mkdir()
                fed = alone.changed({"data.residency": residency})
                found = timed_run.whole_run(fed, place, window=60.0)
                rates[residency].append(found["rows"][0]["ms_per_step"])
        jax.config.update("jax_compilation_cache_dir", None)
    middle = {name: statistics.median(each) for name, each in rates.items()}
    return [
        {
            "what": "feed",
            "residency": residency,
            "stage": last.name,
            "implementation": "dpa_jax",
            "batch": given.config.batch_size,
            "steps": steps,
            "ms_per_step": each,
            "images_per_second": 1e3 * given.config.batch_size / each,
            "turns_ms_per_step": rates[residency],
            "gap": each / middle["device"] - 1,
        }
        for residency, each in middle.items()
    ]


if __name__ == "__main__":
    raise SystemExit(main())
