"""What a run writes and shows while it goes on: JSONL, TensorBoard, a progress bar."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping

import rich.console
import rich.progress

from dpa_jax.stages import Stage

Show = Callable[[int, int], None]


class Writer:
    """Appends scalars to `metrics.jsonl` and to TensorBoard's event files.

    Args:
      workdir: that of the run.
      step: the one a resumed run goes on from; what was written beyond it is dropped.
    """

    def __init__(self, workdir: str | os.PathLike, step: int):
        import tensorboardX

        folder = pathlib.Path(workdir)
        self._path = folder / "metrics.jsonl"
        self._keep_until(step)
        self._file = open(self._path, "a", encoding="utf-8")
        self._board = tensorboardX.SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1, flush_secs=30
        )

    def _keep_until(self, step: int) -> None:
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines()
        kept = []
        for line in lines:
            # a killed run may have left half a line at the end
            with contextlib.suppress(json.JSONDecodeError):
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self._path)

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Records values at a step of the whole run; text goes to the JSONL alone."""
        row = {"step": step, **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            if not isinstance(value, str):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        self._board.close()


class Stopwatch:
    """Measures how fast images go by, between one look and the next."""

    def __init__(self):
        self._start = time.perf_counter()
        self._images = 0

    def add(self, images: int) -> None:
        """Counts images as done."""
        self._images += images

    def lap(self) -> float:
        """Returns the images per second since the last lap and starts a new one."""
        now = time.perf_counter()
        rate = self._images / max(now - self._start, 1e-9)
        self._start, self._images = now, 0
        return rate


def console() -> rich.console.Console:
    """Returns the console that everything meant for a person goes to: stderr."""
    return rich.console.Console(stderr=True, highlight=False)


def _columns(*middle: str) -> list:
    return [
        rich.progress.TextColumn("[bold]{task.description}"),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.TaskProgressColumn(),
        *(rich.progress.TextColumn(text) for text in middle),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
    ]


@contextlib.contextmanager
def counting(description: str, unit: str, visible: bool = True) -> Iterator[Show]:
    """Shows a bar for work that is counted.

    Args:
      description: what is being done.
      unit: of what is counted, such as images; rates are shown in it per second.
      visible: False shows nothing.

    Yields:
      A function of the numbers done and in all.
    """
    middle = "{task.fields[count]} " + unit, "{task.fields[rate]}"
    with rich.progress.Progress(
        *_columns(*middle), console=console(), disable=not visible
    ) as bar:
        task = bar.add_task(description, total=None, count="", rate="")

        def show(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            rate = f"{speed:,.0f}/s" if speed else ""
            count = f"{done:,}/{total:,}"
            bar.update(task, completed=done, total=total, count=count, rate=rate)

        yield show


class TrainingBar:
    """Shows the stage, its resolution, alpha, loss, images per second and time left."""

    def __init__(self, total: int, done: int, visible: bool):
        self._bar = rich.progress.Progress(
            *_columns(
                "{task.fields[alpha]}",
                "loss {task.fields[loss]}",
                "{task.fields[rate]} images/s",
            ),
            console=console(),
            disable=not visible,
        )
        self._task = self._bar.add_task(
            "compiling", total=total, completed=done, alpha="", loss="-", rate="-"
        )

    def __enter__(self) -> "TrainingBar":
        """Starts to draw."""
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        """Stops drawing and leaves the last state."""
        self._bar.stop()

    def describe(self, text: str) -> None:
        """Says what is going on."""
        self._bar.update(self._task, description=text)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._bar.console.print(text)

    def update(
        self, stage: Stage, done: int, alpha: float, loss: float, rate: float
    ) -> None:
        """Shows what was reached: `done` steps of the whole run."""
        self._bar.update(
            self._task,
            description=f"{stage.name.replace('_', ' px ')}",
            completed=done,
            alpha=f"alpha {alpha:.2f}" if stage.transition else "",
            loss=f"{loss:.4f}",
            rate=f"{rate:,.0f}",
        )
