"""The patches of one slide: chosen by rule or by the published lists, and cut."""

import contextlib
import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from dpa_jax.data import filesystems
from dpa_jax.datasets import camelyon16_layout, camelyon16_lists
from dpa_jax.datasets.camelyon16_lists import NORMAL, TUMOUR
from dpa_jax.errors import DpaError, UsageError
from dpa_jax.slides import annotations, regions, stain, tissue

MAGNIFICATIONS = (10, 20, 40)
PER_SLIDE = 50

_UNNAMED = "left out by the published protocol, which gives no reason"
EXCLUDED = {
    **{f"normal_{n:03d}": _UNNAMED for n in (27, 45, 108, 144, 150, 158)},
    "test_114": "left out by the published protocol: not all of its tumour is outlined",
}


@dataclasses.dataclass(frozen=True)
class SlideTask:
    """What to cut from one slide.

    Attributes:
      split: `train`, `validation` or `test`.
      slide: the slide's name, such as `normal_001`.
      label: `NORMAL` or `TUMOUR`, of every patch of this task.
      path: of the slide.
      annotation: path of its XML, or None.
      mask: path of its mask TIFF, or None; the XML goes first.
      corners: (x, y) of each patch in level-0 pixels, or None to choose by rule.
    """

    split: str
    slide: str
    label: int
    path: str
    annotation: str | None = None
    mask: str | None = None
    corners: tuple[tuple[int, int], ...] | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to cut patches.

    Attributes:
      magnification: of the patches: 10 gives 192 px, 20 gives 384, 40 gives 768.
      target: the stains to normalise to, or None to leave colours as they are.
      mpp: micrometres per level-0 pixel of every slide, or None to ask each.
      seed: of the draw of at most `PER_SLIDE` patches.
    """

    magnification: int = 10
    target: stain.StainProfile | None = None
    mpp: float | None = None
    seed: int = 0

    @property
    def size(self) -> int:
        """Pixels a side of a patch."""
        if self.magnification not in MAGNIFICATIONS:
            raise UsageError(
                f"--magnification is {self.magnification}; it may be 10, 20 or 40"
            )
        return tissue.CELL * self.magnification // 40


@dataclasses.dataclass(frozen=True)
class Patches:
    """The patches of one slide.

    Attributes:
      images: uint8 `[N, size, size, 3]`.
      corners: int64 `[N, 2]`, x and y in level-0 pixels.
      fractions: float32 `[N]`, the part of each that is tumour; NaN if unknown.
      notes: what was mended or may surprise.
    """

    images: np.ndarray
    corners: np.ndarray
    fractions: np.ndarray
    notes: Sequence[str]


def tasks_by_rule(
    layout: camelyon16_layout.Layout,
) -> tuple[list[SlideTask], list[str]]:
    """Lists the slides to cut by the paper's rule, without the excluded ones.

    Normal slides give normal patches; slides with tumour give tumour patches.

    Returns:
      The tasks; and what is missing, in words.

    Raises:
      DpaError: it is not known which test slides have a tumour.
    """
    tasks = []
    for name in sorted(layout.slides):
        if name in EXCLUDED:
            continue
        label = TUMOUR if layout.has_tumour(name) else NORMAL
        split = "train" if label == NORMAL else "validation"
        if name.startswith("test_"):
            split = "test"
        tasks.append(_task(layout, split, name, label, None))
    missing = [reason for task in tasks if (reason := _unusable(task))]
    missing += [
        f"{path}: an annotation without a slide ({name})"
        for name, path in sorted({**layout.masks, **layout.annotations}.items())
        if name not in layout.slides
    ]
    return [task for task in tasks if not _unusable(task)], missing


def _unusable(task: SlideTask) -> str | None:
    """Returns why a slide cannot be cut, as far as that is known unopened."""
    outlined = task.annotation or task.mask
    if task.label == NORMAL or outlined or task.corners is not None:
        return None
    return (
        f"{task.path} has a tumour but neither an annotation ({task.slide}.xml) "
        f"nor a mask ({task.slide}_mask.tif)"
    )


def _task(layout, split, name, label, corners) -> SlideTask:
    return SlideTask(
        split=split,
        slide=name,
        label=label,
        path=layout.slides[name],
        annotation=layout.annotations.get(name),
        mask=layout.masks.get(name),
        corners=corners,
    )


def tasks_by_lists(
    layout: camelyon16_layout.Layout, listed: camelyon16_lists.Corners
) -> tuple[list[SlideTask], list[str]]:
    """Matches the lists with the slides at hand.

    Returns:
      The tasks; and in words the slides that are missing, with the patches lost.
    """
    tasks: list[SlideTask] = []
    missing: dict[str, int] = {}
    for (split, slide, label), corners in sorted(listed.items()):
        if slide in layout.slides:
            tasks.append(_task(layout, split, slide, label, tuple(corners)))
        else:
            missing[slide] = missing.get(slide, 0) + len(corners)
    return tasks, [
        f"{slide}: no such slide ({lost} patches lost)"
        for slide, lost in missing.items()
    ]


def cut(task: SlideTask, settings: Settings) -> Patches:
    """Cuts the patches of one slide, normalises their stains, and reduces them.

    Raises:
      DpaError: the slide, its annotation or one of its patches is unusable.
    """
    size = settings.size
    with contextlib.ExitStack() as stack:
        slide = stack.enter_context(regions.opened(task.path, settings.mpp))
        if settings.magnification > 40 * slide.scale:
            raise DpaError(
                f"{task.path} was scanned at x{40 * slide.scale:g}, below the "
                f"x{settings.magnification} asked for"
            )
        coverage, notes = _coverage(task, slide, stack)
        if task.corners is None:
            corners = _choose(task, slide, coverage, settings.seed)
            if not len(corners):
                notes.append(
                    f"{task.path}: no patch lies wholly in "
                    + ("its tumour" if task.label == TUMOUR else "tissue")
                )
        else:
            corners = np.array(task.corners, np.int64).reshape(-1, 2)
        side = tissue.CELL * slide.scale
        images = np.empty((len(corners), size, size, 3), np.uint8)
        fractions = np.full(len(corners), np.nan, np.float32)
        for i, (x, y) in enumerate(corners.tolist()):
            images[i] = regions.read_region(
                slide,
                x,
                y,
                tissue.CELL,
                tissue.CELL,
                settings.magnification,
                settings.target,
            )
            if coverage is not None:
                fractions[i] = coverage(x, y, side)
    return Patches(images, corners, fractions, notes)


def _coverage(task, slide, stack):
    """Returns the task's tumour coverage, or None if unknown, and notes."""
    if task.label == NORMAL:
        return (lambda x, y, side: 0.0), []
    if task.annotation:
        local = stack.enter_context(filesystems.local_copy(task.annotation))
        return annotations.from_xml(local, task.annotation)
    if task.mask:
        mask = stack.enter_context(regions.opened(task.mask, None))
        return annotations.from_mask(mask, slide), []
    if reason := _unusable(task):
        raise DpaError(reason)
    return None, [
        f"no annotation or mask of {task.slide}: the tumour fraction of its patches is "
        "NaN"
    ]


def _choose(task, slide, coverage, seed: int) -> np.ndarray:
    corners = tissue.tissue_cells(tissue.tissue_mask(slide), slide.scale)
    if task.label == TUMOUR:
        side = tissue.CELL * slide.scale
        inside = [coverage(x, y, side) == 1 for x, y in corners.tolist()]
        corners = corners[np.array(inside, bool)]
    if len(corners) > PER_SLIDE:
        # Named by the slide, so that no slide's draw depends on which others exist.
        rng = np.random.default_rng([seed, zlib.crc32(task.slide.encode())])
        chosen = rng.choice(len(corners), PER_SLIDE, replace=False)
        corners = corners[np.sort(chosen)]
    return corners
