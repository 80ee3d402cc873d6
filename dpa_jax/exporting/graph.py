"""What is exported of a run: its preparation of images, scores and maps in one."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from dpa_jax import errors, extensions
from dpa_jax.data.decode import Preprocessing
from dpa_jax.devices.platform import Platform
from dpa_jax.exporting import preparation
from dpa_jax.scoring import loading
from dpa_jax.scoring.scorer import Scorer

SCORE, MAP = "score", "map"


@dataclasses.dataclass(frozen=True)
class Graph:
    """A function of images with all weights inside.

    Attributes:
      function: maps uint8 `[B, side, side, channels]` to the `score` `[B]` and the
        `map` `[B, R, R]`, float32, R the run's resolution.
      side: of the images, in pixels.
      preprocessing: the run's.
      prepares: whether that is in the function; else images went through it before.
      batch: the symbol of their number, which is free.
    """

    function: Callable[[jax.Array], dict[str, jax.Array]]
    side: int
    preprocessing: Preprocessing
    prepares: bool
    batch: Any

    @property
    def channels(self) -> int:
        """Of the images: 1 or 3."""
        return self.preprocessing.channels

    @property
    def images(self) -> jax.ShapeDtypeStruct:
        """What the function takes, the batch symbolic."""
        shape = (self.batch, self.side, self.side, self.channels)
        return jax.ShapeDtypeStruct(shape, jnp.uint8)


def load(workdir: str | os.PathLike, side: int | None, trust: bool) -> Graph:
    """Loads a run as a graph of the arrangement that no backend is preferred in.

    The numbers are the scorer's: it is traced, not written anew.

    Args:
      workdir: of the run.
      side: of images that the graph prepares as training did; None for images that are
        prepared already.
      trust: see `loading.load`.

    Raises:
      DpaError: the run cannot be loaded, or a function that it names cannot be traced.
      UsageError: images of that side are smaller than the run's crop.
    """
    # TPUs get plain convolutions and products; those of CPUs and GPUs are arranged for
    # their kernels
    platform = dataclasses.replace(Platform.here(), backend="tpu", options={})
    scorer = loading.load(workdir, trust=trust, platform=platform)
    graph = of(scorer, side)
    check(graph, extensions.named_by(scorer.config))
    return graph


def of(scorer: Scorer, side: int | None) -> Graph:
    """Returns the graph of a scorer; see `load`."""
    preprocessing = Preprocessing.from_config(scorer.config, scoring=True)
    score = scorer.function(("loss", "map"))

    def function(images: jax.Array) -> dict[str, jax.Array]:
        if side is not None:
            images = preparation.prepare(images, preprocessing)
        found = score(images)
        return {SCORE: found["loss"], MAP: found["map"]}

    (batch,) = export.symbolic_shape("batch")
    return Graph(
        function, side or preprocessing.size, preprocessing, side is not None, batch
    )


def check(graph: Graph, named: Mapping[str, str]) -> None:
    """Traces a graph, so that what cannot be traced is found before it is written.

    Args:
      graph: of a run.
      named: the functions that the run names, by field; see `extensions.named_by`.

    Raises:
      DpaError: it cannot be traced, and one of these functions may be why.
    """
    try:
        jax.eval_shape(graph.function, graph.images)
    except errors.DpaError:
        raise
    except Exception as error:  # whatever somebody's function may raise
        if not named:
            raise
        names = ", ".join(f"{name} ({field})" for field, name in named.items())
        raise errors.DpaError(
            f"the run cannot be traced for a free number of images; it names {names}: "
            f"{str(error).splitlines()[0]}"
        ) from error
