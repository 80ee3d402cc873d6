"""Images that are unlike those that a run was trained on, by what they were at first.

A score says how well an image is reconstructed by networks that have seen the training
images alone. Where another depth, range, size or cut than theirs made it, the score
says that, and nothing about what the image shows.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from dpa_jax import errors
from dpa_jax.data import inputs as inputs_of
from dpa_jax.data.decode import Preprocessing
from dpa_jax.data.image_set import ImageSet
from dpa_jax.data.inputs import INTENSITIES, Inputs

FACTOR = 2  # by which sizes, shapes and ranges go beyond those of training
MARGIN = 64  # grey levels of 255 by which intensities do so
_LIKENESS = 0.2  # training images that correlate less with their mean have no up
_NAMED = 3  # images in a message


class UnlikeTraining(UserWarning):
    """Images are unlike those that the run was trained on."""


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


def differences(
    inputs: Inputs, images: ImageSet, preprocessing: Preprocessing
) -> list[str]:
    """Returns in a sentence each how images differ from those of training.

    An image differs where it lies outside of what the middle 99% of the training images
    span, by `FACTOR` or by `MARGIN`; an ordinary one of the same source does not.

    Args:
      inputs: of the run.
      images: to be scored.
      preprocessing: what they went through.

    Returns:
      For each kind of difference one sentence, which counts the images and names the
      first.
    """
    measured = inputs_of.values(images, preprocessing, np.asarray(inputs.typical))
    pair = _Pair(inputs, measured, is_cut=not preprocessing.resize)
    found = []
    for needed, compare in _COMPARISONS:
        if all(name in measured and inputs.span(name) for name in needed):
            differ, describe = compare(pair)
            if differ.any():
                index = np.flatnonzero(differ)
                found.append(f"{_named(index, images.paths)}: {describe(index[0])}")
    return found


def _named(index: np.ndarray, paths: Sequence[str]) -> str:
    first = ", ".join(paths[i] for i in index[:_NAMED])
    if len(index) == 1:
        return first
    more = ", ..." if len(index) > _NAMED else ""
    return f"{len(index)} of {len(paths)} images ({first}{more}); the first"


@dataclasses.dataclass(frozen=True)
class _Pair:
    """What training images were, and what those to be scored are, `[N]` by name."""

    inputs: Inputs
    values: dict[str, np.ndarray]
    is_cut: bool

    def span(self, name: str) -> tuple[float, float]:
        found = self.inputs.span(name)
        assert found is not None  # it is among what the comparison needs
        return found

    def size(self, i: int) -> str:
        width, height = (self.values[name][i] for name in ("width", "height"))
        return f"{width:.0f}x{height:.0f} pixels"


# Each returns which images differ, bool `[N]`, and how the i-th does.
_Found = tuple[np.ndarray, Callable[[int], str]]


def _range(pair: _Pair) -> _Found:
    high, bits = pair.values["high"], pair.values["bits"]
    least, _ = pair.span("high")

    def describe(i: int) -> str:
        hint, depth = "", f"{bits[i]:.0f} bits" if bits[i] else "floats"
        if bits[i] > 8:
            used = math.ceil(math.log2(high[i] * (2 ** bits[i] - 1) + 1))
            hint = f" ({used}-bit data that were not scaled?)"
        return (
            f"the largest value is {high[i]:.1%} of what {depth} hold{hint}; of "
            f"training images it is {least:.0%} or more"
        )

    return high < least / FACTOR, describe


def _intensities(pair: _Pair) -> _Found:
    spans = [pair.span(name) for name in INTENSITIES]
    here = np.stack([pair.values[name] for name in INTENSITIES])
    low, high = np.array(spans).T[:, :, None]
    differ = ((here < low - MARGIN) | (here > high + MARGIN)).any(axis=0)
    if "high" in pair.values:  # one cause, one sentence
        differ &= ~_range(pair)[0]
    there = ", ".join(f"{low:.0f} to {high:.0f}" for low, high in spans)
    return (
        differ,
        lambda i: (
            "1st percentile, mean and 99th percentile of the pixels are "
            f"{', '.join(f'{value:.0f}' for value in here[:, i])} of 255; of training "
            f"images {there}"
        ),
    )


def _negative(pair: _Pair) -> _Found:
    likeness, (least, _) = pair.values["likeness"], pair.span("likeness")
    return (
        (likeness < -least) & (least > _LIKENESS),
        lambda i: (
            "like a negative of the training images: it correlates with their mean by "
            f"{likeness[i]:.2f}, they by {least:.2f} or more"
        ),
    )


def _enlargement(pair: _Pair) -> _Found:
    times, largest = pair.values["enlargement"], max(1, pair.span("enlargement")[1])
    there = f"at most {largest:.3g} times" if largest > 1 else "not at all"
    return (
        times > FACTOR * largest,
        lambda i: (
            f"{pair.size(i)} are enlarged {times[i]:.3g} times, training images {there}"
        ),
    )


def _shape(pair: _Pair) -> _Found:
    ratio, (_, most) = pair.values["aspect"], pair.span("aspect")

    def describe(i: int) -> str:
        kept = f", of which the centre is used, {1 / ratio[i]:.0%} of it"
        return (
            f"{pair.size(i)}{kept if pair.is_cut else ''}; the long side is "
            f"{ratio[i]:.3g} times the short one, of training images at most "
            f"{most:.3g} times"
        )

    return ratio > FACTOR * most, describe


def _pages(pair: _Pair) -> _Found:
    pages, (_, most) = pair.values["pages"], pair.span("pages")
    return (
        (pages > 1) & (most <= 1),
        lambda i: (
            f"the first of {pages[i]:.0f} pages is scored; files of training images "
            "have one"
        ),
    )


def _colour(pair: _Pair) -> _Found:
    colour, (low, high) = pair.values["colour"], pair.span("colour")
    differ = (np.abs(colour - low) > 0) & (low == high)
    return (
        differ,
        lambda i: f"{'grey' if low else 'in colour'}, training images are not",
    )


_COMPARISONS: tuple[tuple[tuple[str, ...], Callable[[_Pair], _Found]], ...] = (
    (("high", "bits"), _range),
    (INTENSITIES, _intensities),
    (("likeness",), _negative),
    (("enlargement",), _enlargement),
    (("aspect",), _shape),
    (("pages",), _pages),
    (("colour",), _colour),
)
