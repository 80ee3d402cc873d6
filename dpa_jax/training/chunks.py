"""How the steps of a stage are grouped into chunks; no result depends on it."""

import dataclasses
import itertools
from collections.abc import Sequence

from dpa_jax.stages import Stage


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Steps of a stage that are dispatched at once.

    Attributes:
      first: the step of the whole run that it begins with.
      steps: how many it takes.
    """

    first: int
    steps: int

    @property
    def end(self) -> int:
        """The step of the whole run that it ends before."""
        return self.first + self.steps


@dataclasses.dataclass(frozen=True)
class Interval:
    """Something that is done every so many steps, between chunks.

    Attributes:
      every: steps; 0 for never.
      origin: the step of the whole run that is counted from.
    """

    every: int
    origin: int = 0

    def is_due(self, step: int) -> bool:
        """Returns whether it is done after so many steps of the run."""
        return bool(self.every) and (step - self.origin) % self.every == 0

    def within(self, stage: Stage) -> range:
        """Returns the steps within a stage, its end apart, after which it is done."""
        if not self.every:
            return range(0)
        passed = (stage.start - self.origin) // self.every + 1
        return range(self.origin + passed * self.every, stage.end, self.every)


def longest(stage: Stage, intervals: Sequence[Interval], most: int) -> int:
    """Returns how many steps the longest chunk of a stage has.

    Args:
      stage: of growth.
      intervals: after whose steps a chunk has to end.
      most: steps of a chunk in any case.
    """
    ends = [stage.start, *_ends(stage, intervals)]
    gaps = (after - before for before, after in itertools.pairwise(ends))
    return min(most, max(gaps))


def divide(
    stage: Stage, intervals: Sequence[Interval], steps: int, done: int
) -> list[Chunk]:
    """Returns the chunks of a stage that are left to take.

    Args:
      stage: of growth.
      intervals: see `longest`.
      steps: of a chunk at most.
      done: steps of the whole run that were taken.
    """
    first, found = max(done, stage.start), []
    for end in _ends(stage, intervals):
        while first < end:
            found.append(Chunk(first, min(steps, end - first)))
            first = found[-1].end
    return found


def _ends(stage: Stage, intervals: Sequence[Interval]) -> list[int]:
    ends = {stage.end}
    for interval in intervals:
        ends.update(interval.within(stage))
    return sorted(ends)
