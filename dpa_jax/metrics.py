"""What a run writes and shows while it goes on: JSONL, TensorBoard, a progress bar."""

import contextlib
import datetime
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import rich.console
import rich.progress

from dpa_jax import errors
from dpa_jax.stages import Stage
from dpa_jax.weights import formats

Show = Callable[[int, int], None]
_EVERY = 10.0  # seconds between lines where there is no terminal


class Writer:
    """Appends scalars to `metrics.jsonl` and to TensorBoard's event files.

    Args:
      workdir: that of the run.
      step: the one a resumed run goes on from; what was written beyond it is dropped.

    Raises:
      DpaError: they cannot be written; so do the methods.
    """

    def __init__(self, workdir: str | os.PathLike, step: int):
        # its SummaryWriter writes in a thread of its own, which can fail unnoticed
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2

        self._folder = pathlib.Path(workdir)
        messages: Any = event_pb2  # whose classes come to be when it is imported
        self._event = messages.Event
        path, board = self._folder / "metrics.jsonl", self._folder / "tensorboard"
        with self._told():
            self._keep_until(path, step)
            board.mkdir(exist_ok=True)
            self._board = event_file_writer.EventsWriter(
                str(board / "events"), f".{os.getpid()}"
            )
            start = messages.SessionLog(status=messages.SessionLog.START)
            self._board.write_event(
                self._event(wall_time=time.time(), step=step + 1, session_log=start)
            )
            self._file = open(path, "a", encoding="utf-8")

    @staticmethod
    def _keep_until(path: pathlib.Path, step: int) -> None:
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            # a killed run may have left half a line at the end
            with contextlib.suppress(json.JSONDecodeError):
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        with formats.replacing(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Records values at a step of the whole run; text goes to the JSONL alone."""
        from tensorboardX import summary

        with self._told():
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                if not isinstance(value, str):
                    self._board.write_event(
                        self._event(
                            wall_time=time.time(),
                            step=step,
                            summary=summary.scalar(name, value),
                        )
                    )
            self._board.flush()

    def close(self) -> None:
        """Flushes and closes both."""
        with self._told():
            try:
                self._file.close()
            finally:
                self._board.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise errors.DpaError(
                f"{error.filename or self._folder}: metrics cannot be written: "
                f"{error.strerror}; "
                "checkpoints are untouched, and the same command resumes"
            ) from error


class Stopwatch:
    """Measures how fast images go by, on average since it was last started."""

    def __init__(self):
        self.start()

    def start(self) -> None:
        """Begins anew, with no image."""
        self._begun, self._images = time.perf_counter(), 0

    def add(self, images: int) -> float:
        """Counts images as done and returns how many were per second."""
        self._images += images
        return self._images / max(time.perf_counter() - self._begun, 1e-9)


def console() -> rich.console.Console:
    """Returns the console that everything meant for a person goes to: stderr."""
    return rich.console.Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Prints a line as it is: not wrapped, and no part of it taken for markup."""
    console().print(text, markup=False, soft_wrap=True)


class _Lines:
    """Prints a line now and then, where there is no terminal to draw a bar on."""

    def __init__(self):
        self._last = time.monotonic()

    def print(self, text: str, now: bool = False) -> None:
        """Prints the line if it is time for one or `now` is set."""
        if now or time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            say(text)


def _bar(on: rich.console.Console, *middle: str) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=10),
        rich.progress.TaskProgressColumn(),
        *(rich.progress.TextColumn(text, markup=False) for text in middle),
        rich.progress.TimeRemainingColumn(compact=True),
        rich.progress.TextColumn("left"),
        console=on,
    )


@contextlib.contextmanager
def counting(description: str, unit: str, visible: bool = True) -> Iterator[Show]:
    """Shows how far work that is counted has come.

    A bar on a terminal; elsewhere a line every ten seconds and one at the end.

    Args:
      description: what is being done.
      unit: of what is counted, such as images; rates are shown in it per second.
      visible: False shows nothing.

    Yields:
      A function of the numbers done and in all.
    """
    on, begun = console(), time.monotonic()

    def rate(done: int) -> str:
        return f"{done / max(time.monotonic() - begun, 1e-3):,.0f}/s"

    if not visible:
        yield lambda done, total: None
    elif on.is_interactive:
        with _bar(on, "{task.fields[count]}", "{task.fields[rate]}") as bar:
            task = bar.add_task(description, total=None, count="", rate="")

            def draw(done: int, total: int) -> None:
                count = f"{done:,}/{total:,} {unit}"
                bar.update(
                    task, completed=done, total=total, count=count, rate=rate(done)
                )

            yield draw
    else:
        lines = _Lines()

        def write(done: int, total: int) -> None:
            count = f"{done:,}/{total:,} {unit}"
            lines.print(f"{description}: {count}, {rate(done)}", done == total)

        yield write


class TrainingBar:
    """Shows the stage, its resolution, alpha, loss, images per second and time left.

    A bar on a terminal; elsewhere a line every ten seconds and at the end of a stage.
    """

    def __init__(self, total: int, done: int, visible: bool):
        self._total, self._first, self._visible = total, done, visible
        self._begun, self._lines = time.monotonic(), _Lines()
        on = console()
        self._bar = None
        if visible and on.is_interactive:
            self._bar = _bar(
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
        """Says what is going on."""
        if self._bar is not None:
            self._bar.update(self._task, description=text)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, soft_wrap=True)
        elif self._visible:
            say(text)

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
