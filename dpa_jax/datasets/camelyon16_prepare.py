"""Camelyon16 from slides to a TFDS data set: `dpa-jax prepare camelyon16`."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from dpa_jax.data import filesystems
from dpa_jax.datasets import (
    camelyon16,
    camelyon16_layout,
    camelyon16_lists,
    camelyon16_parts,
    camelyon16_patches,
    writing,
)
from dpa_jax.errors import DpaError, UsageError
from dpa_jax.slides import regions, stain

STAIN_TARGET = "normal_056:120832,23808,2816,2816"  # of the published data
_LARGEST_TARGET = 8192  # pixels a side

Parts = Sequence[camelyon16_parts.PartTask]


@dataclasses.dataclass(frozen=True)
class Options:
    """Which patches a data set holds, and how they are made.

    Attributes:
      lists: `published`, to cut exactly the published patches; a folder of such lists;
        or `none`, to choose by the paper's rule.
      magnification: 10, 20 or 40.
      stain_target: `SLIDE:x,y,width,height` in level-0 pixels, a saved target
        (`.npz`), or `none`.
      mpp: micrometres per level-0 pixel, instead of what each slide says.
      seed: of the draw of at most 50 patches per slide, without lists.
    """

    lists: str | os.PathLike = camelyon16_lists.PUBLISHED
    magnification: int = 10
    stain_target: str = STAIN_TARGET
    mpp: float | None = None
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """Returns the same as JSON holds it, files by what they hold.

        Raises:
          DpaError: a file of them cannot be read.
        """
        folder, target = camelyon16_lists.find(self.lists), self.stain_target.lower()
        if target.endswith(".npz"):
            profile = stain.load(self.stain_target)
            target = json.dumps([profile.matrix.tolist(), profile.maxima.tolist()])
        digest = folder and camelyon16_lists.digest(folder)
        return {**vars(self), "stain_target": target, "lists": digest}


def prepare(
    source: str | os.PathLike,
    data_dir: str | os.PathLike,
    options: Options,
    *,
    run: Callable[[Parts], None] = camelyon16_parts.run,
    parts: str | os.PathLike | None = None,
    allow_missing: bool = False,
) -> tuple[camelyon16.Camelyon16, bool]:
    """Cuts the patches of all slides and writes them as a TFDS data set.

    The patches of each slide are kept until the data set is complete, so that an
    interrupted run, or one with problems, takes up where it stopped.

    Args:
      source: the folder or URL with slides and annotations, in any known layout.
      data_dir: of TFDS.
      options: which patches, and how.
      run: cuts slides; `camelyon16_parts.run` with its options, such as the runner.
      parts: the patches of each slide are kept in a hidden folder here, a path or URL
        that all workers reach; None for `data_dir`.
      allow_missing: go on without the slides that are missing or unusable.

    Returns:
      The builder of the data set, whose metadata say how it was made: options, counts
      of slides and patches, problems and notes; and whether it was there already.

    Raises:
      DpaError: slides are missing or unusable and `allow_missing` is not set; the
        target's slide is absent; or the data set exists with other settings.
      UsageError: a setting is impossible, or another process prepares the data set.
    """
    config = f"x{options.magnification}"
    _ = camelyon16_patches.Settings(options.magnification).size  # or it is refused
    if options.seed and options.lists != camelyon16_lists.NO_LISTS:
        raise UsageError("--seed draws patches, but --lists names them all")
    if found := _existing(data_dir, options):
        return found, True
    plan = _plan(source, options, allow_missing)
    with writing.locked(data_dir, camelyon16.Camelyon16.name, config):
        if found := _existing(data_dir, options):
            return found, True
        builder = camelyon16.Camelyon16(config=config, data_dir=data_dir)
        folder = _cut(builder, plan, options, parts, run, allow_missing)
        writing.write(builder)
        filesystems.remove(folder)
    return builder, False


def describe(builder: camelyon16.Camelyon16, existed: bool) -> str:
    """Returns in a few lines what was prepared, left out, mended and lost."""
    made = builder.info.metadata
    lines = [f"{'already ' * existed}prepared: {builder.data_dir}"]
    for split, count in made["counts"].items():
        plural = "s" * (count["slides"] > 1)
        lines.append(
            f"  {split}: {count['normal']} normal and {count['tumor']} tumour "
            f"patches of {count['slides']} slide{plural}"
        )
    lines += [f"  note: {note}" for note in made["notes"]]
    lines += [_problem_text(made["problems"])] if made["problems"] else []
    return "\n".join(lines)


def _problem_text(problems: Sequence[str]) -> str:
    count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
    return "\n".join([f"{count}:", *(f"  {problem}" for problem in problems)])


def fill(builder: camelyon16.Camelyon16, source: str | os.PathLike) -> str:
    """Gives a builder that TFDS runs by itself its parts.

    Args:
      builder: of `camelyon16`; its parts, target and metadata are set. All options but
        its magnification and lists are the default ones.
      source: as for `prepare`; a slide that is missing or unusable is an error.

    Returns:
      The folder of the parts, to be removed when the data set is written.
    """
    options = Options(builder.lists, builder.magnification, STAIN_TARGET)
    return _cut(builder, _plan(source, options, False), options)


def _existing(
    data_dir: str | os.PathLike, options: Options
) -> camelyon16.Camelyon16 | None:
    """Returns the builder of a data set that is there, if it is the one asked for."""
    config = f"x{options.magnification}"
    builder = camelyon16.Camelyon16(config=config, data_dir=data_dir)
    if not builder.data_path.exists():
        return None
    before, now = builder.info.metadata["settings"], options.record()
    if before != now:
        changed = [
            f"{key} {before.get(key)!r} instead of {value!r}"
            for key, value in now.items()
            if before.get(key) != value
        ]
        raise DpaError(
            f"{builder.data_dir} was prepared with other settings: "
            f"{', '.join(changed)}; choose another --data_dir or remove that folder"
        )
    return builder


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The files at hand, what is cut from them, what is missing and left out."""

    layout: camelyon16_layout.Layout
    tasks: Sequence[camelyon16_patches.SlideTask]
    missing: Sequence[str]
    left_out: Sequence[str]


def _plan(source: str | os.PathLike, options: Options, allow_missing: bool) -> _Plan:
    layout, left_out = camelyon16_layout.find(source), []
    if listed := camelyon16_lists.find(options.lists):
        corners = camelyon16_lists.read(listed)
        tasks, missing = camelyon16_patches.tasks_by_lists(layout, corners)
    else:
        tasks, missing = camelyon16_patches.tasks_by_rule(layout)
        excluded = camelyon16_patches.EXCLUDED.items()
        left_out = [f"{name}: {why}" for name, why in excluded if name in layout.slides]
    if missing and not allow_missing:
        raise DpaError(
            f"{_problem_text(missing)}\nget them, or go on without these with "
            "--allow-missing; nothing was cut yet"
        )
    return _Plan(layout, tasks, missing, left_out)


def _cut(
    builder: camelyon16.Camelyon16,
    plan: _Plan,
    options: Options,
    parts: str | os.PathLike | None = None,
    run: Callable[[Parts], None] = camelyon16_parts.run,
    allow_missing: bool = False,
) -> str:
    """Cuts all slides, gives the builder what to write, and returns their folder."""
    root = os.fspath(parts or builder.data_dir_root)
    folder = f"{root}/.camelyon16-x{options.magnification}"
    target = resolve_target(options.stain_target, plan.layout, options.mpp)
    how = camelyon16_patches.Settings(
        options.magnification, target, options.mpp, options.seed
    )
    planned = camelyon16_parts.plan(plan.tasks, how, plan.layout.sizes, folder)
    run(planned)
    usable: dict[str, list[camelyon16_parts.PartTask]] = {}
    counts: dict[str, dict[str, int]] = {}
    problems, notes = [*plan.missing], [*plan.left_out]
    for part in planned:
        task = part.task
        patches = camelyon16_parts.read_part(part)
        if isinstance(patches, str):
            lost = f" ({len(task.corners)} patches lost)" if task.corners else ""
            problems.append(patches + lost)
            continue
        notes += patches.notes
        if len(patches.images):
            usable.setdefault(task.split, []).append(part)
            empty = {"normal": 0, "tumor": 0, "slides": 0}
            count = counts.setdefault(task.split, empty)
            count[camelyon16.LABELS[task.label]] += len(patches.images)
            count["slides"] += 1
    if problems and not allow_missing:
        raise DpaError(
            f"{_problem_text(problems)}\nmend them, or go on without these with "
            f"--allow-missing; what was cut is kept in {folder}"
        )
    if not usable:
        raise DpaError("\n".join(["no patch could be cut", *notes]))
    builder.parts, builder.target = usable, target
    builder.info.metadata.update(
        settings=options.record(), counts=counts, problems=problems, notes=notes
    )
    return folder


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
