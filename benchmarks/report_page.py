"""How large the report of many cases is, and how fast Chromium opens it.

Makes up an evaluation, of phantoms and of noise, which no picture format makes
smaller, writes its report, and opens the page in a headless Chromium, each time in a
new process. Opening lasts from the navigation until the script has made the first cards
of the gallery; the heap is what JavaScript holds then.
"""

import argparse
import pathlib
import shutil
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import measure
from dpa_jax import errors
from dpa_jax.config import default_config
from dpa_jax.data import phantoms
from dpa_jax.reporting import cases, page
from dpa_jax.storage import config_files, workdir

COLUMNS = {
    "images": "s",
    "cases": ",d cases",
    "side": "d px",
    "quality": "d JPEG",
    "megabytes": ",.1f MB",
    "write_s": ",.1f s to write",
    "open_s": ".2f s to open",
    "heap_megabytes": ",.1f MB of heap",
}
_DRAWN = 500  # phantoms, each of which is several cases


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see `measure.main`."""
    return measure.main("report_page", run, argv)


def run(argv: list[str]) -> None:
    """Measures what the arguments ask for, prints and writes it."""
    parser = measure.arguments("report_page", __doc__)
    add = parser.add_argument
    add("--cases", type=int, default=5000)
    add("--side", type=int, default=128, help="of the images, in pixels")
    add("--repeats", type=int, default=5, help="openings, of which the median counts")
    args = parser.parse_args(argv)
    if args.cases < 2 or args.repeats < 1 or args.side < 8:
        raise errors.UsageError("--cases must be at least 2, --side 8 and --repeats 1")
    load = measure.load_before()
    rows = [timed(images, args) for images in ("phantoms", "noise")]
    measure.show(rows, COLUMNS)
    measure.write("report_page", args, argv, rows, load_before=load)


def timed(images: str, args: argparse.Namespace) -> dict[str, Any]:
    """Returns a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_run(root, args.cases, args.side, images == "noise")
        out, begun = root / page.FILE, time.perf_counter()
        page.write(root, root / "evaluation", out)
        taken = time.perf_counter() - begun
        turns = [open_page(out) for _ in range(args.repeats)]
        row: dict[str, Any] = {
            "images": images,
            "cases": args.cases,
            **{name: turns[0][name] for name in ("side", "quality")},
            "megabytes": out.stat().st_size / 1e6,
            "write_s": taken,
        }
    for name in ("open_s", "heap_megabytes"):
        row[name] = statistics.median(turn[name] for turn in turns)
        row[f"{name}_turns"] = [turn[name] for turn in turns]
    return row


def write_run(folder: pathlib.Path, count: int, side: int, is_noise: bool) -> None:
    """Writes a run and an evaluation of made-up images, half of them abnormal."""
    config = default_config()
    config.data.resolution = side
    config_files.save(config, folder / "config.json")
    rng = np.random.default_rng(0)
    half = [
        phantoms.draw(min(count, _DRAWN) // 2 + 1, side, rng, abnormal=abnormal)
        for abnormal in (False, True)
    ]
    labels = np.arange(count) % 2
    image = np.stack(
        [half[label][i // 2 % len(half[0])] for i, label in enumerate(labels)]
    )
    if is_noise:
        image = rng.integers(0, 256, image.shape, np.uint8)
    # what an autoencoder loses is noise, and a map is smooth
    mean = image.reshape(count, side // 4, 4, side // 4, 4).mean((2, 4))
    smooth = mean.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    scores = (rng.normal(0.2, 0.05, count) + 0.1 * labels).astype(np.float32)
    evaluation = folder / "evaluation"
    cases.write(
        evaluation / cases.FILE,
        cases.Cases(
            row=np.arange(count),
            score=scores,
            image=image[..., None],
            reconstruction=smooth[..., None],
            map=(smooth / 255).astype(np.float16),
            layers=np.array(["r32", "r42"]),
            share=np.full((count, 2), 0.5, np.float32),
        ),
    )
    workdir.write_csv(
        evaluation / "scores.csv",
        ("path", "label", "group", "score"),
        [
            (f"films/{i:05d}.png", ("normal", "abnormal")[label], "", str(score))
            for i, (label, score) in enumerate(zip(labels, scores, strict=True))
        ],
    )
    workdir.write_json(
        evaluation / "metrics.json",
        {
            **{"roc_auc": 0.9, "roc_auc_interval": [0.88, 0.92]},
            **{"average_precision": 0.9, "average_precision_by_chance": 0.5},
            **{"normal": int((labels == 0).sum()), "abnormal": int(labels.sum())},
            **{"shortcuts": {"mean_intensity": 0.6}, "warnings": []},
            **{"trained_steps": 1000, "random_weights": False},
        },
    )


def open_page(path: pathlib.Path) -> dict[str, float]:
    """Opens a report in a new Chromium; returns what the table shows of that."""
    program = shutil.which("chromedriver")
    if program is None:
        raise errors.DpaError("there is no chromedriver to open a page with")
    with errors.needing("test", "driving a browser"):
        from selenium import webdriver
    options = webdriver.ChromeOptions()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for argument in (
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--enable-precise-memory-info"),
            f"--user-data-dir={profile}",
        ):
            options.add_argument(argument)
        driver = webdriver.Chrome(
            options=options, service=webdriver.ChromeService(program)
        )
        try:
            driver.get("about:blank")
            driver.get(path.as_uri())  # returns when all of its script has run
            found = driver.execute_script(
                "const data = JSON.parse(document.getElementById('data').textContent);"
                "return {open_s: performance.timing.loadEventEnd / 1000"
                " - performance.timing.navigationStart / 1000,"
                " heap_megabytes: performance.memory.usedJSHeapSize / 1e6,"
                " side: data.side, quality: data.quality,"
                " cards: document.querySelectorAll('.case').length}"
            )
        finally:
            driver.quit()
    if not found.pop("cards"):
        raise errors.DpaError(f"{path} shows no case")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
