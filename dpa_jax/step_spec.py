"""What is static in a training step, and what it only reads."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from dpa_jax import adversarial, losses, models, optim
from dpa_jax.backbones import base as backbones
from dpa_jax.ops.compute import Compute
from dpa_jax.packing import Packing
from dpa_jax.stages import Stage
from dpa_jax.state import TrainState


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What a step reads and never changes: arguments of the compiled program.

    Attributes:
      backbone: its weights up to the deepest layer in use, in the format of the
        computation.
      statistics: of the layers in use.
      key: of `jax.random`, for what is drawn at random in a step.
      learning_rate: float32 `[P]`, one for each member. An argument, so that runs of
        other rates share a compiled program.
    """

    backbone: backbones.Weights
    statistics: Mapping[str, Mapping[str, jax.Array]]
    key: jax.Array
    learning_rate: jax.Array


jax.tree_util.register_dataclass(Frozen)


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What is static in a step; hashable, one executable for each value.

    Attributes:
      stage: of growth.
      architecture: of the networks.
      loss: of the stage.
      optimizer: of the stage.
      compute: precision, and the backend that the program is arranged for.
      horizontal_flip: see `images.augment`.
      vertical_flip: likewise.
      adversarial: weight of the critic's term; 0 for no critic.
      discriminator_steps: of the critic before each of the autoencoder.
      members: autoencoders trained at once on the same batches, each with its own
        parameters and rate, along a leading axis.
      batch_parts: equal parts of a batch whose gradients are computed one after the
        other and averaged, so that a step fits into less memory.
      mapped_by: how members are computed, `vmap`, `scan` or `unrolled`; empty for what
        is usual on the backend, see `step.py`.
    """

    stage: Stage
    architecture: models.Architecture
    loss: losses.StageLoss
    optimizer: optim.Optimizer = optim.Optimizer()
    compute: Compute = Compute()
    horizontal_flip: bool = False
    vertical_flip: bool = False
    adversarial: float = 0.0
    discriminator_steps: int = 2
    members: int = 1
    batch_parts: int = 1
    mapped_by: str = ""

    @classmethod
    def from_config(
        cls,
        config: ml_collections.ConfigDict,
        stage: Stage,
        compute: Compute,
        members: int = 1,
    ) -> "StepSpec":
        """Takes what it needs from a validated configuration."""
        return cls(
            stage=stage,
            architecture=models.Architecture.from_config(config),
            loss=losses.StageLoss.from_config(config, stage),
            optimizer=optim.Optimizer.from_config(config, stage.steps),
            horizontal_flip=config.data.horizontal_flip,
            vertical_flip=config.data.vertical_flip,
            compute=compute,
            adversarial=config.loss.adversarial,
            discriminator_steps=config.adversarial.discriminator_steps,
            members=members,
        )

    @property
    def batches(self) -> int:
        """How many batches a step takes: the critic's steps have one each."""
        return 1 + self.discriminator_steps if self.adversarial else 1

    def packing(self, state: TrainState) -> Packing:
        """Returns how a state is packed for the backend."""
        return Packing.of(state, self.compute.backend, self.optimizer.is_elementwise)

    def augments(self, stored_size: int) -> bool:
        """Returns whether an image looks different each time it is drawn."""
        return (
            self.horizontal_flip
            or self.vertical_flip
            or stored_size != self.architecture.resolution
        )

    def reconstruct(
        self, parameters: Any, x: jax.Array, alpha, per_image: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the latents and what the stage's autoencoder makes of images.

        See `models.reconstruct`.
        """
        return models.reconstruct(
            parameters,
            x,
            alpha,
            architecture=self.architecture,
            stage=self.stage,
            compute=self.compute,
            per_image=per_image,
        )

    def critic(self, parameters: Any, alpha) -> Callable[[jax.Array], jax.Array]:
        """Returns what rates images; see `adversarial.critique`."""
        return functools.partial(
            adversarial.critique,
            parameters,
            alpha=alpha,
            architecture=adversarial.critic_architecture(self.architecture),
            stage=self.stage,
            compute=self.compute,
        )
