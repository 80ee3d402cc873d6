"""The optimizer of a run: Adam as published, or another; the schedule of its rate."""

import dataclasses
from collections.abc import Callable

import jax
import ml_collections
import optax

from dpa_jax import extensions

# Returns the optimizer for a learning rate: a scalar, or a function of the step.
Factory = Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]

# Whether each works number by number. Those that do are run over one flat vector of all
# parameters; see `packing`.
_IS_ELEMENTWISE = {
    "adam": True,
    "adamw": True,
    "sgd": True,
    "lion": True,
    "adafactor": False,
}
NAMES = tuple(_IS_ELEMENTWISE)
SCHEDULES = ("constant", "cosine", "linear")
DECAYS = ("adamw", "lion", "adafactor")  # those that take a weight decay
_MOMENTUM = 0.9  # of sgd


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What updates the parameters of a stage; static and hashable.

    Attributes:
      name: one of `NAMES`, or `module:function` of a `Factory`.
      steps: of the stage: where a schedule ends.
      schedule: of the learning rate after the warm-up: `constant`, or `cosine` or
        `linear` down to 0 at the stage's end.
      warmup_steps: at the stage's start, over which the rate rises linearly from 0.
      gradient_clip: the largest global norm of a gradient; 0 for any.
      weight_decay: decoupled, for one of `DECAYS`.
    """

    name: str = "adam"
    steps: int = 1
    schedule: str = "constant"
    warmup_steps: int = 0
    gradient_clip: float = 0.0
    weight_decay: float = 0.0

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, steps: int) -> "Optimizer":
        """Takes a stage's from a validated configuration."""
        given = config.optimizer
        return cls(
            name=given.name,
            steps=steps,
            schedule=given.schedule,
            warmup_steps=given.warmup_steps,
            gradient_clip=given.gradient_clip,
            weight_decay=given.weight_decay,
        )

    def transformation(
        self, learning_rate: float | jax.Array
    ) -> optax.GradientTransformation:
        """Returns the optimizer for a rate, which may be traced.

        The state that its `init` returns does not depend on the rate.
        """
        rate = self._schedule(learning_rate)
        if extensions.is_extension(self.name):
            return self._clipped(extensions.load(self.name, "optimizer.name")(rate))
        chosen = self._clipped(self._known(rate))
        return optax.flatten(chosen) if self.is_elementwise else chosen

    @property
    def is_elementwise(self) -> bool:
        """Whether it may run on one vector of all parameters.

        It works number by number, but for the norm of `gradient_clip`.
        """
        return _IS_ELEMENTWISE.get(self.name, False)

    def _known(self, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        decay = self.weight_decay
        if self.name == "adam":
            return optax.adam(rate, b1=0.9, b2=0.999, eps=1e-8)  # as published
        if self.name == "adamw":
            return optax.adamw(rate, weight_decay=decay)
        if self.name == "sgd":
            return optax.sgd(rate, momentum=_MOMENTUM)
        if self.name == "lion":
            return optax.lion(rate, weight_decay=decay)
        return optax.adafactor(rate, weight_decay_rate=decay or None)

    def _clipped(
        self, chosen: optax.GradientTransformation
    ) -> optax.GradientTransformation:
        if not self.gradient_clip:
            return chosen
        return optax.chain(optax.clip_by_global_norm(self.gradient_clip), chosen)

    def _schedule(self, rate: float | jax.Array) -> optax.ScalarOrSchedule:
        """Returns the rate itself where it is constant, which takes no count."""
        warmup, left = self.warmup_steps, self.steps - self.warmup_steps
        if self.schedule == "constant" and not warmup:
            return rate
        after = {
            "constant": lambda: optax.constant_schedule(rate),
            "cosine": lambda: optax.cosine_decay_schedule(rate, left),
            "linear": lambda: optax.linear_schedule(rate, 0.0, left),
        }[self.schedule]()
        if not warmup:
            return after
        rising = optax.linear_schedule(0.0, rate, warmup)
        return optax.join_schedules([rising, after], [warmup])


PUBLISHED = Optimizer()
