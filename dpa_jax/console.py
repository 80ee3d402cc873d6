"""What is shown to a person while work goes on: lines and bars, on stderr."""

import contextlib
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

Progress = Callable[[int, int], None]
_EVERY = 10.0  # seconds between lines where there is no terminal


def console() -> rich.console.Console:
    """Returns the console that everything meant for a person goes to: stderr."""
    return rich.console.Console(stderr=True, highlight=False)


def print_line(text: str) -> None:
    """Prints a line as it is: not wrapped, and no part of it taken for markup."""
    console().print(text, markup=False, soft_wrap=True)


class Lines:
    """Prints a line now and then, where there is no terminal to draw a bar on."""

    def __init__(self):
        self._last = time.monotonic()

    def print(self, text: str, now: bool = False) -> None:
        """Prints the line if it is time for one or `now` is set."""
        if now or time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            print_line(text)


def bar(on: rich.console.Console, *middle: str) -> rich.progress.Progress:
    """Returns a bar with some columns between its share done and its time left."""
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
def counting(description: str, unit: str, visible: bool = True) -> Iterator[Progress]:
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
        with bar(on, "{task.fields[count]}", "{task.fields[rate]}") as drawn:
            task = drawn.add_task(description, total=None, count="", rate="")

            def draw(done: int, total: int) -> None:
                count = f"{done:,}/{total:,} {unit}"
                drawn.update(
                    task, completed=done, total=total, count=count, rate=rate(done)
                )

            yield draw
    else:
        lines = Lines()

        def write(done: int, total: int) -> None:
            count = f"{done:,}/{total:,} {unit}"
            lines.print(f"{description}: {count}, {rate(done)}", done == total)

        yield write
