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
from typing import TYPE_CHECKING

from dpa_jax import errors

if TYPE_CHECKING:
    from dpa_jax.devices.processes import ProcessGroup

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PAUSE_S = 0.05


def stop_on_signals() -> None:
    """Raises SIGTERM and SIGINT as `errors.Stopped` from here on, in the main thread.

    Where Python would crash by the exception or lose it, it is raised later: after an
    import, as native modules take none while they are set up (those of jaxlib abort,
    crash or hang), and again if it met a destructor or a callback of the garbage
    collector, of which JAX has one. A second signal ends the process at once. One that
    was ignored stays ignored.
    """
    stopper = _Stopper()
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stopper.handle)
    usual = sys.unraisablehook

    def hook(unraisable) -> None:
        if isinstance(unraisable.exc_value, errors.Stopped):
            stopper.wait(unraisable.exc_value.signal)
        else:
            usual(unraisable)

    sys.unraisablehook = hook


class _Stopper:
    """Raises `errors.Stopped` as soon as it can be raised."""

    def __init__(self):
        self._main, self._is_stopping = threading.get_ident(), False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Is the handler of a signal."""
        if self._is_stopping:
            os._exit(128 + number)
        self._is_stopping = True
        if not _is_importing(frame):
            raise errors.Stopped(f"stopped by {name(number)}", number)
        self.wait(number)

    def wait(self, number: int) -> None:
        """Handles the signal a moment later."""

        def again() -> None:
            time.sleep(_PAUSE_S)
            self._is_stopping = False
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

    A second one takes its usual effect at once. In a thread other than the main one
    signals are left as they are: Python delivers none there.

    Args:
      group: the processes of the run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def handle(number, frame):
        del frame
        group.signal = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in _SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def name(number: int) -> str:
    """Returns a signal's name, such as `SIGTERM`."""
    return signal.Signals(number).name
