"""Files of a local folder or of object storage, one at a time on the local disk."""

import contextlib
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from dpa_jax.data import archives, folders
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
        paths = filter(os.path.isfile, folders.list_files(name))
        return [(path, os.path.getsize(path)) for path in paths]
    system, root = _connect(name)
    try:
        found = system.find(root, detail=True)
    except _FAILURES as error:
        raise DpaError(f"{name} cannot be listed: {error}") from None
    if not found:
        raise DpaError(f"there is nothing under {name}")
    return sorted(
        (system.unstrip_protocol(key), int(entry["size"]))
        for key, entry in found.items()
    )


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
    try:
        with _open(archive) as file, zipfile.ZipFile(file) as packed:
            entries = packed.infolist()
    except _FAILURES as error:
        raise DpaError(f"{archive} cannot be listed: {error}") from None
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
        try:
            if packed_in:
                with _open(packed_in[1]) as file, zipfile.ZipFile(file) as packed:
                    content = archives.read(packed, packed.getinfo(packed_in[2]))
                with open(target, "wb") as copy:
                    copy.write(content)
            else:
                system, name = _connect(path)
                system.get_file(name, target)
        except _FAILURES as error:
            raise DpaError(f"{path} cannot be fetched: {error}") from None
        yield target


def _open(path: str) -> BinaryIO:
    if "://" not in path:
        return open(path, "rb")
    system, name = _connect(path)
    return system.open(name, "rb")


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
