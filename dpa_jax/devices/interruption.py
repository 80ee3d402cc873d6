"""Signals that ask a run to stop, heeded where nothing is lost."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from dpa_jax.devices.processes import ProcessGroup

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def deferred(group: ProcessGroup) -> Iterator[None]:
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
