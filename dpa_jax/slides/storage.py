"""Files of a local folder or of object storage, one at a time on the local disk."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from dpa_jax.data import folders
from dpa_jax.errors import DpaError


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
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(name)
        found = system.find(root, detail=True)
    except (ImportError, OSError, ValueError) as error:
        raise DpaError(f"{name} cannot be listed: {error}") from None
    if not found:
        raise DpaError(f"there is nothing under {name}")
    return sorted(
        (system.unstrip_protocol(key), int(entry["size"]))
        for key, entry in found.items()
    )


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Gives the local path of a file, copied there for as long as the block runs.

    Args:
      path: a local path, given as it is, or a URL, copied to the temporary folder.

    Raises:
      DpaError: the file cannot be fetched.
    """
    if "://" not in path:
        yield path
        return
    import fsspec

    with tempfile.TemporaryDirectory(prefix="dpa_jax_") as folder:
        target = os.path.join(folder, path.rsplit("/", 1)[-1])
        try:
            system, name = fsspec.core.url_to_fs(path)
            system.get_file(name, target)
        except (ImportError, OSError, ValueError) as error:
            raise DpaError(f"{path} cannot be fetched: {error}") from None
        yield target
