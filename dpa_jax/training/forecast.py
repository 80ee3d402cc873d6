"""How long a run still takes, in view of stages that are slower than this one."""

from collections.abc import Sequence

from dpa_jax.stages import Stage

# How many times as long a step takes at twice the resolution, by backend, and in a
# transition compared with the stabilization after it. Measured: 3.8 to 5.0 on two CPU
# cores, 1.8 to 2.4 on an H100; 1.3 to 1.4 on both (benchmarks/results).
_DOUBLING = {"cpu": 4.9}
_DOUBLING_ELSEWHERE = 2.2
_TRANSITION = 1.4


class Forecast:
    """Estimates the time that is left of a run.

    Stages to come are taken to be slower than the one that runs by factors measured
    once; its own speed, on this machine, is what they are multiplied with. So each
    stage corrects the estimate, and the last one is not estimated at all.

    Args:
      plan: the stages.
      backend: that computes.
    """

    def __init__(self, plan: Sequence[Stage], backend: str):
        self._plan = plan
        self._doubling = _DOUBLING.get(backend, _DOUBLING_ELSEWHERE)
        self._preparations: list[float] = []

    def start(self, seconds: float) -> None:
        """Notes how long it took to prepare a stage: most of it is compiling."""
        self._preparations.append(seconds)

    def remaining(self, stage: Stage, done: int, step: float) -> float:
        """Returns the seconds that are left.

        Args:
          stage: that runs; `start` was called for it.
          done: steps of the whole run that were taken.
          step: the seconds that a step takes now.
        """
        later = [other for other in self._plan if other.start >= stage.end]
        unit = step / self._cost(stage)
        preparation = sum(self._preparations) / len(self._preparations)
        return (
            step * (stage.end - done)
            + sum(unit * self._cost(other) * other.steps for other in later)
            + preparation * len(later)
        )

    def _cost(self, stage: Stage) -> float:
        """Returns the cost of a step, in any unit."""
        doublings = stage.resolution.bit_length()
        return self._doubling**doublings * (_TRANSITION if stage.transition else 1)
