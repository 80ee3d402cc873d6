"""Structure-preserving stain normalisation (Vahadane et al., IEEE TMI 2016)."""

import dataclasses
import math
import os
import pathlib

import numpy as np

from dpa_jax.errors import DpaError
from dpa_jax.weights import formats

FILE = "stain_target.npz"
LUMINOSITY = 0.8  # pixels of a lightness (L* / 100) below this are tissue
SPARSITY = 0.1  # lambda of the factorisation
_FIT_PIXELS = 20_000
_SEEN_PIXELS = 160_000
_MIN_PIXELS = 100
# Where the search begins: haematoxylin and eosin of Ruifrok and Johnston (2001).
_START = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])

_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255.0)  # optical, per grey value
_ENCODED = np.arange(256) / 255.0
_LINEAR = np.where(
    _ENCODED <= 0.04045, _ENCODED / 12.92, ((_ENCODED + 0.055) / 1.055) ** 2.4
)


class StainError(DpaError):
    """An image whose stains cannot be told apart."""


@dataclasses.dataclass(frozen=True)
class StainProfile:
    """How two stains colour an image.

    Attributes:
      matrix: float64 `[2, 3]`, optical density per channel of a unit of each stain,
        of length one; haematoxylin (the redder absorption) first.
      maxima: float64 `[2]`, the 99th percentile of each stain's concentration.
      source: where it was estimated, in words.
    """

    matrix: np.ndarray
    maxima: np.ndarray
    source: str = ""


def is_tissue(image: np.ndarray) -> np.ndarray:
    """Says which pixels are darker than the luminosity threshold.

    Args:
      image: uint8 `[..., 3]`, sRGB.

    Returns:
      bool `[...]`.
    """
    luminance = _LINEAR[image] @ np.array([0.2126, 0.7152, 0.0722])
    return luminance < ((100 * LUMINOSITY + 16) / 116) ** 3  # CIE 1976 L*, inverted


def estimate(image: np.ndarray, source: str = "") -> StainProfile:
    """Estimates the stains of an image.

    Args:
      image: uint8 `[H, W, 3]`.
      source: kept with the result.

    Raises:
      StainError: too little of the image is tissue, or it holds but one colour.
    """
    # Even subsets keep the estimate deterministic and its cost bounded.
    step = math.ceil(math.sqrt(image[..., 0].size / _SEEN_PIXELS))
    seen = image[::step, ::step]
    pixels = seen[is_tissue(seen)]
    name = source or "the image"
    if len(pixels) < _MIN_PIXELS:
        raise StainError(
            f"{name}: only {len(pixels)} of {seen[..., 0].size} pixels "
            "are stained; the stains cannot be estimated"
        )
    density = _DENSITY[pixels[:: -(-len(pixels) // _FIT_PIXELS)]]
    matrix = stain_matrix(density)
    maxima = np.percentile(concentrations(density, matrix), 99, axis=0)
    if not (maxima > 1e-6).all():
        raise StainError(f"{name}: only one stain can be told apart")
    return StainProfile(matrix, maxima, source)


def stain_matrix(density: np.ndarray, iterations: int = 500) -> np.ndarray:
    """Factorises optical densities into two non-negative stains, sparsely.

    Minimises the mean over pixels of |v - h W|^2 / 2 + lambda |h|_1 with h >= 0,
    W >= 0 and rows of W no longer than one, by turns in h (exactly) and in W (one
    row after the other, exactly).

    Args:
      density: float64 `[N, 3]`, not negative.
      iterations: at most this many turns.

    Returns:
      W, float64 `[2, 3]`, rows of length one, haematoxylin first.
    """
    matrix = _START / np.linalg.norm(_START, axis=1, keepdims=True)
    for _ in range(iterations):
        codes = concentrations(density, matrix)
        # Not matmul: its sums over pixels depend on the number of threads.
        products = np.einsum("nk,nl->kl", codes, codes)
        targets = np.einsum("nk,nc->kc", codes, density)
        before = matrix.copy()
        for k in (0, 1):
            if products[k, k] > 0:
                step = (targets[k] - products[k] @ matrix) / products[k, k]
                row = np.maximum(matrix[k] + step, 0)
                matrix[k] = row / max(np.linalg.norm(row), 1e-12)
        if np.abs(matrix - before).max() < 1e-6:
            break
    return matrix[np.argsort(-matrix[:, 0], kind="stable")]


def concentrations(density: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Solves the non-negative LASSO of each pixel for two stains, in closed form.

    Args:
      density: `[..., 3]` optical densities.
      matrix: `[2, 3]` stains.

    Returns:
      `[..., 2]`, of `density`'s dtype, not negative.
    """
    matrix = matrix.astype(density.dtype)
    gram = matrix @ matrix.T
    slope = density @ matrix.T - density.dtype.type(SPARSITY)
    first, second = slope[..., 0], slope[..., 1]
    # A convex problem in two unknowns: inside, or on one of the two edges.
    determinant = gram[0, 0] * gram[1, 1] - gram[0, 1] ** 2
    if determinant > 1e-9:
        both_first = (gram[1, 1] * first - gram[0, 1] * second) / determinant
        both_second = (gram[0, 0] * second - gram[0, 1] * first) / determinant
        inside = (both_first >= 0) & (both_second >= 0)
    else:
        both_first = both_second = np.zeros_like(first)
        inside = np.zeros(first.shape, bool)
    # The gain of an edge is half the square of `along`.
    norms = np.sqrt(np.diag(gram))
    along = np.maximum(slope, 0) / norms
    edge = along[..., 0] >= along[..., 1]
    return np.stack(
        [
            np.where(inside, both_first, np.where(edge, along[..., 0], 0) / norms[0]),
            np.where(inside, both_second, np.where(edge, 0, along[..., 1]) / norms[1]),
        ],
        -1,
    )


def normalize(image: np.ndarray, target: StainProfile) -> np.ndarray:
    """Recolours an image with the stains of the target, keeping its structure.

    Args:
      image: uint8 `[H, W, 3]`.
      target: from `estimate`.

    Returns:
      uint8 `[H, W, 3]`.

    Raises:
      StainError: the stains of `image` cannot be estimated.
    """
    own = estimate(image)
    codes = concentrations(_DENSITY.astype(np.float32)[image], own.matrix)
    recoloured = (target.maxima / own.maxima)[:, None] * target.matrix
    light = np.exp(-codes @ recoloured.astype(np.float32))
    return np.rint(255 * light).astype(np.uint8)


def save(profile: StainProfile, path: str | os.PathLike) -> None:
    """Writes a profile as .npz, atomically."""
    with formats.replacing(pathlib.Path(path)) as temporary:
        with open(temporary, "wb") as file:
            np.savez(file, **dataclasses.asdict(profile))


def find(folder: pathlib.Path) -> StainProfile | None:
    """Reads what the images of a data set or run were normalised to, or None.

    Raises:
      DpaError: the file of it is damaged.
    """
    path = folder / FILE
    return load(path) if path.exists() else None


def load(path: str | os.PathLike) -> StainProfile:
    """Reads a profile that `save` wrote.

    Raises:
      DpaError: the file is missing or holds something else.
    """
    found = formats.read_npz(pathlib.Path(path), lambda name: True)
    absent = sorted({"matrix", "maxima", "source"} - set(found))
    if absent:
        raise DpaError(f"{path} holds no stain target: it has no {', '.join(absent)}")
    profile = StainProfile(found["matrix"], found["maxima"], str(found["source"]))
    matrix, maxima = profile.matrix, profile.maxima
    if matrix.shape != (2, 3) or maxima.shape != (2,):
        raise DpaError(
            f"{path}: a stain target has a matrix [2, 3] and maxima [2], "
            f"not {list(matrix.shape)} and {list(maxima.shape)}"
        )
    if not (np.isfinite(matrix).all() and (matrix >= 0).all() and (maxima > 0).all()):
        raise DpaError(f"{path}: values of a stain target are finite and positive")
    return profile
