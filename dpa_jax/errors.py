"""What ends the program without a traceback: a fault of the input, or a signal."""

import contextlib
from collections.abc import Iterator


class DpaError(Exception):
    """What was given cannot be used; the message names it and says what to do.

    The command line prints the message alone and exits with 1; `UsageError` exits
    with 2.
    """


class UsageError(DpaError):
    """The call itself is wrong: a flag, a config key or a config value."""


@contextlib.contextmanager
def needing(extra: str, purpose: str) -> Iterator[None]:
    """Says which extra to install where the body cannot import a library.

    Args:
      extra: of this package.
      purpose: what the library is needed for, such as `reading slides`.

    Raises:
      DpaError: the body raised an ImportError.
    """
    try:
        yield
    except ImportError as error:
        raise DpaError(
            f"{purpose} needs a library: pip install 'dpa_jax[{extra}]'"
        ) from error


class Stopped(KeyboardInterrupt):
    """A signal asks this process to stop.

    Not an `Exception`, so that nobody takes it for a failure.

    Attributes:
      signal: its number; a shell expects 128 more as the exit code.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


class Interrupted(Stopped):
    """A run was asked to stop, and did."""
