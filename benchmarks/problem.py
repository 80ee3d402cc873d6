"""What every implementation computes: one configuration, made-up images and weights.

Speed depends on the shapes of images and weights, not on their values, so that nothing
has to be fetched: images are noise, VGG19 is drawn at random unless it is given.
"""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from dpa_jax import errors, models, stages, state, validation
from dpa_jax.backbones import base, frozen
from dpa_jax.config import stored_size, updated
from dpa_jax.devices.platform import Platform
from dpa_jax.storage import config_files
from dpa_jax.training import setup
from dpa_jax.training.run import Run
from dpa_jax.weights import statistics_files

NOTE = (
    "Images are noise and, unless --weights says otherwise, VGG19's weights are random "
    "and the feature statistics made up: speed does not depend on their values."
)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One configuration with all that it needs, on the host.

    Attributes:
      config: validated.
      plan: its stages.
      images: uint8 `[N, S, S, C]`.
      weights: of the backbone, up to the deepest layer in use.
      statistics: of the layers in use.
      parameters: of every block, as a run would begin with.
    """

    config: ml_collections.ConfigDict
    plan: tuple[stages.Stage, ...]
    images: np.ndarray
    weights: base.Weights
    statistics: dict[str, dict[str, np.ndarray]]
    parameters: state.Parameters

    def changed(self, overrides: Mapping[str, Any]) -> "Problem":
        """Returns the same with some fields of the configuration replaced."""
        config = updated(self.config, overrides, "benchmarks")
        return dataclasses.replace(self, config=config, plan=stages.schedule(config))

    def setup(
        self, precision: str, members: int = 1, platform: Platform | None = None
    ) -> setup.Setup:
        """Returns what `train` derives from it, images on the device.

        The next stage is not compiled while one is measured.

        Args:
          precision: to compute in.
          members: runs at once, all of the same parameters.
          platform: the machine; None takes the one at hand.
        """
        config = self.changed({"data.residency": "device"}).config
        one = Run(config, pathlib.Path(), self.parameters)
        platform = platform or Platform.here()
        platform = dataclasses.replace(platform, compiles_ahead=False)
        problem = setup.Problem(
            plan=self.plan,
            images=self.images,
            rows=np.arange(len(self.images)),
            held_out=np.zeros(0, np.int64),
            weights=self.weights,
            statistics=self.statistics,
            precision=precision,
        )
        return setup.Setup([one] * members, problem, platform)


def make(
    location: str,
    images: int,
    weights: str,
    batch: int | None = None,
    steps_scale: float = 1.0,
) -> Problem:
    """Makes a problem from a configuration.

    Args:
      location: see `config.load`.
      images: how many.
      weights: see `perceptual.weights`.
      batch: replaces the configuration's batch size.
      steps_scale: what the steps of every stage are multiplied with.
    """
    config = config_files.load(location)
    config.perceptual.weights = weights
    if batch is not None:
        config.batch_size = batch
    for name in ("transition_steps", "stabilization_steps", "final_steps"):
        steps = config.stages[name]
        config.stages[name] = steps and max(1, round(steps * steps_scale))
    config = validation.validate(config)
    if config.loss.adversarial:
        raise errors.UsageError(
            f"{location} trains a critic, which no baseline here has; take another"
        )
    if images < config.batch_size:
        raise errors.UsageError(
            f"--images={images} is less than a batch of {config.batch_size}"
        )
    plan = stages.schedule(config)
    layers = frozen.layers_in_use(config, plan)
    architecture = models.Architecture.from_config(config)
    parameters = state.initialize(jax.random.key(config.seed), architecture, plan)
    weights_of = frozen.load_weights(config, layers)
    return Problem(
        config=config,
        plan=plan,
        images=noise(config, images),
        weights=weights_of,
        statistics=made_up_statistics(config, weights_of, layers),
        parameters=jax.device_get(parameters),
    )


def noise(config: ml_collections.ConfigDict, count: int) -> np.ndarray:
    """Draws images as a run would hold them, uint8 `[count, S, S, C]`."""
    side = stored_size(config)
    shape = count, side, side, config.data.channels
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def made_up_statistics(
    config: ml_collections.ConfigDict, weights: base.Weights, layers: Collection[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Returns a mean of 1/2 and a standard deviation of 2 for every channel."""
    if not layers:
        return {}
    backbone = base.named(config.perceptual.backbone)
    shapes = backbone.feature_shapes(weights, layers, config.data.resolution)
    return {
        name: {
            "mean": np.full(channels, 0.5, np.float32),
            "std": np.full(channels, 2.0, np.float32),
        }
        for name, (*_, channels) in shapes.items()
    }


def as_run(problem: Problem, folder: pathlib.Path) -> ml_collections.ConfigDict:
    """Writes a problem's images and statistics, and returns a config that reads them.

    Args:
      problem: see `make`.
      folder: an existing one, which gets `images.npz` and `statistics.npz`.
    """
    images, statistics = folder / "images.npz", folder / "statistics.npz"
    np.savez(images, images=problem.images)
    statistics_files.save(statistics, problem.statistics, {"source": "made up"})
    changes: dict[str, Any] = {"data.train": str(images)}
    if problem.statistics:
        changes["perceptual.statistics"] = str(statistics)
    return updated(problem.config, changes, "benchmarks")
