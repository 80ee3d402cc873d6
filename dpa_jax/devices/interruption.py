"""Signals that ask a run to stop, heeded where nothing is lost."""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from dpa_jax import errors

if TYPE_CHECKING:
    from dpa_jax.devices.processes import ProcessGroup

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PAUSE_S = 0.05
_DOUBLED_S = 0.1  # in which two are one, sent to the process and to its group


def stop_on_signals() -> None:
    """Raises SIGTERM and SIGINT as `errors.Stopped` from here on, in the main thread.

    Python waits for native code first, such as JAX's that joins processes. Where it
    would crash by the exception or lose it, it is raised later: after an import, as
    native modules take none while they are set up (those of jaxlib abort, crash or
    hang), and again if it met a destructor or a callback of the garbage collector, of
    which JAX has one. A second signal, a tenth of a second or more after the first,
    ends the process at once, unless native code holds Python's lock. One that was
    ignored stays ignored. To be called in the main thread.
    """
    stopper = _Stopper()
    for number in _handlers():
        signal.signal(number, stopper.handle)
    usual = sys.unraisablehook

    def hook(unraisable) -> None:
        if isinstance(unraisable.exc_value, errors.Stopped):
            stopper.wait(unraisable.exc_value.signal)
        else:
            usual(unraisable)

    sys.unraisablehook = hook


def _handlers() -> dict[signal.Signals, Any]:
    """Returns the handlers of those of the signals that are not ignored."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    return {n: handler for n, handler in handlers.items() if handler != signal.SIG_IGN}


class _Stopper:
    """Raises `errors.Stopped` as soon as it can be raised, and counts the signals."""

    def __init__(self):
        self._main, self._is_stopping = threading.get_ident(), False
        self._repeated = threading.Semaphore(0)  # signals that `wait` sends
        arrived, written = os.pipe()
        os.set_blocking(written, False)
        # written to as a signal arrives: a handler waits for native code to return
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        _thread.start_new_thread(self._count, (arrived,))

    def _count(self, arrived: int) -> None:
        """Ends the process at the second signal of which a pipe brings the number."""
        first = None
        while True:
            number = os.read(arrived, 1)[0]
            if number not in _SIGNALS or self._repeated.acquire(blocking=False):
                continue
            if first is None:
                first = time.monotonic()
            elif time.monotonic() - first >= _DOUBLED_S:
                os._exit(128 + number)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raises `errors.Stopped` for the first signal, now or later."""
        if self._is_stopping:
            return
        self._is_stopping = True
        if not _is_importing(frame):
            raise errors.Stopped(f"stopped by {name(number)}", number)
        self.wait(number)

    def wait(self, number: int) -> None:
        """Handles the signal a moment later."""

        def again() -> None:
            time.sleep(_PAUSE_S)
            self._is_stopping = False
            self._repeated.release()
            signal.pthread_kill(self._main, number)

        # threading.Thread takes locks, which the code that was interrupted may hold
        _thread.start_new_thread(again, ())


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def deferred(group: "ProcessGroup") -> Iterator[None]:
    """Notes SIGTERM and SIGINT in `group.signal` while the body runs.

    A second one, a tenth of a second or more after the first, takes its usual effect at
    once, and one that is ignored stays ignored. In a thread other than the main one
    signals are left as they are: Python delivers none there.

    Args:
      group: the processes of the run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _handlers()
    noted: float | None = None

    def handle(number, frame):
        nonlocal noted
        del frame
        if noted is None:
            group.signal, noted = number, time.monotonic()
        elif time.monotonic() - noted >= _DOUBLED_S:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


def name(number: int) -> str:
    """Returns a signal's name, such as `SIGTERM`."""
    return signal.Signals(number).name
