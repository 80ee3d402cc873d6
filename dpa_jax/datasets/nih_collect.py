"""Gathers what the data sets are made of: labels, metadata and decoded images."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.resources.abc import Traversable

import numpy as np
from PIL import Image

from dpa_jax.data.decode import ImageError, Preprocessing, prepare, read_image
from dpa_jax.datasets import nih_metadata, nih_protocols, nih_source
from dpa_jax.datasets.nih_cache import ImageCache
from dpa_jax.datasets.nih_source import Problem
from dpa_jax.errors import DpaError
from dpa_jax.prefetch import prefetch


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be collected.

    Attributes:
      source: where it is.
      entries: the metadata by image id.
      requested: for each config, by its name, its splits.
    """

    source: nih_source.Source
    entries: nih_protocols.Entries
    requested: Mapping[str, nih_protocols.Splits]


@dataclasses.dataclass(frozen=True)
class Collected:
    """What the data sets are made of.

    Attributes:
      plan: what was to be collected.
      splits: for each config its splits, of those images that are there.
      image: for each config a function from an image id to uint8 `[S, S, 1]`.
      problems: all of them, by name.
    """

    plan: Plan
    splits: Mapping[str, nih_protocols.Splits]
    image: Mapping[str, Callable[[str], np.ndarray]]
    problems: Sequence[Problem]


def plan(
    root: pathlib.Path,
    configs: Sequence[nih_protocols.Config],
    lists: Traversable | None,
) -> Plan:
    """Reads the tables below a folder and splits the images for some configs.

    Raises:
      DpaError: a table or list is missing or cannot be used.
    """
    source = nih_source.find(root)
    entries = nih_metadata.read_entries(
        source.table("entries"), source.tables.get("boxes")
    )
    requested = {
        config.name: nih_protocols.requested_splits(config, source, entries, lists)
        for config in configs
    }
    return Plan(source, entries, requested)


def collect(
    plan: Plan,
    cache_dir: pathlib.Path,
    jobs: int = 0,
    allowed: Collection[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Collected:
    """Decodes the images of some configs, each file once.

    Args:
      plan: which.
      cache_dir: keeps decoded images; those that it has from before are not decoded
        again if their files are the same. A list of problems, if any, goes into it.
      jobs: threads; 0 for one a core.
      allowed: the kinds of problems to go on with: see `Problem`.
      progress: called with the number of images done, and of all; those that turn out
        not to be in any archive are never done.

    Raises:
      DpaError: an image is missing, unreadable or of another size, and that is not
        allowed; a config has no image at all; or two files of one name differ.
    """
    needed: dict[Preprocessing, set[str]] = {}
    for config, parts in plan.requested.items():
        names = needed.setdefault(nih_protocols.find(config).preprocessing, set())
        names.update(name for split in parts.values() for name, _ in split)
    required = sorted(set().union(*needed.values()))
    report = cache_dir / "problems.csv"
    absent = _check_files(plan.source, required)
    _refuse(absent, allowed, report)
    ids = list(plan.entries)
    caches = {way: ImageCache(cache_dir, ids, way) for way in needed}
    lacking: dict[str, list[ImageCache]] = {}
    stamps = nih_source.stamps(plan.source)
    for name in required:
        current = stamps(name)
        for way, cache in caches.items():
            if name in needed[way] and not cache.find(name, current):
                lacking.setdefault(name, []).append(cache)
    problems: list[Problem] = []
    total, count = len(required) - len(absent), len(required) - len(lacking)
    progress(count, total)
    items = nih_source.read(plan.source, set(required), lacking, problems.append)
    threads = jobs or os.cpu_count() or 1
    decode = functools.partial(_decode, lacking)
    for result in prefetch(decode, items, threads, 4 * threads):
        if isinstance(result, Problem):
            problems.append(result)
        else:
            item, size, images = result
            for cache, image in zip(lacking[item.name], images, strict=True):
                cache.add(item.name, image, size, item.stamp)
        count += 1
        progress(count, total)
    sizes = {
        name: size for cache in caches.values() for name, size in cache.sizes.items()
    }
    problems += [
        Problem(name, "size", f"{size[0]} x {size[1]}")
        for name, size in sizes.items()
        if size != (nih_metadata.SIDE, nih_metadata.SIDE)
    ]
    problems.sort(key=lambda problem: problem.name)
    _refuse(problems, allowed, report)
    chosen = {
        name: caches[nih_protocols.find(name).preprocessing] for name in plan.requested
    }
    splits = {
        config: {
            part: [(name, label) for name, label in split if name in cache.sizes]
            for part, split in plan.requested[config].items()
        }
        for config, cache in chosen.items()
    }
    for config, parts in splits.items():
        if not any(parts.values()):
            write_problems(problems, report)
            raise DpaError(
                f"no image of {config} is left to go on with:\n{summarize(problems)}\n"
                f"All are listed in {report}."
            )
    images = {config: cache.image for config, cache in chosen.items()}
    return Collected(plan, splits, images, problems)


def cache_dir(
    data_dir: pathlib.Path, source: pathlib.Path, protocol: str
) -> pathlib.Path:
    """Returns where images decoded from a source are kept till they are written.

    Each protocol has its own, so that several can be prepared at once.
    """
    key = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16]
    return data_dir / "nih_chest_xray14" / f".decoded-{protocol}-{key}"


def summarize(problems: Sequence[Problem]) -> str:
    """Says how many problems of each kind there are, with up to five names of each."""
    side = nih_metadata.SIDE
    kinds = {
        "missing": "missing",
        "unreadable": "unreadable",
        "size": f"not {side} x {side} pixels",
    }
    lines = []
    for kind, words in kinds.items():
        found = [problem for problem in problems if problem.kind == kind]
        if found:
            names = [p.name + f" ({p.reason})" * bool(p.reason) for p in found[:5]]
            more = [f"{len(found) - 5:,} more"] if len(found) > 5 else []
            lines.append(f"{len(found):,} {words}: {', '.join(names + more)}")
    return "\n".join(lines)


def write_problems(problems: Sequence[Problem], path: pathlib.Path) -> None:
    """Writes all problems as CSV, atomically."""
    from dpa_jax.storage import workdir

    rows = [dataclasses.astuple(problem) for problem in problems]
    workdir.write_csv(path, ("name", "kind", "reason"), rows)


def _check_files(source: nih_source.Source, required: Collection[str]) -> list[Problem]:
    """Returns what can be known to be missing before anything is decoded."""
    nih_source.check_copies(source, required)
    if source.archives:
        return []
    absent = [name for name in required if name not in source.files]
    if len(absent) == len(required):
        raise DpaError(
            f"none of the {len(required):,} images (00000001_000.png and so on) is "
            f"below {source.root}, nor is any images_*.tar.gz or .zip"
        )
    return [Problem(name, "missing", "") for name in absent]


def _decode(
    caches: Mapping[str, Sequence[ImageCache]], item: nih_source.Item
) -> tuple[nih_source.Item, tuple[int, int], list[np.ndarray]] | Problem:
    """Returns an image with its size, decoded once for all caches that lack it."""
    try:
        content = item.read()
        if content[128:132] == b"DICM":  # which `read_image` would read
            raise DpaError("DICOM in a file named .png, and NIH's are PNG")
        image = read_image(content, "the image")
        whole = Image.fromarray(prepare(image, nih_protocols.WHOLE, "")[:, :, 0])
        ways = [cache.preprocessing for cache in caches[item.name]]
        images = [prepare(whole, way, "") for way in ways]
        return item, image.size, images
    except DpaError as error:
        reason = error.reason if isinstance(error, ImageError) else str(error)
        return Problem(item.name, "unreadable", reason)


def _refuse(
    problems: Sequence[Problem], allowed: Collection[str], report: pathlib.Path
) -> None:
    """Raises an error, and writes a report, if there are problems not allowed."""
    refused = [problem for problem in problems if problem.kind not in allowed]
    if refused:
        write_problems(refused, report)
        raise DpaError(
            f"{summarize(refused)}\nAll are listed in {report}. Get them again, or go "
            "on without what is missing or unreadable by --allow-missing, and with "
            "images of another size by --allow-resized; what is decoded is kept."
        )
