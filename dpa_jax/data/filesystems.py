"""Files of a local folder or of object storage, one at a time on the local disk."""

import contextlib
import errno
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from dpa_jax.data import archives
from dpa_jax.errors import DpaError

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_PUBLIC = "s3://camelyon-dataset"  # readable by everybody, without an account
_IN_ZIP = re.compile(r"(.+\.zip)::(.+)", re.IGNORECASE)
_FAILURES = (*archives.DAMAGE, ImportError, ValueError)


def list_files(source: str | os.PathLike) -> list[tuple[str, int]]:
    """Lists all files under a folder.

    Args:
      source: a folder, or a URL such as `s3://bucket/folder` whose scheme fsspec knows.

    Returns:
      (path or URL, size in bytes), sorted by path.

    Raises:
      DpaError: there is no such folder, or its storage cannot be reached.
    """
    name = os.fspath(source)
    if "://" not in name:
        if not os.path.isdir(name):
            raise DpaError(f"there is no folder {name}")
        paths = filter(os.path.isfile, list_folder(name))
        return [(path, os.path.getsize(path)) for path in paths]
    system, root = _connect(name)
    with _reaching(name, "listed"):
        found = system.find(root, detail=True)
    if not found:
        raise DpaError(f"there is nothing under {name}")
    return sorted(
        (system.unstrip_protocol(key), int(entry["size"]))
        for key, entry in found.items()
    )


def list_folder(folder: str | os.PathLike) -> list[str]:
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
            raise DpaError(
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


def list_packed(archive: str, largest: int) -> list[tuple[str, int]]:
    """Lists the files in a .zip, which is a path or a URL.

    Args:
      archive: the .zip.
      largest: bytes that any of them may have.

    Returns:
      (what `local_copy` takes, size in bytes), in the order of the archive.

    Raises:
      DpaError: the archive cannot be read, or holds a file with an unsafe path or one
        that is too large.
    """
    with _reaching(archive, "listed"):
        with _open(archive) as file, zipfile.ZipFile(file) as packed:
            entries = packed.infolist()
    for entry in entries:
        archives.check(archive, entry.filename, entry.file_size, largest)
    return [(f"{archive}::{e.filename}", e.file_size) for e in entries]


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Gives the local path of a file, copied there for as long as the block runs.

    Args:
      path: a local path, given as it is; a URL; or either of a .zip and, after `::`,
        the name of a file in it. Both of these are copied to the temporary folder.

    Raises:
      DpaError: the file cannot be fetched.
    """
    packed_in = _IN_ZIP.fullmatch(path)
    if "://" not in path and not packed_in:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="dpa_jax_") as folder:
        target = os.path.join(folder, path.rsplit("/", 1)[-1])
        with _reaching(path, "fetched"):
            if packed_in:
                with _open(packed_in[1]) as file, zipfile.ZipFile(file) as packed:
                    content = archives.read_member(packed, packed.getinfo(packed_in[2]))
                with open(target, "wb") as copy:
                    copy.write(content)
            else:
                system, name = _connect(path)
                system.get_file(name, target)
        yield target


def exists(path: str) -> bool:
    """Returns whether there is a file of a path or URL."""
    system, name = _connect(path)
    with _reaching(path, "reached"):
        return system.exists(name)


def read(path: str) -> bytes:
    """Returns the content of a file of a path or URL."""
    with _reaching(path, "read"), _open(path) as file:
        return file.read()


def write(path: str, content: bytes) -> None:
    """Writes a file, whose folder is made if need be, whole or not at all."""
    system, name = _connect(path)
    folder, _, base = name.rpartition("/")
    partial = f"{folder}/.{base}.{os.getpid()}"
    with _reaching(path, "written"):
        system.makedirs(folder, exist_ok=True)
        system.pipe_file(partial, content)
        system.mv(partial, name)


def remove(folder: str) -> None:
    """Removes a folder, a path or URL, with all that it holds."""
    system, name = _connect(folder)
    with _reaching(folder, "removed"):
        system.rm(name, recursive=True)


def _open(path: str) -> BinaryIO:
    system, name = _connect(path)
    return system.open(name, "rb")


@contextlib.contextmanager
def _reaching(path: str, done: str) -> Iterator[None]:
    """Names what cannot be done to which file, where the body fails.

    Raises:
      DpaError: it does.
    """
    try:
        yield
    except _FAILURES as error:
        raise DpaError(f"{path} cannot be {done}: {error}") from None


def _connect(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL and the path there."""
    options = {"anon": True} if f"{url}/".startswith(f"{_PUBLIC}/") else {}
    try:
        import fsspec

        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = _PACKAGES.get(url.partition("://")[0], "'dpa_jax[wsi]'")
        raise DpaError(f"{url} needs a package: pip install {package}") from error
    except ValueError as error:
        raise DpaError(f"{url} cannot be reached: {error}") from None
