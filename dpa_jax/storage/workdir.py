"""The files of a run other than its checkpoints, metrics and pictures."""

import csv
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from dpa_jax import console, errors, extensions
from dpa_jax.config import AUTO, flat, resolutions, updated
from dpa_jax.data import leakage
from dpa_jax.data.image_set import ImageSet
from dpa_jax.devices.platform import Platform
from dpa_jax.storage import config_files, json_files
from dpa_jax.weights import formats

# what may change between a run's start and its resumption
FREE = {
    "log_every",
    "sample_every",
    "checkpoint_every",
    "data.workers",
    "data.test",
    "data.test_normal",
    "data.test_abnormal",
    "data.data_dir",
    # without effect on results, the last three but for rounding
    "data.residency",
    "steps_per_chunk",
    "autotune",
    "batch_parts",
    "perceptual.cache_targets",
}
# what may only grow: a finished run is trained further
_GROWS = "stages.final_steps"
# what a run writes before its first step: of no use to a run of another configuration
_PREPARED = (
    "autotune.json",
    "calibration.json",
    "data.json",
    "extensions.json",
    "inputs.json",
    "skipped.csv",
    "stain_target.npz",
    "statistics.npz",
    leakage.FILE,
    "weights.json",
)
# what it writes while it trains
_TRAINED = (
    "checkpoints",
    "early_stopping.json",
    "failure.json",
    "metrics.jsonl",
    "samples",
)
_ENVIRONMENT = "environment.json"
_EXTENSIONS = "extensions.json"
# what to do about damaged files, at the end of a message
_RESTORE = "restore it from a copy, or write the same config to it"
REWRITTEN = "delete it, and the same command writes it anew"
# what begins a formula where a spreadsheet opens a CSV file
FORMULA = ("=", "+", "-", "@", "\t", "\r")
# the folder of a population's runs, each a workdir
MEMBERS = "members"
_PACKAGES = ("dpa_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def local(folder: str | os.PathLike) -> pathlib.Path:
    """Returns a workdir's path.

    Raises:
      UsageError: it is no folder of this machine.
    """
    scheme, found, _ = os.fspath(folder).partition("://")
    if found:
        raise errors.UsageError(
            f"{os.fspath(folder)}: a workdir is a folder, not {scheme}://; mount the "
            "bucket as one, or train in a local folder and copy it afterwards. Of "
            "several processes the first alone needs it"
        )
    return pathlib.Path(folder)


def make(workdir: pathlib.Path) -> None:
    """Makes a workdir's folder.

    Raises:
      DpaError: it cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.DpaError(
            f"{error.filename or workdir}: the workdir cannot be written: "
            f"{error.strerror}"
        ) from error


def claim(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Makes a workdir this run's own, or checks that it already is.

    As long as nothing was trained in it, another configuration may take it over, so
    that a first attempt that failed can be corrected.

    Raises:
      UsageError: it belongs to a run of another configuration; the fields are named.
      DpaError: it holds a run's files without its config, or cannot be written.
    """
    path = workdir / "config.json"
    make(workdir)
    try:
        if not path.exists():
            ours = (*_PREPARED, *_TRAINED)
            strange = [name for name in ours if (workdir / name).exists()]
            if strange:
                raise errors.DpaError(
                    f"{workdir} holds {', '.join(strange)} but no config.json; "
                    "give an empty or a new folder as --workdir"
                )
        elif path.read_bytes() == config_files.to_json(config).encode():
            return
        elif _begun(workdir):
            _check_same(path, config)
        else:
            for name in _PREPARED:
                (workdir / name).unlink(missing_ok=True)
        config_files.save(config, path)
    except OSError as error:
        raise errors.DpaError(
            f"{error.filename or workdir}: the workdir cannot be written: "
            f"{error.strerror}"
        ) from error


def _begun(workdir: pathlib.Path) -> bool:
    """Returns whether anything was trained in a workdir."""
    log = workdir / "metrics.jsonl"
    if log.exists() and log.stat().st_size:
        return True
    return any((workdir / "checkpoints").glob("[0-9]*"))


def _check_same(path: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    before = flat(_without_unused_layers(read_config(path.parent)))
    now = flat(_without_unused_layers(config))
    different = [
        f"{name} was {before.get(name)!r}, is {now[name]!r}"
        for name in now
        if name not in FREE
        and before.get(name) != now[name]
        and not (
            name == _GROWS
            and before.get(name, 0) < now[name]
            and now["optimizer.schedule"] == "constant"  # else it ends at the end
        )
    ]
    if different:
        raise errors.UsageError(
            f"{path.parent} belongs to a run of another configuration: "
            f"{'; '.join(different)}. Give another --workdir, or the same values"
        )


def _without_unused_layers(config: ml_collections.ConfigDict):
    """Returns the configuration without layers at resolutions that no stage has.

    They were once allowed, and a run that has them goes on without.
    """
    stages = {*map(str, resolutions(config)), AUTO}
    layers = config.perceptual.layers.split()
    used = [entry for entry in layers if entry.partition(":")[0] in stages]
    return updated(config, {"perceptual.layers": " ".join(used)}, "config.json")


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
    """Reads the configuration of the run in `workdir`.

    Raises:
      DpaError: there is no run.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise errors.DpaError(
            f"there is no run in {workdir}: it has no config.json; "
            "`dpa-jax train --workdir=...` or `dpa-jax import-reference` makes one"
        )
    return config_files.read(path, _RESTORE)


def members(workdir: str | os.PathLike) -> list[pathlib.Path]:
    """Returns the workdirs of a population's runs; of a single run its own."""
    folder = pathlib.Path(workdir)
    count = read_config(folder).population.seeds
    return [folder / MEMBERS / str(i) for i in range(count)] if count > 1 else [folder]


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes indented JSON, atomically."""
    with formats.replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_csv(
    path: pathlib.Path, header: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Writes a CSV file, atomically.

    Text that a spreadsheet would take for a formula, such as the name of a file that
    begins with =, gets an apostrophe before it.
    """
    with formats.replacing(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows([_inert(cell) for cell in row] for row in rows)


def _inert(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)  # as `number` writes it
    except ValueError:
        return f"'{cell}"
    return cell


def number(value: np.floating | np.integer) -> str:
    """Writes a number with the fewest digits that read back as the very same one."""
    if isinstance(value, np.integer):
        return str(value)
    return np.format_float_positional(value, unique=True, trim="0")


def record_images(workdir: pathlib.Path, images: ImageSet, size: int = 0) -> None:
    """Notes what a run is trained on, or checks that it still is the same.

    Writes `data.json` (count and checksum), a hash of each image (see `leakage`) and,
    if any image was left out, `skipped.csv`.

    Args:
      workdir: of the run.
      images: it is trained on.
      size: of their centres, which are scored; 0 for whole images.

    Raises:
      DpaError: the run began with other images.
    """
    sha256, hashes, size = hashlib.sha256(), [], size or images.base.shape[1]
    for block in images.blocks():
        sha256.update(np.ascontiguousarray(block).data)
        hashes.append(leakage.hashes(block, size))
    digest = sha256.hexdigest()
    values = {
        "images": len(images),
        "skipped": len(images.skipped),
        "sha256": digest,
    }
    path = workdir / "data.json"
    if path.exists():
        before = json_files.read(path, {"images": int, "sha256": str}, REWRITTEN)
        if before["sha256"] != digest:
            raise errors.DpaError(
                f"{workdir} was trained on {before['images']} other images than the "
                f"{len(images)} found now, by the checksum in {path}; restore them, or "
                "give another --workdir"
            )
    leakage.record(workdir, np.concatenate(hashes), size)
    if path.exists():
        return
    if images.skipped:
        write_csv(
            workdir / "skipped.csv",
            ("path", "reason"),
            [dataclasses.astuple(s) for s in images.skipped],
        )
    write_json(path, values)


def record_extensions(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Notes which functions outside of this package a run uses.

    Writes `extensions.json` if there are any; says so where their source has changed
    since the run began.
    """
    path, found = workdir / _EXTENSIONS, extensions.describe(config)
    if found and not path.exists():
        write_json(path, found)
    _compare_extensions(path, found)


def _compare_extensions(path: pathlib.Path, found: dict[str, dict[str, str]]) -> None:
    if not path.exists():
        return
    before = json_files.read(path, {}, REWRITTEN)
    for field, about in found.items():
        if before.get(field) != about:
            console.print_line(
                f"warning: {about['name']} ({field}) has changed since "
                f"{path.parent} was begun"
            )


def check_extensions(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, trust: bool
) -> None:
    """Imports the functions outside of this package that a run uses, if it may.

    Raises:
      DpaError: it may not.
      UsageError: one is not there.
    """
    found = extensions.named_by(config)
    if found and not trust:
        names = ", ".join(f"{name} ({field})" for field, name in found.items())
        raise errors.DpaError(
            f"{workdir} uses {names}, which is not part of dpa_jax: if you trust "
            "whoever wrote it, --trust (in Python, trust=True) imports it"
        )
    _compare_extensions(workdir / _EXTENSIONS, extensions.describe(config))


def precision(workdir: pathlib.Path) -> str | None:
    """Returns what a run computes in, if it has begun."""
    return _read_environment(workdir).get("precision")


def record_session(
    workdir: pathlib.Path, seed: int, step: int, precision: str, platform: Platform
) -> None:
    """Adds to `environment.json` where and from which step a run goes on.

    Args:
      workdir: of the run.
      seed: of the run.
      step: of the whole run that it goes on from; 0 begins it.
      precision: that it computes in.
      platform: the machine.
    """
    session = {
        **environment(seed),
        "precision": precision,
        "backend": platform.backend,
        "processes": platform.group.count,
        "step": step,
    }
    before = _read_environment(workdir)
    if not before or not step:
        found = session
    else:
        resumed = [*before.pop("resumed", []), session]
        found = {"precision": precision, **before, "resumed": resumed}
    write_json(workdir / _ENVIRONMENT, found)


def _read_environment(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / _ENVIRONMENT
    if not path.exists():
        return {}
    return json_files.read(path, {"precision": str}, REWRITTEN)


def environment(seed: int) -> dict[str, Any]:
    """Describes versions, devices and source, for `environment.json`."""
    import jax

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": versions,
        "devices": [str(device) for device in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
        "git_commit": _git_commit(),
        "seed": seed,
        "command": sys.argv,
    }


def _git_commit() -> str | None:
    folder = pathlib.Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
