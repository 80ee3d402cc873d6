"""How far a run has come, shown while it trains."""

import datetime
import time

from dpa_jax import console
from dpa_jax.stages import Stage


class TrainingBar:
    """Shows the stage, its resolution, alpha, loss, images per second and time left.

    A bar on a terminal; elsewhere a line every ten seconds and at the end of a stage.
    """

    def __init__(self, total: int, done: int, visible: bool):
        self._total, self._first, self._visible = total, done, visible
        self._begun, self._lines = time.monotonic(), console.Lines()
        on = console.console()
        self._bar = None
        if visible and on.is_interactive:
            self._bar = console.bar(
                on,
                "{task.fields[alpha]}",
                "loss {task.fields[loss]}",
                "{task.fields[rate]} img/s",
            )
            self._task = self._bar.add_task(
                "compiling", total=total, completed=done, alpha="", loss="-", rate="-"
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
        self, stage: Stage, done: int, alpha: float, loss: float, rate: float
    ) -> None:
        """Shows what was reached: `done` steps of the whole run."""
        name = stage.name.replace("_", " px ")
        share = f"alpha {alpha:.2f}" if stage.transition else ""
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=name,
                completed=done,
                alpha=share,
                loss=f"{loss:.4f}",
                rate=f"{rate:,.0f}",
            )
        elif self._visible:
            each = (time.monotonic() - self._begun) / (done - self._first)
            left = datetime.timedelta(seconds=round(each * (self._total - done)))
            parts = (
                f"{name}: step {done:,}/{self._total:,}",
                share,
                f"loss {loss:.4f}",
                f"{rate:,.0f} images/s",
                f"{left} left",
            )
            self._lines.print(", ".join(filter(None, parts)), done == stage.end)
