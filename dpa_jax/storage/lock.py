"""A file that one process at a time holds."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator

from dpa_jax import errors
from dpa_jax.storage import json_files


@contextlib.contextmanager
def hold(path: pathlib.Path, conflict: str, advice: str) -> Iterator[None]:
    """Holds a lock while the body runs.

    The lock is the system's, on an open file: it ends with the process that holds it,
    however that ends. The file itself stays and says who held it last.

    Args:
      path: the file, in a folder that exists.
      conflict: what another holder does, such as `run is being trained in`.
      advice: what to do about that besides waiting.

    Raises:
      UsageError: another process holds it; it is named.
      DpaError: the file cannot be written.
    """
    try:
        # unbuffered: a write that fails is not tried again when it is closed
        file = open(path, "a+b", buffering=0)
    except OSError as error:
        raise _unwritable(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise errors.UsageError(
                f"{conflict} already, by {_holder(file.read())}; {advice}, or wait "
                "until it has ended"
            ) from None
        holder = {"host": socket.gethostname(), "process": os.getpid()}
        try:
            file.truncate(0)
            file.write((json.dumps(holder) + "\n").encode())
        except OSError as error:
            raise _unwritable(path, error) from error
        yield


def _unwritable(path: pathlib.Path, error: OSError) -> errors.DpaError:
    return errors.DpaError(f"{path}: the lock cannot be written: {error.strerror}")


def _holder(content: bytes) -> str:
    try:
        fields = {"process": int, "host": str}
        found = json_files.parse(content.decode("utf-8"), fields)
        return f"process {found['process']} on {found['host']}"
    except ValueError:
        return "another process"  # which has not written its name yet
