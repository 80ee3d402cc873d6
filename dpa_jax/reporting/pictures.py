"""Pictures of cases, small enough that thousands of them fit a page."""

import base64
import dataclasses
import io
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from dpa_jax.reporting.cases import Cases

BUDGET = 40_000_000  # bytes of all pictures; in base64 a third more
# of JPEG, which is larger than WebP by a tenth, and written ten times as fast
QUALITIES = (90, 75, 60)
_SIDES = (256, 128, 64, 32, 16, 8, 4)  # pixels; a run's resolution is one of them
_SAMPLE = 64  # pictures that the size of all is estimated from


def scale(cases: Cases) -> tuple[float, float]:
    """Returns the values of a map that are not coloured yet and in full colour.

    They are the median and the 99.5th percentile of all maps.
    """
    low, top = np.percentile(cases.map.astype(np.float32), (50, 99.5))
    return float(low), float(top)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Each case as one picture: image, reconstruction and map side by side.

    Attributes:
      side: of each part, in pixels.
      quality: of JPEG, 0 to 100.
      encoded: of each case a JPEG in base64.
    """

    side: int
    quality: int
    encoded: Sequence[str]


def encode(cases: Cases, low: float, top: float, budget: int = BUDGET) -> Pictures:
    """Encodes cases in the best of the sizes and qualities that the budget allows.

    Args:
      cases: at least one.
      low: the value of a map that becomes black.
      top: the value of a map that becomes white.
      budget: bytes of all pictures; more only where the smallest take more.
    """
    count, resolution = len(cases), cases.map.shape[-1]
    sample = np.unique(np.linspace(0, count - 1, _SAMPLE).astype(int))
    sides = [s for s in _SIDES if s <= resolution] or [resolution]
    for side, quality in itertools.product(sides, QUALITIES):
        found = _jpeg(cases, sample, side, quality, low, top)
        if np.mean([len(each) for each in found]) * count <= budget:
            break
    found = _jpeg(cases, np.arange(count), side, quality, low, top)
    encoded = [base64.b64encode(each).decode("ascii") for each in found]
    return Pictures(side, quality, encoded)


def _jpeg(
    cases: Cases, rows: np.ndarray, side: int, quality: int, low: float, top: float
) -> Iterator[bytes]:
    for row in rows:
        values = (cases.map[row].astype(np.float32) - low) / max(top - low, 1e-12)
        heat = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
        image = cases.image[row]
        heat = np.broadcast_to(heat[..., None], image.shape)
        parts = np.concatenate([image, cases.reconstruction[row], heat], axis=1)
        picture = Image.fromarray(parts[..., 0] if parts.shape[-1] == 1 else parts)
        with io.BytesIO() as file:
            picture.reduce(len(image) // side).save(
                file, format="JPEG", quality=quality
            )
            yield file.getvalue()
