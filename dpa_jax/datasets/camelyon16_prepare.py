"""Camelyon16 from slides to a TFDS data set: `dpa-jax prepare camelyon16`."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from typing import Any

from dpa_jax.datasets import (
    camelyon16,
    camelyon16_layout,
    camelyon16_parts,
    camelyon16_patches,
    published_splits,
    writing,
)
from dpa_jax.errors import DpaError, UsageError
from dpa_jax.slides import regions, stain

STAIN_TARGET = "normal_056:120832,23808,2816,2816"  # of the published data
PUBLISHED, NO_LISTS = "published", "none"  # values of --lists besides folders
PARTS = ".camelyon16_parts"
_LARGEST_TARGET = 8192  # pixels a side


@dataclasses.dataclass(frozen=True)
class Report:
    """What `prepare` did.

    Attributes:
      location: the folder of the prepared data set.
      counts: by split, the number of slides and of normal and tumour patches.
      problems: what could not be used, and the patches lost where that is known.
      notes: what was left out on purpose, mended, or may surprise.
      existed: the data set was there already, and nothing was done.
    """

    location: str
    counts: dict[str, dict[str, int]]
    problems: Sequence[str]
    notes: Sequence[str]
    existed: bool = False

    def text(self) -> str:
        """Returns the report as lines to print."""
        state = "already prepared" if self.existed else "prepared"
        lines = [f"{state}: {self.location}"]
        for split, count in self.counts.items():
            plural = "s" * (count["slides"] > 1)
            lines.append(
                f"  {split}: {count['normal']} normal and {count['tumor']} tumour "
                f"patches of {count['slides']} slide{plural}"
            )
        lines += [f"  note: {note}" for note in self.notes]
        if self.problems:
            lines.append(_problem_text(self.problems))
        return "\n".join(lines)


def _problem_text(problems: Sequence[str]) -> str:
    count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
    return "\n".join([f"{count}:", *(f"  {problem}" for problem in problems)])


def prepare(
    source: str | os.PathLike,
    data_dir: str | os.PathLike,
    *,
    lists: str | os.PathLike = PUBLISHED,
    magnification: int = 10,
    stain_target: str = STAIN_TARGET,
    runner: str = "multiprocess",
    beam_options: Sequence[str] = (),
    mpp: float | None = None,
    jobs: int = 0,
    seed: int = 0,
    parts: str | os.PathLike | None = None,
    allow_missing: bool = False,
    progress: camelyon16_parts.Progress | None = None,
) -> Report:
    """Cuts the patches of all slides and writes them as a TFDS data set.

    The patches of each slide are kept until the data set is complete, so that an
    interrupted run, or one with problems, takes up where it stopped.

    Args:
      source: the folder or URL with slides and annotations, in any known layout.
      data_dir: of TFDS.
      lists: `published`, to cut exactly the published patches; a folder of such lists;
        or `none`, to choose by the paper's rule.
      magnification: 10, 20 or 40.
      stain_target: `SLIDE:x,y,width,height` in level-0 pixels, a saved target
        (`.npz`), or `none`.
      runner: `multiprocess`, or `direct`, `spark`, `flink` or `dataflow` of Apache
        Beam.
      beam_options: flags of Apache Beam.
      mpp: micrometres per level-0 pixel, instead of what each slide says.
      jobs: processes; 0 for one per core.
      seed: of the draw of at most 50 patches per slide, without lists.
      parts: where the patches of each slide are kept, a path or URL that all workers
        reach; None for a hidden folder in `data_dir`.
      allow_missing: go on without the slides that are missing or unusable.
      progress: called with (slides done, slides, name) after each slide.

    Raises:
      DpaError: slides are missing or unusable and `allow_missing` is not set; the
        target's slide is absent; or the data set exists with other settings.
      UsageError: a setting is impossible.
    """
    _ = camelyon16_patches.Settings(magnification).size  # refuses what is impossible
    builder = camelyon16.Camelyon16(config=f"x{magnification}", data_dir=data_dir)
    settings = _settings(magnification, stain_target, lists, mpp, seed)
    if builder.data_path.exists():
        record = camelyon16.record_of(builder)
        if record["settings"] != settings:
            raise DpaError(
                f"{builder.data_dir} was prepared with other settings: "
                f"{_difference(record['settings'], settings)}; choose another "
                "--data_dir or remove that folder"
            )
        return _report(builder, record, existed=True)
    planned = _collect(
        builder,
        source,
        parts or pathlib.Path(data_dir) / PARTS,
        settings,
        lists=lists,
        stain_target=stain_target,
        allow_missing=allow_missing,
        run=functools.partial(
            camelyon16_parts.run,
            runner=runner,
            jobs=jobs,
            beam_options=beam_options,
            progress=progress,
        ),
    )
    writing.write(builder)
    camelyon16_parts.remove(planned)
    return _report(builder, camelyon16.record_of(builder))


def fill(
    builder: camelyon16.Camelyon16, source: str | os.PathLike
) -> list[camelyon16_parts.PartTask]:
    """Gives a builder that TFDS runs by itself its parts.

    Args:
      builder: of `camelyon16`; its parts, record and target are set. All settings but
        its magnification and lists are the default ones.
      source: as for `prepare`; a slide that is missing or unusable is an error.

    Returns:
      The parts, to be removed when the data set is written.
    """
    settings = _settings(builder.magnification, STAIN_TARGET, builder.lists, None, 0)
    return _collect(
        builder,
        source,
        pathlib.Path(builder.data_dir_root) / PARTS,
        settings,
        lists=builder.lists,
        stain_target=STAIN_TARGET,
        run=functools.partial(camelyon16_parts.run, runner="multiprocess", jobs=0),
    )


def _settings(magnification, stain_target, lists, mpp, seed) -> dict[str, Any]:
    """Returns what decides which patches a data set holds and how they were made."""
    folder = _lists_in(lists)
    if folder and seed:
        raise UsageError("--seed draws patches, but --lists names them all")
    return {
        "magnification": magnification,
        "stain_target": _describe_target(stain_target),
        "lists": folder and _digest(folder),
        "mpp": mpp,
        "seed": seed,
    }


def _lists_in(lists: str | os.PathLike) -> Traversable | None:
    """Returns the folder of the lists that `--lists` names, or None for none."""
    if lists == NO_LISTS:
        return None
    if lists == PUBLISHED:
        return published_splits.lists("camelyon16")
    return pathlib.Path(lists)


def _collect(
    builder,
    source,
    folder,
    settings,
    *,
    lists,
    stain_target,
    run,
    allow_missing=False,
) -> list[camelyon16_parts.PartTask]:
    """Cuts all slides, gives the builder what to write, and returns all parts."""
    layout = camelyon16_layout.find(source)
    if listed := _lists_in(lists):
        wanted = camelyon16_patches.read_lists(listed)
        tasks, missing = camelyon16_patches.tasks_by_lists(layout, wanted)
    else:
        tasks, missing = camelyon16_patches.tasks_by_rule(layout)
    if missing and not allow_missing:
        raise DpaError(
            f"{_problem_text(missing)}\nget them, or go on without these with "
            "--allow-missing; nothing was cut yet"
        )
    mpp = settings["mpp"]
    target = resolve_target(stain_target, layout, mpp)
    how = camelyon16_patches.Settings(
        settings["magnification"], target, mpp, settings["seed"]
    )
    planned = camelyon16_parts.plan(tasks, how, layout.sizes, folder)
    run(planned)
    usable, record = _take_stock(layout, planned, missing, by_rule=listed is None)
    if record["problems"] and not allow_missing:
        raise DpaError(
            _problem_text(record["problems"])
            + "\nmend them, or go on without these with --allow-missing; "
            f"what was cut is kept in {folder}"
        )
    if not usable:
        raise DpaError(
            "\n".join([f"no patch could be cut from {source}", *record["notes"]])
        )
    builder.parts, builder.target = usable, target
    builder.record = {"settings": settings, **record}
    return planned


def _take_stock(layout, planned, missing, by_rule):
    """Sorts the parts by split; and words what is in them and what is not."""
    usable: dict[str, list[camelyon16_parts.PartTask]] = {}
    counts: dict[str, dict[str, int]] = {}
    problems, notes = list(missing), []
    if by_rule:
        for name, reason in camelyon16_patches.EXCLUDED.items():
            if name in layout.slides:
                notes.append(f"{name}: {reason}")
    for part in planned:
        task = part.task
        outlined = task.annotation or task.mask
        if task.label == camelyon16_patches.TUMOUR and not outlined:
            notes.append(
                f"no annotation or mask of {task.slide}: the tumour fraction of its "
                "patches is NaN"
            )
        reason = camelyon16_parts.why_failed(part)
        if reason is not None:
            lost = part.task.corners
            problems.append(reason + (f" ({len(lost)} patches lost)" if lost else ""))
            continue
        patches = camelyon16_parts.read_part(part)
        notes += patches.notes
        if len(patches.images):
            split = part.task.split
            usable.setdefault(split, []).append(part)
            count = counts.setdefault(split, {"normal": 0, "tumor": 0, "slides": 0})
            count[("normal", "tumor")[part.task.label]] += len(patches.images)
            count["slides"] += 1
    return usable, {"counts": counts, "problems": problems, "notes": notes}


def _report(builder, record: Mapping[str, Any], existed: bool = False) -> Report:
    return Report(
        str(builder.data_dir),
        record["counts"],
        record["problems"],
        record["notes"],
        existed,
    )


def resolve_target(
    text: str, layout: camelyon16_layout.Layout, mpp: float | None = None
) -> stain.StainProfile | None:
    """Finds the stains that `--stain-target` asks for.

    Args:
      text: `SLIDE:x,y,width,height` in level-0 pixels, a `.npz`, or `none`.
      layout: where the slide is.
      mpp: micrometres per level-0 pixel, instead of what the slide says.

    Raises:
      UsageError: the text is none of these.
      DpaError: the slide or the file is absent or unusable.
    """
    if text == "none":
        return None
    if text.endswith(".npz"):
        return stain.load(text)
    match = re.fullmatch(r"(\w+):(\d+),(\d+),(\d+),(\d+)", text)
    if not match:
        raise UsageError(
            f"--stain-target is {text!r}; write SLIDE:x,y,width,height, "
            "FILE.npz or none"
        )
    x, y, width, height = (int(n) for n in match.groups()[1:])
    if not (0 < width <= _LARGEST_TARGET and 0 < height <= _LARGEST_TARGET):
        raise UsageError(
            f"--stain-target {text}: a side is 1 to {_LARGEST_TARGET} pixels"
        )
    name = match[1].lower()
    if name not in layout.slides:
        raise DpaError(
            f"the slide {name} of --stain-target {text} is not there; get it, or "
            "choose SLIDE:x,y,width,height of a slide at hand, a saved target "
            "FILE.npz, or none"
        )
    with regions.opened(layout.slides[name], mpp) as slide:
        coarser = max(1.0, slide.scale)
        out = max(1, round(width / coarser)), max(1, round(height / coarser))
        return stain.estimate(slide.read(x, y, width, height, out), text)


def _describe_target(text: str) -> str:
    if not text.endswith(".npz"):
        return text.lower()
    profile = stain.load(text)
    return json.dumps([profile.matrix.tolist(), profile.maxima.tolist()])


def _digest(lists: Traversable) -> str:
    content = hashlib.sha256()
    for name in camelyon16_patches.LISTS:
        if (lists / name).is_file():
            content.update(name.encode() + b"\0" + (lists / name).read_bytes() + b"\0")
    return content.hexdigest()[:16]


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {before.get(key)!r} instead of {value!r}"
        for key, value in now.items()
        if before.get(key) != value
    )
