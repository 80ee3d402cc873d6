"""The schedule of progressive growing (section 3 of the paper) as plain values."""

import dataclasses
from collections.abc import Sequence

import ml_collections

from dpa_jax import errors


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of growth; hashable, so that `jax.jit` takes it as static.

    Attributes:
      resolution: in pixels, of the images that the stage sees.
      transition: whether new blocks are faded in, or the network only trained on.
      steps: how many the stage lasts.
      start: the step of the whole run at which it begins.
    """

    resolution: int
    transition: bool
    steps: int
    start: int = 0

    @property
    def name(self) -> str:
        """Such as `64_transition`."""
        return (
            f"{self.resolution}_{'transition' if self.transition else 'stabilization'}"
        )

    @property
    def end(self) -> int:
        """The step of the whole run at which the next stage begins."""
        return self.start + self.steps

    @property
    def unscheduled(self) -> "Stage":
        """The same networks, however long they are trained.

        A program that takes alpha for the step is compiled for it once, whether or not
        the run is trained further.
        """
        return Stage(self.resolution, self.transition, steps=1)

    def alpha(self, step):
        """Returns the share of the new blocks, advanced before the step.

        Args:
          step: within the stage, from 0; a number or a traced int32.

        Returns:
          `(step + 1) / steps` in a transition, so 1 at its end, and 1 otherwise.
        """
        return (step + 1) / self.steps if self.transition else 1.0


def schedule(config: ml_collections.ConfigDict) -> tuple[Stage, ...]:
    """Returns the stages of a run in order.

    Stabilization at the initial resolution, then for each doubling a transition and
    a stabilization; the last stabilization lasts `stages.final_steps`.
    """
    final, stages = config.data.resolution, config.stages
    plan: list[Stage] = []

    def add(resolution: int, transition: bool, steps: int):
        plan.append(Stage(resolution, transition, steps, plan[-1].end if plan else 0))

    resolution = stages.initial_resolution
    while resolution < final:
        add(resolution, False, stages.stabilization_steps)
        resolution *= 2
        add(resolution, True, stages.transition_steps)
    add(final, False, stages.final_steps)
    return tuple(plan)


def select(plan: Sequence[Stage], wanted: str) -> list[Stage]:
    """Returns some stages of a plan.

    Args:
      plan: see `schedule`.
      wanted: `all`, or names of stages separated by commas.

    Raises:
      UsageError: a name is none of the plan's.
    """
    known = {stage.name: stage for stage in plan}
    if wanted == "all":
        return list(plan)
    for name in wanted.split(","):
        if name not in known:
            raise errors.UsageError(
                f"--stages: there is no {name!r}; this config has {', '.join(known)}"
            )
    return [known[name] for name in wanted.split(",")]
