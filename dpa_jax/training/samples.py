"""Grids of images beside their reconstructions, as PNG."""

import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dpa_jax import state, step
from dpa_jax.weights import formats

_SCALE_TO = 96  # pixels that an image of a grid has at least


@functools.lru_cache(maxsize=16)  # about the stages of a run; a jit's own has no bound
def _compiled(spec: step.StepSpec) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns `(parameters, images, alpha) -> (seen, reconstructed)`."""

    def reconstruct(parameters, images, alpha):
        with spec.compute.matmul_precision():
            x = step.prepare(spec, images, None, alpha)
            _, y = spec.reconstruct(parameters, x, alpha)
        return x, y

    return jax.jit(reconstruct)


def write(
    path: pathlib.Path,
    spec: step.StepSpec,
    parameters: state.Parameters,
    images: np.ndarray,
    alpha: float,
) -> None:
    """Writes two rows: what a stage sees of some images, and what it makes of it.

    Args:
      path: of the PNG; its folder is made.
      spec: of the stage.
      parameters: at least the stage's.
      images: uint8 `[N, S, S, C]`.
      alpha: of the stage at this time.
    """
    active = state.select(parameters, state.block_names(spec.architecture, spec.stage))
    program = _compiled(
        step.StepSpec(
            spec.stage.unscheduled, spec.architecture, spec.loss, compute=spec.compute
        )
    )
    pair = program(active, images, jnp.float32(alpha))
    rows = [np.concatenate(list(to_uint8(values)), axis=1) for values in pair]
    grid = np.concatenate(rows, axis=0)
    factor = max(1, _SCALE_TO // spec.stage.resolution)
    grid = grid.repeat(factor, axis=0).repeat(factor, axis=1)
    save_png(path, grid)


def to_uint8(images: jax.Array | np.ndarray) -> np.ndarray:
    """Brings float images in [-1, 1] to uint8, what lies outside clipped."""
    scaled = np.asarray(images, np.float32) * 127.5 + 127.5
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def save_png(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes uint8 `[H, W, 1 or 3]` as PNG, atomically."""
    from PIL import Image  # not needed to train without pictures

    with formats.replacing(path) as temporary:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
            temporary, format="PNG"
        )
