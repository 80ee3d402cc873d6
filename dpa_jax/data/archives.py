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

_HEADER = 2**20  # bytes of a name or of attributes in a .tar
# what reading a damaged, encrypted or strangely packed archive raises
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
    *(EOFError, OSError, RuntimeError),
)


def members(
    archive: str | os.PathLike, is_needed: Callable[[str], bool], largest: int
) -> Iterator[tuple[str, bytes]]:
    """Yields files of an archive; at most one is in memory. Links are left out.

    Args:
      archive: a .zip, or a .tar of any compression, which is read as a stream.
      is_needed: called with a file's name without its folders.
      largest: bytes that any member may have.

    Yields:
      The name without folders, and the content.

    Raises:
      DpaError: a member has an unsafe path or is too large; it is not read then.
      DAMAGE: any of these, if the archive cannot be read.
    """
    if os.fspath(archive).lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                name = check(archive, entry.filename, entry.file_size, largest)
                if is_needed(name) and not stat.S_ISLNK(entry.external_attr >> 16):
                    yield name, read_member(packed, entry)
        return
    with tarfile.open(archive, "r|*", tarinfo=_Member) as packed:
        for member in packed:
            name = check(archive, member.name, member.size, largest)
            if is_needed(name) and member.isfile():
                content = packed.extractfile(member)
                assert content is not None  # of a regular file it never is
                yield name, content.read()


def read_member(packed: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Reads a file of a .zip, and no more of it than the archive says there is.

    `ZipFile.read` takes into memory whatever comes out, and so does `zipfile` always
    where anything but deflate packed it.

    Raises:
      DAMAGE: any of these, if it cannot be read, or is longer.
    """
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{entry.filename} is packed in an unusual way")
    with packed.open(entry) as file:
        return file.read(entry.file_size)


def check(archive: str | os.PathLike, name: str, size: int, largest: int) -> str:
    """Checks a file in an archive by its name and size, before it is read.

    Args:
      archive: named in errors.
      name: of the file, with its folders.
      size: in bytes, as the archive says.
      largest: bytes that it may have.

    Returns:
      The name without folders.

    Raises:
      DpaError: the path is unsafe, or the file too large.
    """
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


class _Member(tarfile.TarInfo):
    """A member whose long name or further attributes are not read if they are huge."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        """Reads a header; `tarfile` takes all of what follows some into memory."""
        member = super().frombuf(buf, encoding, errors)
        if not member.isreg() and member.size > _HEADER:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member
