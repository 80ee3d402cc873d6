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
        file = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise errors.DpaError(
            f"{path}: the lock cannot be written: {error.strerror}"
        ) from error
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
        file.seek(0)
        file.truncate()
        file.write(json.dumps(holder) + "\n")
        file.flush()
        yield


def _holder(text: str) -> str:
    try:
        found = json_files.parse(text, {"process": int, "host": str})
        return f"process {found['process']} on {found['host']}"
    except ValueError:
        return "another process"  # which has not written its name yet
