"""Files in .zip and .tar archives, read one at a time and with distrust."""

import os
import pathlib
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

from dpa_jax import errors

# what reading a damaged, encrypted or strangely packed archive raises
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
    *(EOFError, OSError, RuntimeError),
)


def members(
    archive: str | os.PathLike, wanted: Callable[[str], bool], largest: int
) -> Iterator[tuple[str, bytes]]:
    """Yields files of an archive; at most one is in memory. Links are left out.

    Args:
      archive: a .zip, or a .tar of any compression, which is read as a stream.
      wanted: called with a file's name without its folders.
      largest: bytes that any member may have.

    Yields:
      The name without folders, and the content.

    Raises:
      DpaError: a member has an unsafe path or is too large; it is not read then.
      DAMAGE: any of these, if the archive cannot be read.
    """

    def checked(name: str, size: int) -> str:
        path = pathlib.PurePosixPath(name.replace("\\", "/"))
        reason = ""
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
            reason = ", which leads out of the archive"
        elif size > largest:
            reason = f" of {size:,} bytes"
        if reason:
            raise errors.DpaError(
                f"{os.fspath(archive)} holds {name!r}{reason}: this is not the file "
                "as distributed; get it again"
            )
        return path.name

    if os.fspath(archive).lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                name = checked(entry.filename, entry.file_size)
                if wanted(name) and not stat.S_ISLNK(entry.external_attr >> 16):
                    yield name, packed.read(entry)
        return
    with tarfile.open(archive, "r|*") as packed:
        for member in packed:
            name = checked(member.name, member.size)
            if wanted(name) and member.isfile():
                content = packed.extractfile(member)
                assert content is not None  # of a regular file it never is
                yield name, content.read()
