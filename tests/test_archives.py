"""Archives as an attacker, or a broken disk, would write them."""

import gzip
import io
import struct
import tarfile
import time
import tracemalloc
import zipfile

import pytest

from dpa_jax.data import archives
from dpa_jax.errors import DpaError

HUGE = 5_000_000_000


def header(name, size, kind=tarfile.REGTYPE):
    """Returns the header of a member of a .tar, without what it announces."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def tar(path, start, zeros):
    """Writes a .tar.gz of so many zeros after its start, compressed a thousandfold."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(zeros // 2**20):
            file.write(bytes(2**20))


def large_member(folder):
    tar(folder / "a.tar.gz", header("images/a.png", HUGE), 2**22)
    return folder / "a.tar.gz"


def large_attributes(folder):
    start = header("attributes", HUGE, tarfile.XHDTYPE)
    tar(folder / "a.tar.gz", start, 400 * 2**20)
    return folder / "a.tar.gz"


def large_zip_member(folder):
    """A zip that says of its only member, of one byte, that it has 4 GB."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("images/a.png", b"1")
    content = stream.getvalue()
    place = content.index(b"PK\1\2") + 24
    size = struct.pack("<I", 2**32 - 2)
    (folder / "a.zip").write_bytes(content[:place] + size + content[place + 4 :])
    return folder / "a.zip"


def lying_zip(folder):
    """A zip that says of its only member, of 320 MB, that it has 1 MB."""
    how = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    with zipfile.ZipFile(folder / "a.zip", "w", **how) as archive:
        with archive.open("images/a.png", "w") as file:
            for _ in range(320):
                file.write(bytes(10**6))
    content = (folder / "a.zip").read_bytes()
    place = content.index(b"PK\1\2") + 24
    size = struct.pack("<I", 10**6)
    (folder / "a.zip").write_bytes(content[:place] + size + content[place + 4 :])
    return folder / "a.zip"


def bzip2(folder):
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("images/a.png", bytes(10**6))
    return folder / "a.zip"


def climbing(folder):
    tar(folder / "a.tar.gz", header("images/../../a.png", 0), 2**20)
    return folder / "a.tar.gz"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (large_member, DpaError, "holds 'images/a.png' of 5,000,000,000 bytes"),
        (large_attributes, tarfile.ReadError, "a header of 5,000,000,000 bytes"),
        (large_zip_member, DpaError, "holds 'images/a.png' of 4,294,967,294 bytes"),
        (lying_zip, zipfile.BadZipFile, "Bad CRC-32 for file 'images/a.png'"),
        (bzip2, zipfile.BadZipFile, "images/a.png is packed in an unusual way"),
        (climbing, DpaError, "holds 'images/../../a.png', which leads out"),
    ],
)
def test_hostile_archives_are_refused_at_once(tmp_path, make, error, message):
    path = make(tmp_path)
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(error, match=message):
            list(archives.members(path, lambda name: True, 2**26))
        seconds = time.process_time() - start
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 1 and most < 300e6


def test_links_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"images/{kind.decode()}.png")
            link.type, link.linkname = kind, "/etc/hostname"
            archive.addfile(link)
    assert list(archives.members(tmp_path / "a.tar", lambda name: True, 2**26)) == []


def zip_bomb(path, method):
    """Writes 256 MiB of zeros that the archive says are 1,000 bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("images/a.png", bytes(2**28))
    content = stream.getvalue()
    for place in (content.index(b"PK\1\2") + 24, content.index(b"PK\3\4") + 22):
        size = struct.pack("<I", 1000)
        content = content[:place] + size + content[place + 4 :]
    path.write_bytes(content)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_no_more_is_unpacked_than_an_archive_says_it_holds(tmp_path, method):
    zip_bomb(tmp_path / "a.zip", method)
    tracemalloc.start()
    try:
        with pytest.raises(zipfile.BadZipFile, match="images/a.png"):
            list(archives.members(tmp_path / "a.zip", lambda name: True, 2**26))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**22
