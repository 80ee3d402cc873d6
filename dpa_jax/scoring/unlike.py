"""Images that are unlike those that a run was trained on, by what they were at first.

A score says how well an image is reconstructed by networks that have seen the training
images alone. Where another depth, range, size or cut than theirs made it, the score
says that, and nothing about what the image shows.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dpa_jax import errors
from dpa_jax.data import properties
from dpa_jax.data.decode import Preprocessing
from dpa_jax.data.image_set import ImageSet
from dpa_jax.data.properties import Original
from dpa_jax.storage import json_files, workdir

FILE = "inputs.json"
QUANTILES = (0.005, 0.25, 0.5, 0.75, 0.995)
FACTOR = 2  # by which sizes, shapes and ranges go beyond those of training
MARGIN = 64  # grey levels of 255 by which intensities do so
_LIKENESS = 0.2  # training images that correlate less with their mean have no up
_MOST = 10_000  # training images that are measured, evenly spaced
_NAMED = 3  # images in a message
_MEASURES = ("p1", "mean", "p99")


class UnlikeTraining(UserWarning):
    """Images are unlike those that the run was trained on."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the images of a training set were, and how bright they are.

    Attributes:
      images: how many there are.
      quantiles: `QUANTILES` over the images, by name: of each field of
        `properties.Original`, `enlargement`, `aspect` (long by short side), `p1`,
        `mean` and `p99` of the intensities, `likeness` (correlation with `typical`).
        Empty of what is not known.
      bits: how many images have how many.
      typical: the mean image, `[R][R]` grey levels.
    """

    images: int
    quantiles: dict[str, list[float]]
    bits: dict[str, int]
    typical: list[list[float]]


def measure(images: ImageSet, preprocessing: Preprocessing) -> Inputs:
    """Returns what the images of a training set are, of many those of an even sample.

    Args:
      images: as they are trained on.
      preprocessing: what they went through.
    """
    sample = images.select(slice(None, None, -(-len(images) // _MOST)))
    measured, small = _measured(sample)
    typical = small.mean(axis=0, dtype=np.float64)
    values = {
        **_of_originals(sample, preprocessing),
        **measured,
        "likeness": _correlations(small, typical),
    }
    bits = values.get("bits", np.zeros(0))
    kinds, counts = np.unique(bits[np.isfinite(bits)], return_counts=True)
    quantiles = {}
    for name, column in values.items():
        known = column[np.isfinite(column)]
        found = np.quantile(known, QUANTILES) if len(known) else np.zeros(0)
        quantiles[name] = [round(float(value), 4) for value in found]
    return Inputs(
        len(images),
        quantiles,
        {str(int(k)): int(c) for k, c in zip(kinds, counts, strict=True)},
        np.round(typical, 1).tolist(),
    )


def record(
    folder: pathlib.Path, images: ImageSet, preprocessing: Preprocessing
) -> None:
    """Writes `inputs.json` of a run that begins."""
    if not (folder / FILE).exists():
        found = measure(images, preprocessing)
        values = {"levels": QUANTILES, **dataclasses.asdict(found)}
        workdir.write_json(folder / FILE, values)


def find(folder: pathlib.Path) -> Inputs | None:
    """Reads what a run was trained on; None of one that an older version trained.

    Raises:
      DpaError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    fields = {"images": int, "quantiles": dict, "bits": dict, "typical": list}
    found = json_files.read(path, fields, f"delete it, to score without {FILE}")
    return Inputs(**{name: found[name] for name in fields})


def differences(
    inputs: Inputs, images: ImageSet, preprocessing: Preprocessing
) -> list[str]:
    """Returns in a sentence each how images differ from those of training.

    An image differs where it lies outside of what 99% of the training images span, by
    the factor `FACTOR` or by `MARGIN`; an ordinary one of the same source does not.

    Args:
      inputs: of the run.
      images: to be scored.
      preprocessing: what they went through.

    Returns:
      For each kind of difference one sentence, which counts the images and names the
      first.
    """
    measured, small = _measured(images)
    typical = np.asarray(inputs.typical)
    likeness = _correlations(small, typical) if typical.shape == small.shape[1:] else []
    values = {
        **_of_originals(images, preprocessing),
        **measured,
        "likeness": np.asarray(likeness),
    }
    return [
        f"{_named(np.flatnonzero(mask), images.paths)}: {text(int(np.argmax(mask)))}"
        for mask, text in _checks(inputs, values, preprocessing)
        if mask.any()
    ]


def check(
    inputs: Inputs | None,
    images: ImageSet,
    preprocessing: Preprocessing,
    strict: bool,
) -> list[str]:
    """Returns `differences`, of a run whose inputs are known.

    Args:
      inputs: of the run; None if they are not known.
      images: to be scored.
      preprocessing: what they went through.
      strict: whether a difference is an error.

    Raises:
      DpaError: there is a difference, and `strict` is set.
    """
    found = [] if inputs is None else differences(inputs, images, preprocessing)
    if found and strict:
        raise errors.DpaError(f"unlike the training images: {'; '.join(found)}")
    return found


def _checks(
    inputs: Inputs, values: dict[str, np.ndarray], preprocessing: Preprocessing
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields which images differ, and a function of the first one that says how."""

    def known(name: str) -> bool:
        return bool(inputs.quantiles.get(name)) and len(values.get(name, ())) > 0

    def span(name: str) -> tuple[float, float]:
        return inputs.quantiles[name][0], inputs.quantiles[name][-1]

    def size(i: int) -> str:
        return f"{values['width'][i]:.0f}x{values['height'][i]:.0f} pixels"

    dark = np.zeros(len(values["mean"]), bool)
    if known("high"):
        least = span("high")[0]
        dark = values["high"] < least / FACTOR

        def of_range(i: int) -> str:
            high, bits = values["high"][i], values["bits"][i]
            hint = ""
            if bits > 8:
                used = math.ceil(math.log2(max(1, high * (2**bits - 1)) + 1))
                hint = f" ({used:.0f}-bit data that were not scaled?)"
            return (
                f"the largest value is {high:.1%} of what {_depth(bits)} hold{hint}; "
                f"of training images it is {least:.0%} or more"
            )

        yield dark, of_range

    spans = {name: span(name) for name in _MEASURES}
    outside = [
        (values[name] < low - MARGIN) | (values[name] > high + MARGIN)
        for name, (low, high) in spans.items()
    ]

    def of_intensities(i: int) -> str:
        here = ", ".join(f"{values[name][i]:.0f}" for name in _MEASURES)
        there = ", ".join(f"{low:.0f} to {high:.0f}" for low, high in spans.values())
        return (
            f"1st percentile, mean and 99th percentile of the pixels are {here} of "
            f"255; of training images {there}"
        )

    yield np.any(outside, axis=0) & ~dark, of_intensities

    if known("likeness") and span("likeness")[0] > _LIKENESS:
        least = span("likeness")[0]
        yield (
            values["likeness"] < -least,
            lambda i: (
                "like a negative of the training images: it correlates with their mean "
                f"by {values['likeness'][i]:.2f}, they by {least:.2f} or more"
            ),
        )
    if known("enlargement"):
        largest = max(1, span("enlargement")[1])
        there = f"at most {largest:.3g} times" if largest > 1 else "not at all"
        yield (
            values["enlargement"] > FACTOR * largest,
            lambda i: (
                f"{size(i)} are enlarged {values['enlargement'][i]:.3g} times, "
                f"training images {there}"
            ),
        )
    if known("aspect"):
        most = span("aspect")[1]

        def of_shape(i: int) -> str:
            ratio, kept = values["aspect"][i], ""
            if not preprocessing.resize:
                kept = f", of which the centre is used, {1 / ratio:.0%} of it"
            return (
                f"{size(i)}{kept}; the long side is {ratio:.3g} times the short one, "
                f"of training images at most {most:.3g} times"
            )

        yield values["aspect"] > FACTOR * most, of_shape
    if known("pages"):
        most = span("pages")[1]
        yield (
            (values["pages"] > 1) & (most <= 1),
            lambda i: (
                f"the first of {values['pages'][i]:.0f} pages is scored; files of "
                "training images have one"
            ),
        )
    if known("colour"):
        low, high = span("colour")
        yield (
            (values["colour"] != low) & (low == high),
            lambda i: f"{'grey' if low else 'in colour'}, training images are not",
        )


def _depth(bits: float) -> str:
    return f"{bits:.0f} bits" if bits else "floats"


def _named(index: np.ndarray, paths: Sequence[str]) -> str:
    first = ", ".join(paths[i] for i in index[:_NAMED])
    if len(index) == 1:
        return first
    more = ", ..." if len(index) > _NAMED else ""
    return f"{len(index)} of {len(paths)} images ({first}{more}); the first"


def _measured(images: ImageSet) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the intensities of images by name, each `[N]`, and their thumbnails."""
    found = [
        (properties.intensities(block), properties.thumbnails(block))
        for block in images.blocks()
    ]
    bright, small = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return dict(zip(_MEASURES, bright.T, strict=True)), small


def _of_originals(
    images: ImageSet, preprocessing: Preprocessing
) -> dict[str, np.ndarray]:
    """Returns what is known of the images before they were prepared, each `[N]`."""
    if images.originals is None:
        return {}
    found = dict(zip(Original._fields, images.originals.T, strict=True))
    sides = np.minimum(found["width"], found["height"])
    aspect = np.maximum(found["width"], found["height"]) / sides
    p = preprocessing
    if p.resize:
        spanned = sides * (p.crop or p.resize) / p.resize
    else:
        spanned = np.full_like(sides, p.crop) if p.crop else sides
    return {**found, "aspect": aspect, "enlargement": p.size / spanned}


def _correlations(small: np.ndarray, typical: np.ndarray) -> np.ndarray:
    """Returns the correlation of each thumbnail with the typical one, 0 if flat."""
    parts = small.reshape(len(small), -1)
    parts = parts - parts.mean(axis=1, keepdims=True)
    whole = typical.ravel() - typical.mean()
    norms = np.linalg.norm(parts, axis=1) * np.linalg.norm(whole)
    return parts @ whole / np.where(norms == 0, 1, norms)
