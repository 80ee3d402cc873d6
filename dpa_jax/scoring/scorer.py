"""Anomaly scores and maps by a run's networks (section 3.3 of the paper; method 1)."""

import copy
import functools
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from dpa_jax import data, errors, models, stages, state, step
from dpa_jax.backbones import frozen
from dpa_jax.data.decode import Preprocessing
from dpa_jax.data.inputs import Inputs
from dpa_jax.devices.platform import Platform
from dpa_jax.losses import Loss, StageLoss, compare, extract
from dpa_jax.ops.compute import Compute, arranged_for
from dpa_jax.scoring import scores, unlike
from dpa_jax.scoring.calibration import Calibration

Progress = Callable[[int, int], None]
_IMAGE, _RECONSTRUCTION = "image", "reconstruction"


class Scorer:
    """A trained run as a function of images; see `loading.load`.

    Attributes:
      config: of the run.
      stage: of growth whose networks score: the last one trained.
      trained: the number of steps behind them.
      batch_size: images at a time.
      precision: that is computed in.
      preprocessing: what images that are not prepared go through.
      inputs: what the training images were; None if that is not known.
      strict: whether images unlike those are an error, not a warning.
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
        calibration: Calibration | None = None,
        workdir: pathlib.Path | None = None,
        inputs: Inputs | None = None,
        strict: bool = False,
    ):
        self.config, self.stage, self.trained = config, stage, trained
        self.batch_size, self.precision = batch_size, precision
        self._calibration = calibration
        self.preprocessing = Preprocessing.from_config(config, scoring=True)
        self.inputs, self.strict, self._workdir = inputs, strict, workdir
        self._architecture = models.Architecture.from_config(config)
        self._loss = Loss.from_config(config, stage.resolution)
        backend = arranged_for(platform.backend, precision, platform.has_kernels)
        self._compute = Compute(precision, backend)
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
                stage.unscheduled,
                self._architecture,
                StageLoss(self._loss),
                compute=self._compute,
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
    def calibration(self) -> Calibration | None:
        """What gives scores their p-values; None if the run is not calibrated.

        Raises:
          DpaError: it is of another step or precision than the scores.
        """
        found = self._calibration
        if found is not None and found.trained != self.trained:
            raise errors.DpaError(
                f"the run was calibrated at step {found.trained:,} and is now at "
                f"{self.trained:,}: calibrate it again with --overwrite"
            )
        if found is not None and found.precision != self.precision:
            raise errors.DpaError(
                f"the run was calibrated in {found.precision}, not {self.precision}: "
                "score in that, or calibrate it again with --overwrite"
            )
        return found

    @property
    def resolution(self) -> int:
        """The side in pixels of the images that are scored."""
        return self.stage.resolution

    def __repr__(self):
        size, channels = self._architecture.resolution, self.preprocessing.channels
        return (
            f"Scorer(workdir={str(self._workdir or '')!r}, stage={self.stage.name!r}, "
            f"steps={self.trained}, size={size}, channels={channels})"
        )

    def prepare(
        self,
        images: Any,
        labels: Sequence[int] | np.ndarray | None = None,
        groups: Sequence[str] | None = None,
    ) -> data.ImageSet:
        """Prepares images as those of training were, and compares them with those.

        Warns where they are unlike them, see `unlike.differences`.

        Args:
          images: of any kind that `data.as_image_set` takes.
          labels: see there.
          groups: see there.

        Raises:
          DpaError: they are no images; or are unlike those of training, and `strict` is
            set.
        """
        found = data.as_image_set(
            images,
            self.preprocessing,
            labels=labels,
            groups=groups,
            data_dir=self.config.data.data_dir or None,
        )
        for text in unlike.check(self.inputs, found, self.preprocessing, self.strict):
            warnings.warn(text, unlike.UnlikeTraining, stacklevel=3)
        return found

    def __call__(self, images: Any, progress: Progress | None = None) -> np.ndarray:
        """Scores images: the higher, the more abnormal.

        Args:
          images: of any kind that `data.as_image_set` takes; they are prepared as those
            of training were, see `prepare`. A set is scored as it is, and so is an
            array of prepared images, uint8 `[N, S, S, C]` with S the run's resolution
            or `data.size`.
          progress: called with the images done and in all.

        Returns:
          float32 `[N]`.

        Raises:
          DpaError: these are no images, or values are in no known range; or see
            `prepare`.
        """
        return self.scores(images, ("loss",), progress)["loss"]

    def scores(
        self,
        images: Any,
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

    def maps(self, images: Any, progress: Progress | None = None) -> np.ndarray:
        """Computes where images are abnormal.

        Returns:
          float32 `[N, R, R]`, R the run's resolution; the mean of a map is about the
          image's score.
        """
        return self.scores(images, ("map",), progress)["map"]

    def reconstruct(self, images: Any) -> np.ndarray:
        """Returns what the autoencoder makes of images: float32 `[N, R, R, C]`."""
        return self._each(images, (_RECONSTRUCTION,), None)[_RECONSTRUCTION]

    def function(
        self, names: Sequence[str]
    ) -> Callable[[jax.Array], dict[str, jax.Array]]:
        """Returns `scores` as a function that JAX can trace; it checks no images."""
        return functools.partial(self._program(tuple(names)), *self._arguments)

    def explain(
        self, images: Any, progress: Progress | None = None
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

    def _checked(self, images: Any) -> np.ndarray:
        """Returns images as the networks take them: uint8 `[N, S, S, C]`."""
        if isinstance(images, data.ImageSet):
            images = images.images
        least = self._architecture.resolution
        sizes = {least, self.config.data.size or least}  # of which the centre is scored
        shapes = [(size, size, self.preprocessing.channels) for size in sizes]
        if isinstance(images, np.ndarray) and images.dtype == np.uint8:
            if self.preprocessing.channels == 1 and images.ndim == 3:
                images = images[..., None]
            if len(images) and images.shape[1:] in shapes:
                return images
        return self.prepare(images).images


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
            z, y = spec.reconstruct(parameters, x, alpha)
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
