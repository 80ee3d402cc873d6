"""Gathers what the data sets are made of: labels, metadata and decoded images."""

import contextlib
import csv
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from dpa_jax.data.decode import Preprocessing
from dpa_jax.datasets import nih_configs, nih_pack, nih_source
from dpa_jax.datasets.nih_metadata import SIDE, Entry
from dpa_jax.datasets.nih_protocols import Split
from dpa_jax.datasets.nih_source import Problem
from dpa_jax.errors import DpaError
from dpa_jax.weights import formats

Splits = Mapping[str, Mapping[str, Split]]  # by config, then by name
Packs = Mapping[Preprocessing, nih_pack.Pack]


@dataclasses.dataclass(frozen=True)
class Collected:
    """What the data sets are made of.

    Attributes:
      requested: for each config its splits.
      splits: the same, of those images that are there.
      entries: the metadata by image id.
      image: for each config a function from an image id to uint8 `[S, S, 1]`.
      problems: all of them, by name.
    """

    requested: Splits
    splits: Splits
    entries: Mapping[str, Entry]
    image: Mapping[str, Callable[[str], np.ndarray]]
    problems: Sequence[Problem]


def collect(
    source: nih_source.Source,
    entries: Mapping[str, Entry],
    splits: Splits,
    work_dir: pathlib.Path,
    jobs: int,
    allowed: Collection[str],
    progress: Callable[[int, int], None],
) -> Collected:
    """Decodes the images of some configs, each file once.

    Args:
      source: where the images are.
      entries: the metadata by image id.
      splits: for each config, by its name, its splits.
      work_dir: keeps decoded images; those that it has from before are not decoded
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
    for config, parts in splits.items():
        names = needed.setdefault(nih_configs.find(config).preprocessing, set())
        names.update(name for split in parts.values() for name, _ in split)
    wanted = sorted(set().union(*needed.values()))
    absent = _check_files(source, wanted)
    report = work_dir / "problems.csv"
    _refuse(absent, allowed, report)
    problems: list[Problem] = []
    with contextlib.ExitStack() as stack:
        packs = {
            way: stack.enter_context(nih_pack.Pack(work_dir, list(entries), way))
            for way in needed
        }
        lacking = _lacking(needed, packs, nih_source.stamps(source))
        total = len(wanted) - len(absent)
        count = len(wanted) - len(lacking)
        progress(count, total)

        def tick() -> None:
            nonlocal count
            count += 1
            progress(count, total)

        nih_pack.fill(
            nih_source.read(source, set(wanted), lacking, problems.append),
            lacking,
            jobs or os.cpu_count() or 1,
            problems.append,
            tick,
        )
    problems += _odd_sizes(wanted, packs)
    problems.sort(key=lambda problem: problem.name)
    _refuse(problems, allowed, report)
    present = {config: _present(splits[config], config, packs) for config in splits}
    for config, parts in present.items():
        if not any(parts.values()):
            write_problems(problems, report)
            raise DpaError(
                f"no image of {config} is left to go on with:\n{summarize(problems)}\n"
                f"All are listed in {report}."
            )
    return Collected(
        requested=splits,
        splits=present,
        entries=entries,
        image={f: packs[nih_configs.find(f).preprocessing].reader() for f in splits},
        problems=problems,
    )


def work_dir(
    data_dir: pathlib.Path, source: pathlib.Path, protocol: str
) -> pathlib.Path:
    """Returns where images decoded from a source are kept till they are written.

    Each protocol has its own, so that several can be prepared at once.
    """
    key = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16]
    return data_dir / "nih_chest_xray14" / f".decoded-{protocol}-{key}"


def allowed(missing: bool, resized: bool) -> frozenset[str]:
    """Returns the kinds of problems that `allow_missing`, `allow_resized` stand for."""
    return frozenset(("missing", "unreadable") * missing + ("size",) * resized)


def summarize(problems: Sequence[Problem]) -> str:
    """Says how many problems of each kind there are, with up to five names of each."""
    kinds = {
        "missing": "missing",
        "unreadable": "unreadable",
        "size": f"not {SIDE} x {SIDE} pixels",
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
    with formats.replacing(path) as temporary:
        with open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "kind", "reason"])
            writer.writerows(dataclasses.astuple(problem) for problem in problems)


def _check_files(source: nih_source.Source, wanted: Collection[str]) -> list[Problem]:
    """Returns what can be known to be missing before anything is decoded."""
    nih_source.check_copies(source, wanted)
    if source.archives:
        return []
    absent = [name for name in wanted if name not in source.files]
    if len(absent) == len(wanted):
        raise DpaError(
            f"none of the {len(wanted):,} images (00000001_000.png and so on) is "
            f"below {source.root}, nor is any images_*.tar.gz or .zip"
        )
    return [Problem(name, "missing", "") for name in absent]


def _lacking(
    needed: Mapping[Preprocessing, Collection[str]],
    packs: Packs,
    stamps: Callable[[str], Collection[int]],
) -> dict[str, list[nih_pack.Pack]]:
    """Returns the packs that lack an image, by its name; forgets outdated ones."""
    lacking: dict[str, list[nih_pack.Pack]] = {}
    places = [(names, packs[way]) for way, names in needed.items()]
    for name in set().union(*needed.values()):
        current = stamps(name)
        for names, pack in places:
            if name in names and not pack.has(name, current):
                pack.drop(name)
                lacking.setdefault(name, []).append(pack)
    return lacking


def _odd_sizes(wanted: Sequence[str], packs: Packs) -> list[Problem]:
    problems = []
    for name in wanted:
        sizes = {pack.size(name) for pack in packs.values()} - {(0, 0), (SIDE, SIDE)}
        for width, height in sorted(sizes)[:1]:
            problems.append(Problem(name, "size", f"{width} x {height}"))
    return problems


def _present(
    splits: Mapping[str, Split], config: str, packs: Packs
) -> dict[str, Split]:
    pack = packs[nih_configs.find(config).preprocessing]
    return {
        part: [(name, label) for name, label in split if pack.size(name) != (0, 0)]
        for part, split in splits.items()
    }


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
