"""How far a run has come, shown while it trains."""

import time
from collections.abc import Sequence

from dpa_jax import console
from dpa_jax.stages import Stage


class TrainingBar:
    """Shows the stage, the mean loss, images per second, time elapsed and time left.

    A bar on a terminal; elsewhere a line every ten seconds and at the end of a stage.

    Args:
      plan: the stages.
      done: steps of the whole run that were taken before.
      visible: whether anything is shown.
    """

    def __init__(self, plan: Sequence[Stage], done: int, visible: bool):
        self._plan, self._visible = plan, visible
        self._begun, self._lines = time.monotonic(), console.Lines()
        on = console.console()
        self._bar = None
        if visible and on.is_interactive:
            self._bar = console.bar(
                on,
                "mean loss {task.fields[loss]}",
                "{task.fields[rate]} img/s",
                "{task.fields[time]}",
            )
            self._task = self._bar.add_task(
                "", total=plan[-1].end, completed=done, loss="-", rate="-", time=""
            )

    def __enter__(self) -> "TrainingBar":
        """Starts to draw."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        """Stops drawing and leaves the last state."""
        if self._bar is not None:
            self._bar.stop()

    def name(self, stage: Stage) -> str:
        """Returns such as `stage 2 of 5, 16 px transition`."""
        number = f"stage {self._plan.index(stage) + 1} of {len(self._plan)}"
        return f"{number}, {stage.name.replace('_', ' px ')}"

    def describe(self, text: str) -> None:
        """Shows what is going on."""
        if self._bar is not None:
            self._bar.update(self._task, description=text)

    def print_line(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, soft_wrap=True)
        elif self._visible:
            console.print_line(text)

    def update(
        self,
        stage: Stage,
        done: int,
        alpha: float,
        loss: float | None,
        rate: float,
        left: float,
    ) -> None:
        """Shows what was reached.

        Args:
          stage: that trains.
          done: steps of the whole run that were taken.
          alpha: share of the new blocks, from 0 to 1.
          loss: mean of the last row of metrics; None before the first.
          rate: images per second, of late.
          left: seconds, of the whole run.
        """
        elapsed = time.monotonic() - self._begun
        spent = f"{console.clock(elapsed)} elapsed, {console.clock(left)} left"
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=self.name(stage).partition(",")[0],
                completed=done,
                loss="-" if loss is None else f"{loss:.4f}",
                rate=f"{rate:,.0f}",
                time=spent,
            )
        elif self._visible:
            parts = (
                f"{self.name(stage)}: step {done:,}/{self._plan[-1].end:,}",
                f"alpha {alpha:.2f}" if stage.transition else "",
                "" if loss is None else f"mean loss {loss:.4f}",
                f"{rate:,.0f} images/s",
                spent,
            )
            self._lines.print(", ".join(filter(None, parts)), done == stage.end)
