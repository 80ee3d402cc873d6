"""What was found by compiling a run's stages, as a table and as JSON."""

import argparse
import dataclasses
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from dpa_jax.compiling.ahead import Compiled
from dpa_jax.compiling.targets import Accelerator
from dpa_jax.devices.platform import Platform
from dpa_jax.stages import Stage

NOTE = (
    "As the compiler plans it, for one device; not measured there. The least time is a "
    "bound, not a prediction: the larger of bytes at the memory's bandwidth and of "
    "operations at the rate of matrix products in bfloat16, and on a GPU the time "
    "between kernels. The bytes of every kernel count, those that a cache holds too."
)
_COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


def _mega(number: float | None) -> str:
    return "" if number is None else f"{number / 1e6:,.1f}"


def _fitting(one: Compiled) -> str:
    if one.fits:
        assert one.program is not None
        parts = one.program.spec.batch_parts
        return "yes" if parts == 1 else f"in {parts} parts"
    if one.advice is None:
        return "no, with no batch"
    ((name, value),) = one.advice.items()
    return f"{name}={value} would"


def _collectives(one: Compiled) -> str:
    counts = one.cost.collectives if one.cost else {}
    return ", ".join(f"{count:.3g} {name}" for name, count in counts.items()) or "none"


def _least(one: Compiled) -> str:
    return f"{1e3 * one.least['bound']:.3f}" if one.least else ""


# heading, width, cell; the first is as wide as the stages' names
_COLUMNS: tuple[tuple[str, int, Callable[[Compiled], str]], ...] = (
    ("stage", 0, lambda one: one.stage.name),
    ("compile s", 9, lambda one: f"{one.seconds:.1f}"),
    ("arguments MB", 12, lambda one: _mega(one.argument_bytes)),
    ("temporary MB", 12, lambda one: _mega(one.temporary_bytes)),
    ("kernels", 7, lambda one: f"{one.cost.kernels:.0f}" if one.cost else ""),
    ("MB moved", 9, lambda one: _mega(one.cost.bytes if one.cost else None)),
    ("GFLOP", 8, lambda one: f"{one.operations / 1e9:,.1f}"),
    ("least ms", 8, _least),
    ("fits", 11, _fitting),
    ("collectives", 0, _collectives),
)


def title(
    target: str, config: ml_collections.ConfigDict, platform: Platform, images: int
) -> str:
    """Returns what the table is of."""
    return (
        f"{target}: {len(platform.devices)} x {platform.devices[0].device_kind}, "
        f"{platform.memory / 2**30:.1f} GiB each for programs; batch "
        f"{config.batch_size}, {images:,} training images. For one device, a step:"
    )


def header(chosen: Sequence[Stage]) -> str:
    """Returns the table's first line."""
    return _aligned([heading for heading, *_ in _COLUMNS], chosen)


def line(one: Compiled, chosen: Sequence[Stage]) -> str:
    """Returns the table's line of a stage."""
    return _aligned([cell(one) for *_, cell in _COLUMNS], chosen)


def _aligned(cells: Sequence[str], chosen: Sequence[Stage]) -> str:
    first, *middle, fits, last = cells
    width = max(len(stage.name) for stage in chosen)
    texts = [first.ljust(width)]
    for text, (_, width, _) in zip(middle, _COLUMNS[1:], strict=False):
        texts.append(text.rjust(width))
    return "  ".join([*texts, fits.ljust(_COLUMNS[-2][1]), last])


def notes(found: Sequence[Compiled]) -> list[str]:
    """Returns what stands below the table."""
    lines = []
    seconds = least_seconds(found)
    if seconds is not None:
        steps = sum(one.stage.steps for one in found)
        lines.append(f"All {steps:,} steps: at least {seconds:,.1f} s.")
    return [*lines, NOTE]


def least_seconds(found: Sequence[Compiled]) -> float | None:
    """Returns what all steps of the stages take at least; None if it is not known."""
    seconds = [one.stage.steps * one.least["bound"] for one in found if one.least]
    return sum(seconds) if len(seconds) == len(found) else None


def as_json(
    options: argparse.Namespace,
    config: ml_collections.ConfigDict,
    platform: Platform,
    accelerator: Accelerator | None,
    found: Sequence[Compiled],
) -> dict[str, Any]:
    """Returns all that was found, and from what.

    Args:
      options: of the command line.
      config: validated, with the options in it.
      platform: compiled for.
      accelerator: what is known of its devices.
      found: of each stage.
    """
    versions = {}
    for name in _COMPILERS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "benchmark": "compiled",
        "note": NOTE,
        "config": options.config,
        "changes": options.overrides,
        "target": options.target,
        "devices": len(platform.devices),
        "processes": platform.group.count,
        "device": platform.devices[0].device_kind,
        "memory_bytes": platform.memory,
        "options": dict(platform.options),
        "refused_options": list(platform.refused_options),
        "accelerator": accelerator and dataclasses.asdict(accelerator),
        "versions": versions,
        "batch": config.batch_size,
        "images": options.images,
        "least_seconds": least_seconds(found),
        "rows": [_row(one) for one in found],
    }


def _row(one: Compiled) -> dict[str, Any]:
    row: dict[str, Any] = {
        "stage": one.stage.name,
        "steps": one.stage.steps,
        "fits": one.fits,
        "advice": one.advice,
        "compile_s": one.seconds,
        "operations": one.operations,
        "least_s": one.least,
    }
    if one.program is None or one.cost is None:
        return row
    names = sorted(one.cost.names.items(), key=lambda item: -item[1])
    return row | {
        "steps_per_chunk": one.program.steps,
        "precision": one.program.spec.compute.precision,
        "batch_parts": one.program.spec.batch_parts,
        "argument_bytes": one.argument_bytes,
        "temporary_bytes": one.temporary_bytes,
        "planned_bytes": one.program.planned_bytes,
        "kernels": one.cost.kernels,
        "convolutions": one.cost.convolutions,
        "bytes": one.cost.bytes,
        "collectives": one.cost.collectives,
        "collective_bytes": one.cost.collective_bytes,
        "kernels_by_name": dict(names),
    }
