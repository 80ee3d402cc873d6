"""Writes a run as one file for other programs, and never one that scores otherwise."""

import dataclasses
import importlib
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from dpa_jax import data, errors
from dpa_jax.config import is_perceptual
from dpa_jax.data import decode
from dpa_jax.exporting import graph as graphs
from dpa_jax.exporting import verify as verification
from dpa_jax.scoring import loading
from dpa_jax.scoring.scorer import Scorer
from dpa_jax.weights import formats

FORMATS = ("stablehlo", "onnx")
CALIBRATION = "calibration.json"


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that `export` wrote.

    Attributes:
      path: of it.
      content: its format and version.
      size: in bytes.
      shape: of the images that it takes, uint8 `(side, side, channels)`.
      source: what it was verified on.
      agreement: with the run.
      preparation: what images must go through before, by field of the run's
        configuration; empty if that is resizing alone.
      calibration: the file beside it, None if the run has none.
      random_weights: where the backbone's come from if they are random, else empty.
    """

    path: pathlib.Path
    content: str
    size: int
    shape: tuple[int, int, int]
    source: str
    agreement: verification.Agreement
    preparation: dict[str, Any]
    calibration: pathlib.Path | None
    random_weights: str


def export(
    workdir: str | os.PathLike,
    file: str | os.PathLike,
    *,
    format: str,
    side: int | None = None,
    verify: str | os.PathLike | None = None,
    trust: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Writes a run's preparation, scores and maps as one graph, weights included.

    The file is read back and compared with the run before it gets its name.

    Args:
      workdir: of the run.
      file: to write; a calibration goes to `file`.calibration.json.
      format: `stablehlo` or `onnx`.
      side: of the square images, in pixels, that the graph prepares as the run's were;
        None for images that are prepared already.
      verify: images to compare with the run on, see `data.load`; None for made-up ones.
      trust: whether to import functions that the run names; see `loading.load`.
      overwrite: whether to replace files that are there.

    Raises:
      UsageError: there is no such format, or images are too small for the run.
      DpaError: the run cannot be loaded or exported, the file is there already or
        scores otherwise, or there are fewer than 32 images to compare on.
    """
    path = pathlib.Path(file)
    calibration = path.with_name(f"{path.name}.{CALIBRATION}")
    if formats.is_stream(path):
        raise errors.UsageError(f"{path} is no file that could be read back")
    for existing in (path, calibration):
        if existing.exists() and not overwrite:
            raise errors.DpaError(
                f"{existing} is already there; give another --out, or --overwrite"
            )
    writer = _writer(format)
    scorer = loading.load(workdir, trust=trust)
    graph = graphs.load(workdir, side, trust)
    source = f"images of {verify}" if verify else "made-up images"
    images = _images(verify, scorer, graph)
    expected = _expected(scorer, graph, images)
    with formats.replacing(path) as temporary:
        content = writer.write(graph, temporary)
        agreement = verification.compare(writer.read(temporary), images, expected)
    calibrated = pathlib.Path(workdir, CALIBRATION)
    if calibrated.exists():
        with formats.replacing(calibration) as temporary:
            temporary.write_bytes(calibrated.read_bytes())
    else:
        calibration.unlink(missing_ok=True)  # of the file that was replaced
    settings, weights = scorer.config.data, scorer.config.perceptual.weights
    is_random = is_perceptual(scorer.config) and weights.startswith("random:")
    return Exported(
        path,
        content,
        path.stat().st_size,
        (graph.side, graph.side, graph.channels),
        source,
        agreement,
        {
            f"data.{name}": settings[name]
            for name in ("resize", "crop", "equalize")
            if settings[name] and side is None
        },
        calibration if calibrated.exists() else None,
        weights if is_random else "",
    )


def _writer(format: str) -> Any:
    """Returns the module of a format, with `write` and `read`."""
    if format not in FORMATS:
        raise errors.UsageError(f"format must be {' or '.join(FORMATS)}, not {format}")
    if format == "stablehlo":
        return importlib.import_module("dpa_jax.exporting.stablehlo")
    with errors.needing("onnx", "exporting to ONNX"):
        return importlib.import_module("dpa_jax.exporting.onnx")


def _images(
    location: str | os.PathLike | None, scorer: Scorer, graph: graphs.Graph
) -> np.ndarray:
    """Returns images as the graph takes them."""
    if location is None:
        return verification.made_up(graph.side, graph.channels)
    preprocessing = graph.preprocessing
    if graph.prepares:
        preprocessing = decode.Preprocessing(
            graph.channels, graph.side, plane=preprocessing.plane
        )
    images = np.asarray(
        data.load(
            location, preprocessing, data_dir=scorer.config.data.data_dir or None
        ).images
    )
    if len(images) < verification.LEAST_IMAGES:
        raise errors.DpaError(
            f"{location} has {len(images)} images to verify on; at least "
            f"{verification.LEAST_IMAGES} are needed"
        )
    if images.shape[1] != graph.side:
        raise errors.DpaError(
            f"{location} has images of {images.shape[1]} pixels; the graph takes "
            f"{graph.side}"
        )
    return images


def _expected(
    scorer: Scorer, graph: graphs.Graph, images: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns what the run makes of the images, prepared by Pillow."""
    if graph.prepares:
        images = np.stack(
            [
                decode.prepare(
                    Image.fromarray(image[..., 0] if graph.channels == 1 else image),
                    graph.preprocessing,
                    f"image {i}",
                )
                for i, image in enumerate(images)
            ]
        )
    found = scorer.scores(images, ("loss", "map"))
    return {graphs.SCORE: found["loss"], graphs.MAP: found["map"]}
