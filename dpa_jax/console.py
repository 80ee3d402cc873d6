"""What is shown to a person while work goes on: lines and bars, on stderr."""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

Progress = Callable[[int, int], None]
_EVERY = 10.0  # seconds between lines where there is no terminal


class Console(rich.console.Console):
    """A console whose cursor stays: a killed process could not show it again."""

    def show_cursor(self, show: bool = True) -> bool:
        """Returns that nothing was done."""
        return False


def console() -> rich.console.Console:
    """Returns the console that everything meant for a person goes to: stderr."""
    return Console(stderr=True, highlight=False)


def print_line(text: str) -> None:
    """Prints a line as it is: not wrapped, and no part of it taken for markup."""
    console().print(text, markup=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Returns a time as hours, minutes and seconds, such as `0:02:10`."""
    return str(datetime.timedelta(seconds=round(seconds)))


class Lines:
    """Prints a line now and then, where there is no terminal to draw a bar on."""

    def __init__(self):
        self._last = time.monotonic()

    def print(self, text: str, now: bool = False) -> None:
        """Prints the line if it is time for one or `now` is set."""
        if now or time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            print_line(text)


def bar(on: rich.console.Console, *columns: str) -> rich.progress.Progress:
    """Returns a bar as wide as the console, with columns after its share done."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.TaskProgressColumn(),
        *(rich.progress.TextColumn(text, markup=False) for text in columns),
        console=on,
        expand=True,
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

    def left(done: int, total: int) -> str:
        each = (time.monotonic() - begun) / max(done, 1)
        return f"{clock(each * (total - done))} left"

    if not visible:
        yield lambda done, total: None
    elif on.is_interactive:
        columns = [f"{{task.fields[{name}]}}" for name in ("count", "rate", "left")]
        with bar(on, *columns) as drawn:
            task = drawn.add_task(description, total=None, count="", rate="", left="")

            def draw(done: int, total: int) -> None:
                count = f"{done:,}/{total:,} {unit}"
                shown = {"count": count, "rate": rate(done), "left": left(done, total)}
                drawn.update(task, completed=done, total=total, **shown)

            yield draw
    else:
        lines = Lines()

        def write(done: int, total: int) -> None:
            count = f"{done:,}/{total:,} {unit}"
            lines.print(f"{description}: {count}, {rate(done)}", done == total)

        yield write
