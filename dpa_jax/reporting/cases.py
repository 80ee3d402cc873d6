"""The images of an evaluation that its report shows, and what explains a score."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpa_jax import console, errors, losses
from dpa_jax.data.image_set import ImageSet
from dpa_jax.scoring.scorer import Scorer
from dpa_jax.training import samples
from dpa_jax.weights import formats

FILE = "cases.npz"
LIMIT = 5000  # images that are kept at most
_BYTES = 512 << 20  # that they take at most
_CHUNK = 512  # images that are in memory as floats at a time


@dataclasses.dataclass(frozen=True)
class Cases:
    """Images beside what a run makes of them.

    Attributes:
      row: int64 `[K]`, which rows of scores.csv they are, rising.
      score: float32 `[K]`, as in these rows.
      image: uint8 `[K, R, R, C]`, as the networks see it.
      reconstruction: uint8 `[K, R, R, C]`.
      map: float16 `[K, R, R]`; see `Scorer.maps`.
      layers: `[L]` names of the layers that images are compared by.
      share: float32 `[K, L]`, each layer's part of the relative perceptual term; the
        parts of an image add up to 1.
    """

    row: np.ndarray
    score: np.ndarray
    image: np.ndarray
    reconstruction: np.ndarray
    map: np.ndarray
    layers: np.ndarray
    share: np.ndarray

    def __len__(self):
        return len(self.row)


def select(scores: np.ndarray, limit: int = LIMIT, seed: int = 0) -> np.ndarray:
    """Returns which images are kept where there are too many.

    Args:
      scores: float `[N]`.
      limit: how many are kept at most.
      seed: of the drawing.

    Returns:
      int64, rising: of `limit` two fifths are the highest, one fifth the lowest, and
      the rest are drawn from all others.
    """
    if len(scores) <= limit:
        return np.arange(len(scores))
    order = np.argsort(scores, kind="stable")
    low, high = limit // 5, len(scores) - 2 * limit // 5
    drawn = np.random.default_rng(seed).choice(
        order[low:high], limit - low - (len(scores) - high), replace=False
    )
    return np.sort(np.concatenate([order[:low], drawn, order[high:]]))


def compute(scorer: Scorer, images: ImageSet, scores: np.ndarray) -> Cases:
    """Computes what the report shows of the images that are kept.

    Args:
      scorer: the run.
      images: all of the evaluation.
      scores: float32 `[N]`, of all.
    """
    channels = images.base.shape[-1]
    each = scorer.resolution**2 * (2 * channels + 2)
    row = select(scores, max(1, min(LIMIT, _BYTES // each)))
    loss = losses.Loss.from_config(scorer.config, scorer.resolution)
    parts: list[dict[str, np.ndarray]] = []
    with console.counting("explaining", "images") as show:
        for first in range(0, len(row), _CHUNK):
            chosen = images.select(row[first : first + _CHUNK])
            found = scorer.explain(
                chosen, lambda done, _, first=first: show(first + done, len(row))
            )
            parts.append(
                {
                    "image": samples.to_uint8(found["image"]),
                    "reconstruction": samples.to_uint8(found["reconstruction"]),
                    "map": found["map"].astype(np.float16),
                    "share": shares(loss, found),
                }
            )
    return Cases(
        row=row,
        score=np.asarray(scores, np.float32)[row],
        layers=np.array([name for name, _ in _weights(loss)], np.str_),
        **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
    )


def shares(loss: losses.Loss, found: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns each layer's part of the relative perceptual term, float32 `[N, L]`.

    Args:
      loss: of the run.
      found: `layers.NAME` for each layer that it compares, `[N]`; see
        `losses.layer_terms`.
    """
    terms = [weight * found[f"layers.{name}"] for name, weight in _weights(loss)]
    if not terms:
        return np.zeros((len(found["map"]), 0), np.float32)
    total = np.stack(terms, axis=1)
    return (total / total.sum(axis=1, keepdims=True)).astype(np.float32)


def _weights(loss: losses.Loss) -> list[tuple[str, float]]:
    if not loss.relative_perceptual:
        return []
    image = [(losses.IMAGE, loss.image_weight)] if loss.image_weight else []
    return [*loss.layers, *image]


def write(path: pathlib.Path, cases: Cases) -> None:
    """Writes cases as an .npz, atomically."""
    arrays: dict[str, Any] = {
        field.name: getattr(cases, field.name) for field in dataclasses.fields(cases)
    }
    with formats.replacing(path) as temporary:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)


def read(path: pathlib.Path) -> Cases:
    """Reads what `write` wrote.

    Raises:
      DpaError: the file cannot be read, or its arrays do not fit each other.
    """
    names = [field.name for field in dataclasses.fields(Cases)]
    found = formats.read_npz(path, lambda name: name in names)
    count = len(np.atleast_1d(found.get("row", ())))
    r = found["map"].shape[-1] if found.get("map", np.zeros(0)).ndim == 3 else 0
    c = found["image"].shape[-1] if found.get("image", np.zeros(0)).ndim == 4 else 0
    layers = len(np.atleast_1d(found.get("layers", ())))
    expected = {
        "row": ("i", (count,)),
        "score": ("f", (count,)),
        "image": ("u", (count, r, r, c)),
        "reconstruction": ("u", (count, r, r, c)),
        "map": ("f", (count, r, r)),
        "layers": ("U", (layers,)),
        "share": ("f", (count, layers)),
    }
    for name, (kind, shape) in expected.items():
        array = found.get(name)
        if array is None or array.dtype.kind != kind or array.shape != shape:
            raise errors.DpaError(
                f"{path}: damaged, {name} is missing or of another shape; evaluate "
                "--overwrite writes it anew"
            )
    return Cases(**found)
