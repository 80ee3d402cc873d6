"""Draws a figure for each benchmark's JSON: `python -m benchmarks.report DIR`.

The figures go beside the JSON, as PNG of the same name.
"""

import argparse
import json
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks import measure
from dpa_jax import errors

# everywhere the same colour for the same thing
COLOURS = {
    "dpa_jax": "#1b6ca8",
    "published": "#c46210",
    "tuned": "#e3b04b",
    "reference": "#8c8c8c",
}
PARTS = ("train_s", "targets_s", "wait_s", "checkpoint_s", "samples_s")


def main(argv: list[str] | None = None) -> int:
    """Runs the program; see `measure.main`."""
    return measure.main("report", run, argv)


def run(argv: list[str]) -> None:
    """Draws the figures of a folder and names them."""
    parser = argparse.ArgumentParser("python -m benchmarks.report", description=__doc__)
    parser.add_argument("folder", nargs="?", default="benchmarks/results")
    folder = pathlib.Path(parser.parse_args(argv).folder)
    found = sorted(folder.glob("*.json"))
    if not found:
        raise errors.DpaError(f"{folder} holds no .json of a benchmark")
    for path in found:
        drawn = draw(path)
        if drawn is not None:
            print(drawn)


def draw(path: pathlib.Path) -> pathlib.Path | None:
    """Draws one result.

    Args:
      path: the JSON of a benchmark.

    Returns:
      The figure, a PNG beside it; None of a benchmark that is a table.

    Raises:
      DpaError: the file is not a benchmark's, or matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise errors.DpaError("figures need matplotlib: pip install dpa_jax") from None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["benchmark"] in TABLES:
            return None
        pen, rows = PENS[result["benchmark"]], result["rows"]
        machine, settings = result["machine"], result["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.DpaError(f"{path} is not the result of a benchmark") from error
    if not rows:
        raise errors.DpaError(f"{path} has no rows to draw")
    figure = Figure(figsize=(12, 4), layout="constrained")
    pens = [pen, *([_windows] if any(row.get("windows") for row in rows) else [])]
    panels = figure.subplots(1, len(pens), squeeze=False)[0]
    for one, axes in zip(pens, panels, strict=True):
        one(axes, rows)
        axes.spines[["top", "right"]].set_visible(False)
    where = machine["cpu"] if machine["backend"] == "cpu" else machine["device"]
    cores = f", {machine['cores']} cores" if machine["backend"] == "cpu" else ""
    panels[0].set_title(f"{settings['config']} on {where}{cores}", fontsize=10)
    out = path.with_suffix(".png")
    figure.savefig(out, dpi=150)
    return out


def grouped(
    axes, rows, group: Callable[[dict], str], series: Callable[[dict], str]
) -> None:
    """Draws images per second as bars on a log scale, with how ours compares."""
    groups = list(dict.fromkeys(map(group, rows)))
    names = list(dict.fromkeys(map(series, rows)))
    width = 0.8 / len(names)
    ours = {group(r): r["images_per_second"] for r in reversed(rows) if _ours(r)}
    for i, name in enumerate(names):
        own = [row for row in rows if series(row) == name]
        places = [groups.index(group(row)) + (i + 0.5) * width - 0.4 for row in own]
        rates = [row["images_per_second"] for row in own]
        colour = COLOURS.get(own[0]["implementation"])
        shade = 1 - 0.25 * [n for n in names if _same(n, name)].index(name)
        bars = axes.bar(places, rates, width, label=name, color=colour, alpha=shade)
        if not _ours(own[0]):
            times = [ours[group(row)] / row["images_per_second"] for row in own]
            labels = [
                f"{t:.1f}x\nslower" if t >= 1 else f"{1 / t:.1f}x\nfaster"
                for t in times
            ]
            axes.bar_label(bars, labels, fontsize=7, padding=1)
    axes.set_xticks(range(len(groups)), [g.replace("_", "\n") for g in groups])
    axes.set_yscale("log")
    axes.set_ylabel("images per second (log)")
    axes.legend(fontsize=8)


def _ours(row: dict[str, Any]) -> bool:
    return row["implementation"] == "dpa_jax"


def _same(name: str, other: str) -> bool:
    """Returns whether two series are of one implementation."""
    return name.partition(" ")[0] == other.partition(" ")[0]


def _train_step(axes, rows) -> None:
    grouped(
        axes,
        rows,
        lambda row: row["stage"],
        lambda row: f"{row['implementation']} {row['precision']}",
    )


def _score(axes, rows) -> None:
    grouped(
        axes,
        rows,
        lambda row: f"batch {row['batch']}",
        lambda row: f"{row['implementation']} {row['precision']}",
    )


def _end_to_end(axes, rows) -> None:
    left = [0.0] * len(rows)
    names = [row["stage"] for row in rows]
    for part in PARTS:
        spent = [row.get(part, 0.0) for row in rows]
        label = f"{part.removesuffix('_s')} {sum(spent):,.1f} s"
        axes.barh(names, spent, left=left, label=label)
        left = [a + b for a, b in zip(left, spent, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.legend(fontsize=8)


def _windows(axes, rows) -> None:
    """Draws how a run keeps its speed, relative to each stage's own, and memory."""
    beside, done = axes.twinx(), 0
    for row in rows:
        windows = row.get("windows")
        if not windows:
            continue
        numbers = range(done, done + len(windows))
        done += len(windows)
        times = [window["ms_per_step"] for window in windows]
        speeds = [statistics.median(times) / time for time in times]
        axes.plot(numbers, speeds, ".-", label=row["stage"])
        for name, line in (("process", "k-"), ("device", "k:")):
            memory = [window[f"{name}_bytes"] for window in windows]
            if None not in memory:  # the system tells
                label = f"memory, {name}" if done == len(windows) else None
                sizes = [size / 1e9 for size in memory]
                beside.plot(numbers, sizes, line, linewidth=0.8, label=label)
    axes.set_xlabel("window")
    axes.set_ylabel("speed, relative to the stage's median")
    axes.set_ylim(0, 1.5)
    axes.legend(fontsize=8, loc="upper left", ncols=2)
    beside.set_ylim(bottom=0)
    beside.set_ylabel("memory, GB")
    beside.legend(fontsize=8, loc="lower right")


def _lines(axes, rows, across: str, up: str) -> None:
    """Draws a line for each stage, between two columns."""
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        values = [row[up] for row in own]
        axes.plot([row[across] for row in own], values, "o-", label=stage)
    axes.set_xticks(sorted({row[across] for row in rows}))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def _scaling(axes, rows) -> None:
    _lines(axes, rows, "devices", "images_per_second")
    axes.set_xlabel("devices")
    axes.set_ylabel("images per second")


def _input(axes, rows) -> None:
    names = [
        f"decode\n{row['workers']} threads"
        if row["what"] == "decode"
        else f"train\n{row['residency']}"
        for row in rows
    ]
    bars = axes.bar(names, [row["images_per_second"] for row in rows])
    axes.bar_label(bars, fmt="{:,.0f}", fontsize=8)
    axes.set_ylabel("images per second")


def _population(axes, rows) -> None:
    _lines(axes, rows, "members", "gain")
    axes.axhline(1, color="black", linewidth=0.5)
    axes.set_xlabel("runs at once")
    axes.set_ylabel("times the speed of one by one")


PENS = {
    "train_step": _train_step,
    "score": _score,
    "end_to_end": _end_to_end,
    "scaling": _scaling,
    "input": _input,
    "population": _population,
}
# a few numbers, which are told and not drawn
TABLES = (
    *("autotune", "chaos", "compiled", "host_memory", "interruptions", "kept_programs"),
    *("kernels", "parity", "phantom_auc", "precision", "prepare", "report_page"),
    *("rounding", "soak"),
)

if __name__ == "__main__":
    raise SystemExit(main())
