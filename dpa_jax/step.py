"""One training step of a stage, and a chunk of them as one program.

What bounds a step: at 64 pixels VGG19's arithmetic (three passes to r42: 0.88 TFLOP at
batch 128; two with cached targets), at 8 and 16 pixels the launching of some hundred
small kernels, which a chunk turns into one dispatch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from dpa_jax import images as images_lib
from dpa_jax import losses, models, vgg
from dpa_jax import state as state_lib
from dpa_jax.stages import Stage


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What a step reads and never changes: arguments of the compiled program.

    Attributes:
      vgg: weights up to the deepest layer in use, in the dtype of the computation.
      statistics: of the layers in use, float32.
      key: of `jax.random`, for the augmentation.
    """

    vgg: vgg.Weights
    statistics: Mapping[str, Mapping[str, jax.Array]]
    key: jax.Array


jax.tree_util.register_dataclass(Frozen)


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What is static in a step; hashable, one executable for each value.

    Attributes:
      stage: of growth.
      architecture: of the networks.
      loss: of the stage.
      learning_rate: of Adam.
      horizontal_flip: see `images.augment`.
      vertical_flip: likewise.
      precision: `bfloat16`, `tensorfloat32` or `float32`.
    """

    stage: Stage
    architecture: models.Architecture
    loss: losses.StageLoss
    learning_rate: float
    horizontal_flip: bool = False
    vertical_flip: bool = False
    precision: str = "float32"

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, stage: Stage, precision: str
    ) -> "StepSpec":
        """Takes what it needs from a validated configuration."""
        return cls(
            stage=stage,
            architecture=models.Architecture.from_config(config),
            loss=losses.StageLoss.from_config(config, stage),
            learning_rate=config.optimizer.learning_rate,
            horizontal_flip=config.data.horizontal_flip,
            vertical_flip=config.data.vertical_flip,
            precision=precision,
        )

    @property
    def dtype(self) -> jnp.dtype:
        """What the networks and VGG19 compute in."""
        return compute_dtype(self.precision)

    def augments(self, stored_size: int) -> bool:
        """Says whether an image looks different each time it is drawn."""
        return (
            self.horizontal_flip
            or self.vertical_flip
            or stored_size != self.architecture.resolution
        )


def compute_dtype(precision: str) -> jnp.dtype:
    """Returns the dtype of activations: float32 unless `precision` is bfloat16."""
    return jnp.dtype(jnp.bfloat16 if precision == "bfloat16" else jnp.float32)


def exact(precision: str):
    """Returns the context in which matrix products keep what `precision` promises.

    NVIDIA GPUs and TPUs would otherwise multiply float32 with fewer bits.
    """
    return jax.default_matmul_precision(
        {"bfloat16": "default", "tensorfloat32": "tensorfloat32"}.get(
            precision, "highest"
        )
    )


def prepare(
    spec: StepSpec, images: jax.Array, keys: jax.Array | None, alpha
) -> jax.Array:
    """Turns stored images into what the stage sees.

    Args:
      spec: static.
      images: uint8 `[B, S, S, C]`.
      keys: `[B]`, see `images.augment`; None takes the centre instead.
      alpha: of the stage.

    Returns:
      float32 `[B, R, R, C]` in [-1, 1].
    """
    size, stage = spec.architecture.resolution, spec.stage
    if keys is None or not spec.augments(images.shape[1]):
        images = images_lib.center_crop(images, size)
    else:
        images = images_lib.augment(
            keys,
            images,
            size=size,
            horizontal_flip=spec.horizontal_flip,
            vertical_flip=spec.vertical_flip,
        )
    x = images_lib.normalize(images)
    if stage.transition:
        return images_lib.mix(x, stage.resolution, alpha)
    return images_lib.downsample(x, stage.resolution)


def targets(spec: StepSpec, frozen: Frozen, x: jax.Array):
    """Computes the features of the images that a step compares with."""
    return losses.stage_targets(spec.loss, frozen.vgg, x)


def train_step(
    spec: StepSpec,
    state: state_lib.TrainState,
    frozen: Frozen,
    images: jax.Array,
    cached: Any = None,
    axis_name: str | None = None,
) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
    """Takes one step of Adam on the mean loss of a batch.

    Args:
      spec: static.
      state: see `TrainState`.
      frozen: see `Frozen`.
      images: uint8 `[B, S, S, C]`, this device's part of the batch.
      cached: what `targets` gives for these images, if it was computed before.
      axis_name: of the devices to average gradients over.

    Returns:
      The next state, and float32 scalars: `loss` of the whole batch before the step.
    """
    batch, stage = len(images), spec.stage
    place = jax.lax.axis_index(axis_name) if axis_name else 0
    key = jax.random.fold_in(frozen.key, stage.start + state.step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        key, place * batch + jnp.arange(batch)
    )
    alpha = jnp.asarray(stage.alpha(state.step), jnp.float32)
    x = prepare(spec, images, keys, alpha)
    real = targets(spec, frozen, x) if cached is None else cached

    def mean_loss(parameters):
        _, y = models.reconstruct(
            parameters,
            x,
            alpha,
            architecture=spec.architecture,
            stage=stage,
            dtype=spec.dtype,
        )
        value = losses.stage_per_image(
            spec.loss, frozen.vgg, frozen.statistics, real, x, y, alpha
        )
        return value.mean()

    loss, gradient = jax.value_and_grad(mean_loss)(state.parameters)
    if axis_name:
        loss, gradient = jax.lax.pmean((loss, gradient), axis_name)
    updates, optimizer = state_lib.optimizer(spec.learning_rate).update(
        gradient, state.optimizer
    )
    return (
        state.replace(
            step=state.step + 1,
            parameters=optax.apply_updates(state.parameters, updates),
            optimizer=optimizer,
        ),
        {"loss": loss},
    )


def single(
    spec: StepSpec, axis_name: str | None = None
) -> Callable[..., tuple[state_lib.TrainState, dict[str, jax.Array]]]:
    """Returns a step that gathers its own batch: `(state, frozen, data, index)`.

    Its `data` are `{"images": uint8 [N, S, S, C]}` and, with cached targets,
    `{"targets": features of each image, [N, ...]}`; its `index` int32 `[B]`.
    """

    def run(state, frozen, data, index):
        with exact(spec.precision):
            taken = jax.tree.map(lambda values: values[index], data)
            return train_step(
                spec, state, frozen, taken["images"], taken.get("targets"), axis_name
            )

    return run


def chunk(
    spec: StepSpec, axis_name: str | None = None
) -> Callable[..., tuple[state_lib.TrainState, dict[str, jax.Array]]]:
    """Returns many steps as one program: `(state, frozen, data, indices [K, B])`.

    Steps beyond the stage's end leave the state alone, so that a stage whose last chunk
    is shorter needs no second executable. Scalars come back as `[K]`.
    """
    step = single(spec, axis_name)

    def run(state, frozen, data, indices):
        def body(state, index):
            after, scalars = step(state, frozen, data, index)
            ended = state.step >= spec.stage.steps
            after = jax.tree.map(functools.partial(jnp.where, ended), state, after)
            return after, scalars

        return jax.lax.scan(body, state, indices)

    return run
