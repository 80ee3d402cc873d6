"""What the images of a training set were, kept in the workdir of a run."""

import dataclasses
import pathlib

import numpy as np

from dpa_jax import errors
from dpa_jax.data import properties
from dpa_jax.data.decode import Preprocessing
from dpa_jax.data.image_set import ImageSet
from dpa_jax.data.properties import Original
from dpa_jax.storage import json_files, workdir

FILE = "inputs.json"
LEVELS = (0.005, 0.25, 0.5, 0.75, 0.995)
INTENSITIES = ("p1", "mean", "p99")
_MOST = 10_000  # training images that are measured, evenly spaced


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the images of a training set were, and how bright they are.

    Attributes:
      images: how many there are.
      quantiles: over the images, at `LEVELS`, of each of `values`. Empty of what is not
        known.
      bits: how many images have how many.
      typical: the mean image, `[R][R]` grey levels.
    """

    images: int
    quantiles: dict[str, list[float]]
    bits: dict[str, int]
    typical: list[list[float]]

    def span(self, name: str) -> tuple[float, float] | None:
        """Returns what the middle 99% of the images span; None if it is not known."""
        found = self.quantiles.get(name)
        return (found[0], found[-1]) if found else None


def measure(images: ImageSet, preprocessing: Preprocessing) -> Inputs:
    """Returns what the images of a training set are, of many those of an even sample.

    Args:
      images: as they are trained on.
      preprocessing: what they went through.
    """
    sample = images.select(slice(None, None, -(-len(images) // _MOST)))
    measured = values(sample, preprocessing)
    bits = measured.get("bits", np.zeros(0))
    kinds, counts = np.unique(bits[np.isfinite(bits)], return_counts=True)
    quantiles = {}
    for name, column in measured.items():
        known = column[np.isfinite(column)]
        found = np.quantile(known, LEVELS) if len(known) else np.zeros(0)
        quantiles[name] = [round(float(value), 4) for value in found]
    return Inputs(
        len(images),
        quantiles,
        {str(int(k)): int(c) for k, c in zip(kinds, counts, strict=True)},
        np.round(_small(sample).mean(axis=0), 1).tolist(),
    )


def record(
    folder: pathlib.Path, images: ImageSet, preprocessing: Preprocessing
) -> None:
    """Writes `inputs.json` of a run that begins; see `measure`."""
    if not (folder / FILE).exists():
        found = dataclasses.asdict(measure(images, preprocessing))
        workdir.write_json(folder / FILE, {"levels": LEVELS, **found})


def find(folder: pathlib.Path) -> Inputs | None:
    """Reads what a run was trained on; None of one that an older version trained.

    Raises:
      DpaError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    fields = {"images": int, "quantiles": dict, "bits": dict, "typical": list}
    remedy = f"delete it, to score without {FILE}"
    found = json_files.read(path, fields, remedy)
    try:
        shapes = {np.shape(np.array(q, float)) for q in found["quantiles"].values()}
        are_numbers = shapes <= {(0,), (len(LEVELS),)}
        are_numbers &= np.ndim(np.array(found["typical"], float)) == 2
    except (TypeError, ValueError):
        are_numbers = False
    if not are_numbers:
        raise errors.DpaError(f"{path}: damaged, not numbers; {remedy}")
    return Inputs(**{name: found[name] for name in fields})


def values(
    images: ImageSet, preprocessing: Preprocessing, typical: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Measures images and what they were before they were prepared.

    Args:
      images: prepared ones.
      preprocessing: what they went through.
      typical: the image that they are compared with, `[R, R]`; None for their mean.

    Returns:
      `[N]` by name: `INTENSITIES`; `likeness`, the correlation with the typical image
      if that is of their size; and where the originals are known each field of
      `properties.Original`, `aspect`, the long by the short side, and `enlargement`,
      how many pixels there are for one of the original.
    """
    bright = [properties.intensities(block) for block in images.blocks()]
    small = _small(images)
    typical = small.mean(axis=0) if typical is None else typical
    found = dict(zip(INTENSITIES, np.concatenate(bright).T, strict=True))
    if small.shape[1:] == typical.shape:  # of a run that cuts below 16 pixels it is not
        found["likeness"] = _correlations(small, typical)
    return found | _of_originals(images, preprocessing)


def _small(images: ImageSet) -> np.ndarray:
    return np.concatenate([properties.thumbnails(block) for block in images.blocks()])


def _of_originals(
    images: ImageSet, preprocessing: Preprocessing
) -> dict[str, np.ndarray]:
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
