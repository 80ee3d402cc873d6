"""Anomaly scores and maps by a run's networks (section 3.3 of the paper; method 1)."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from dpa_jax import errors, models, stages, state, step
from dpa_jax.backbones import frozen
from dpa_jax.devices.platform import Platform
from dpa_jax.losses import Loss, StageLoss, compare, extract
from dpa_jax.ops.compute import Compute
from dpa_jax.scoring import scores

Progress = Callable[[int, int], None]
_IMAGE, _RECONSTRUCTION = "image", "reconstruction"


class Scorer:
    """A trained run as a function of images; see `loading.load`.

    Attributes:
      config: of the run.
      stage: of growth whose networks score: the last one trained.
      trained: the number of steps behind them.
      batch_size: images at a time.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        stage: stages.Stage,
        trained: int,
        parameters: state.Parameters,
        weights,
        statistics,
        *,
        batch_size: int,
        precision: str,
        platform: Platform,
    ):
        self.config, self.stage, self.trained = config, stage, trained
        self.batch_size = batch_size
        self._architecture = models.Architecture.from_config(config)
        self._loss = Loss.from_config(config, stage.resolution)
        self._compute = Compute(precision, platform.backend)
        self._names = state.block_names(self._architecture, stage)
        self._arguments = jax.device_put(
            (
                state.select(parameters, self._names),
                frozen.place_weights(self._loss.backbone, weights, self._compute),
                frozen.cast(statistics, self._compute.wide),
            )
        )
        self._program = functools.partial(
            _compiled,
            step.StepSpec(
                stage, self._architecture, StageLoss(self._loss), compute=self._compute
            ),
            float(stage.alpha(trained - 1 - stage.start)),
            tuple(sorted(platform.options.items())),
        )

    def with_parameters(self, parameters: state.Parameters, trained: int) -> "Scorer":
        """Returns the same with the parameters of another step of a stabilization.

        It shares the compiled programs.
        """
        other = copy.copy(self)
        other.trained = trained
        chosen = jax.device_put(state.select(parameters, self._names))
        other._arguments = (chosen, *self._arguments[1:])
        return other

    @property
    def resolution(self) -> int:
        """The side in pixels of the images that are scored."""
        return self.stage.resolution

    def __call__(
        self, images: np.ndarray, progress: Progress | None = None
    ) -> np.ndarray:
        """Scores images: the higher, the more abnormal.

        Args:
          images: uint8, 0 to 255, or float, -1 to 1: `[N, S, S, C]`, or `[N, S, S]` in
            grey. S is the run's resolution, or larger by a power of two or cropped to
            its centre as the run was trained (`data.random_crop`).
          progress: called with the images done and in all.

        Returns:
          float32 `[N]`.

        Raises:
          DpaError: the images are of another shape, type or range.
        """
        return self.scores(images, ("loss",), progress)["loss"]

    def scores(
        self,
        images: np.ndarray,
        names: Sequence[str],
        progress: Progress | None = None,
    ) -> dict[str, np.ndarray]:
        """Scores images in several ways at once.

        Args:
          images: see `__call__`.
          names: see `scores.compute`.
          progress: see `__call__`.

        Returns:
          float32 `[N]`, or a map `[N, R, R]`, by name.

        Raises:
          UsageError: there is no such score.
          DpaError: see `__call__`.
        """
        found = self._each(images, tuple(names), progress)
        # in the order of the names, which the compiled program forgets
        return {
            key: found[key]
            for name in names
            for key in found
            if key == name or key.startswith(f"{name}.")
        }

    def maps(self, images: np.ndarray, progress: Progress | None = None) -> np.ndarray:
        """Computes where images are abnormal.

        Returns:
          float32 `[N, R, R]`, R the run's resolution; the mean of a map is about the
          image's score.
        """
        return self.scores(images, ("map",), progress)["map"]

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Returns what the autoencoder makes of images: float32 `[N, R, R, C]`."""
        return self._each(images, (_RECONSTRUCTION,), None)[_RECONSTRUCTION]

    def explain(
        self, images: np.ndarray, progress: Progress | None = None
    ) -> dict[str, np.ndarray]:
        """Computes what a score stands on.

        Args:
          images: see `__call__`.
          progress: see `__call__`.

        Returns:
          float32 `image` and `reconstruction`, as the networks see and return them, in
          [-1, 1], `[N, R, R, C]`; `map`, `[N, R, R]`; for each layer `layers.NAME`,
          `[N]`, see `losses.layer_terms`.
        """
        names = (_IMAGE, _RECONSTRUCTION, "map", "layers")
        return self._each(images, names, progress)

    def _each(
        self, images, names: tuple[str, ...], progress: Progress | None
    ) -> dict[str, np.ndarray]:
        images = self._checked(images)
        # one executable for any number of images: the last batch is filled up
        size = self.batch_size
        run, done, pending = self._program(names), [], None

        def fetched(result, count: int) -> dict[str, np.ndarray]:
            return {name: np.asarray(a)[:count] for name, a in result.items()}

        for first in range(0, len(images), size):
            batch = images[first : first + size]
            filled = np.resize(batch, (size, *batch.shape[1:]))
            result = run(*self._arguments, jax.device_put(filled)), len(batch)
            if pending is not None:
                done.append(fetched(*pending))
            pending = result
            if progress is not None:
                progress(min(first + size, len(images)), len(images))
        assert pending is not None
        done.append(fetched(*pending))
        return {name: np.concatenate([one[name] for one in done]) for name in done[0]}

    def _checked(self, images) -> np.ndarray:
        images = np.asarray(images)
        if images.ndim == 3:
            images = images[..., None]
        channels = self._architecture.image_channels
        if images.ndim != 4 or images.shape[-1] != channels or not len(images):
            raise errors.DpaError(
                f"images must be [N, S, S, {channels}] with N at least 1, "
                f"not {list(images.shape)}"
            )
        least = self._architecture.resolution
        if min(images.shape[1:3]) < least:
            raise errors.DpaError(
                f"images of {images.shape[1]}x{images.shape[2]} pixels are smaller "
                f"than the run's {least}"
            )
        if max(images.shape[1:3]) != least and not self.config.data.random_crop:
            raise errors.DpaError(
                f"images are {images.shape[1]}x{images.shape[2]} pixels; this run "
                f"takes {least}x{least}: dpa_jax.data.load_files resizes as in training"
            )
        if images.dtype != np.uint8:
            if images.dtype.kind != "f":
                raise errors.DpaError(
                    f"images must be uint8 or float in [-1, 1], not {images.dtype}"
                )
            if not (images.min() >= -1.001 and images.max() <= 1.001):
                raise errors.DpaError(
                    "float images must lie in [-1, 1] and hold no NaN; found "
                    f"{images.min()} to {images.max()}"
                )
            images = images.astype(np.float32)
        return images


@functools.lru_cache(maxsize=32)
def _compiled(
    spec: step.StepSpec,
    alpha: float,
    options: tuple[tuple[str, Any], ...],
    names: tuple[str, ...],
) -> Callable[..., dict[str, jax.Array]]:
    """Returns the program of some scores, the same for every run that is made alike.

    It takes parameters, the backbone's weights, statistics, and images as
    `Scorer.__call__` does.
    """
    loss, backend = spec.loss.full, spec.compute.backend

    def run(parameters, weights, statistics, images):
        with spec.compute.matmul_precision():
            x = step.prepare(spec, images, None, alpha)
            z, y = step.reconstruct(spec, parameters, x, alpha)
            both = {_IMAGE: x, _RECONSTRUCTION: y}
            found = {name: both[name] for name in names if name in both}
            scored = [name for name in names if name not in both]
            if not scored:
                return found  # without the backbone's features
            real = extract(weights, x, loss, backend)
            comparison = compare(loss, weights, real, x, y, z, backend)
            for name in scored:
                found |= scores.compute(name, loss, statistics, comparison)
            return found

    return jax.jit(run, compiler_options=dict(options) or None)
