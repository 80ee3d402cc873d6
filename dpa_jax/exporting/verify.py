"""Whether an exported file gives the scores and maps of its run."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from dpa_jax import errors
from dpa_jax.exporting.graph import MAP, SCORE

LEAST_IMAGES = 32
# the largest difference allowed, of a score by itself and of a map by its highest value
TOLERANCES = {SCORE: 1e-4, MAP: 1e-3}


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far a file and its run differ.

    Attributes:
      images: how many were compared.
      batches: the numbers of images that the file was given at once.
      differences: the largest relative ones by name; see `TOLERANCES`.
    """

    images: int
    batches: tuple[int, ...]
    differences: Mapping[str, float]


def made_up(side: int, channels: int) -> np.ndarray:
    """Returns black, white, and noise of six sizes and five contrasts, always the same.

    Returns:
      uint8 `[LEAST_IMAGES, side, side, channels]`.
    """
    random = np.random.default_rng(0)
    found = [np.full((side, side, channels), value) for value in (0.0, 1.0)]
    for i in range(LEAST_IMAGES - len(found)):
        cells, contrast = min(side, 2 << i % 6), 1 - i // 6 / 5
        cell = np.arange(side) * cells // side
        values = random.random((cells, cells, channels))[cell][:, cell]
        found.append(random.random() * (1 - contrast) + contrast * values)
    return np.rint(255 * np.stack(found)).astype(np.uint8)


def compare(
    function: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    images: np.ndarray,
    expected: Mapping[str, np.ndarray],
) -> Agreement:
    """Compares a file with its run in batches of 1, 31 and then 32 images.

    Args:
      function: of the file.
      images: uint8 `[N, S, S, C]`, N at least `LEAST_IMAGES`.
      expected: of the run, by name.

    Raises:
      DpaError: they differ by more than `TOLERANCES`.
    """
    batches = np.split(images, [1, *range(LEAST_IMAGES, len(images), LEAST_IMAGES)])
    results = [function(batch) for batch in batches]
    differences = {}
    for name, tolerance in TOLERANCES.items():
        found = np.concatenate([result[name] for result in results])
        scale = np.abs(expected[name]).reshape(len(images), -1).max(1)
        difference = np.abs(found - expected[name]).reshape(len(images), -1).max(1)
        relative = difference / np.maximum(scale, np.finfo(np.float32).tiny)
        differences[name] = float(relative.max())
        if not differences[name] <= tolerance:
            raise errors.DpaError(
                f"the exported {name} differs from the run's by "
                f"{differences[name]:.1e} of it, in image {int(relative.argmax())} of "
                f"{len(images)}; at most {tolerance:.0e} is allowed"
            )
    sizes = tuple(sorted({len(batch) for batch in batches}))
    return Agreement(len(images), sizes, differences)
