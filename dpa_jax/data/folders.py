"""Which files a folder holds, in its subfolders too."""

import errno
import os

from dpa_jax import errors


def list_files(folder: str | os.PathLike) -> list[str]:
    """Lists the files in a folder and its subfolders, sorted by path.

    Names that begin with a dot are ignored; links are followed, and a folder reached
    twice is listed once. A link that leads nowhere is listed as a file.

    Raises:
      DpaError: there is no such folder, or a part of it may not be read.
    """
    found: list[str] = []
    seen: set[str] = set()
    pending = [os.fspath(folder)]
    while pending:
        current = pending.pop()
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(current) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith("."):
                        continue
                    (pending if _is_folder(entry) else found).append(entry.path)
        except OSError as error:
            raise errors.DpaError(
                f"{current}: the folder cannot be read: {error.strerror}"
            ) from error
    return sorted(found)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link to itself
            raise
        return False
