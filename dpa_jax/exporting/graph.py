"""What is exported of a run: its preparation of images, scores and maps in one."""

import dataclasses
import os
from collections.abc import Callable

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
      channels: 1 or 3.
      batch: the symbol of their number, which is free.
    """

    function: Callable[[jax.Array], dict[str, jax.Array]]
    side: int
    channels: int
    batch: jax.Array

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
    # TPUs get plain convolutions; those of CPUs and GPUs are arranged for their kernels
    platform = dataclasses.replace(Platform.here(), backend="tpu", options={})
    scorer = loading.load(workdir, trust=trust, platform=platform)
    graph = of(scorer, side)
    names = extensions.named_by(scorer.config)
    try:
        jax.eval_shape(graph.function, graph.images)
    except errors.DpaError:
        raise
    except Exception as error:  # whatever somebody's function may raise
        if not names:
            raise
        field, name = next(iter(names.items()))
        raise errors.DpaError(
            f"the run names {name} ({field}), and with it cannot be traced for any "
            f"number of images: {str(error).splitlines()[0]}"
        ) from error
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
    channels = preprocessing.channels
    return Graph(function, side or preprocessing.size, channels, batch)
