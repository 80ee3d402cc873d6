"""Finds NIH ChestX-ray14's tables and images below a folder, however laid out."""

import dataclasses
import filecmp
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from dpa_jax.data import archives, filesystems
from dpa_jax.errors import DpaError

_IMAGE = re.compile(r"\d{8}_\d{3}\.png")
_ARCHIVE = re.compile(r"images.*\.(tar|tar\.gz|tgz|zip)", re.IGNORECASE)
_LARGEST = 2**26  # bytes of a member of an archive; an image has 2**20 at most
# The first name that is found goes before those after it.
_TABLES = {
    "entries": ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"),
    "train_val": ("train_val_list.txt", "train_val_list_NIH.txt"),
    "test": ("test_list.txt", "test_list_NIH.txt"),
    "boxes": ("BBox_List_2017.csv",),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """An image or an archive that is not as it should be.

    Attributes:
      name: of the file.
      kind: `missing`, `unreadable` or `size`.
      reason: what is wrong with it, or its width and height in pixels.
    """

    name: str
    kind: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Item:
    """An image, not yet read.

    Attributes:
      name: of its file.
      stamp: of its file or archive, see `stamps`.
      read: returns its content.
    """

    name: str
    stamp: int
    read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Source:
    """What is below a folder.

    Attributes:
      root: the folder.
      files: where each image lies unpacked; in several places if there are copies.
      archives: the archives of images.
      tables: `entries`, `train_val`, `test` and `boxes`, as far as they are there.
    """

    root: pathlib.Path
    files: Mapping[str, Sequence[str]]
    archives: Sequence[pathlib.Path]
    tables: Mapping[str, pathlib.Path]

    def table(self, name: str) -> pathlib.Path:
        """Returns the path of a table.

        Raises:
          DpaError: it is not there.
        """
        if name not in self.tables:
            raise DpaError(
                f"there is no {' or '.join(_TABLES[name])} (or .gz) below {self.root}; "
                "put it there as distributed by NIH"
            )
        return self.tables[name]


def find(root: pathlib.Path) -> Source:
    """Looks through a folder and all below it; links are followed.

    Raises:
      DpaError: the folder cannot be read, or two tables of one name differ.
    """
    if not root.is_dir():
        raise DpaError(f"{root} is not a folder")
    files: dict[str, list[str]] = {}
    packed: list[pathlib.Path] = []
    others: dict[str, list[pathlib.Path]] = {}
    for path in filesystems.list_folder(root):
        name = os.path.basename(path)
        if _IMAGE.fullmatch(name):
            files.setdefault(name, []).append(path)
        elif _ARCHIVE.fullmatch(name):
            packed.append(pathlib.Path(path))
        else:
            others.setdefault(name.removesuffix(".gz"), []).append(pathlib.Path(path))
    tables = {}
    for table, names in _TABLES.items():
        paths = next((others[name] for name in names if name in others), [])
        if paths:
            _same([path for path in paths if path.suffix == paths[0].suffix])
            tables[table] = paths[0]
    return Source(root, files, packed, tables)


def check_copies(source: Source, required: Collection[str]) -> None:
    """Checks that the unpacked files of one name are the same.

    Raises:
      DpaError: naming two files of one name with different content.
    """
    for name in required:
        _same(source.files.get(name, ()))


def stamps(source: Source) -> Callable[[str], Collection[int]]:
    """Returns a function from a name to the stamps of the files that it may come from.

    A stamp is a number that changes when its file does. An image that is not unpacked
    may come from any archive.
    """
    packed = {_stamp(archive) for archive in source.archives}
    return lambda name: (
        [_stamp(source.files[name][0])] if name in source.files else packed
    )


def _stamp(path: str | pathlib.Path) -> int:
    try:
        state = os.stat(path)
    except FileNotFoundError:  # a broken link, which decoding will name
        return 0
    text = f"{path}, {state.st_size}, {state.st_mtime_ns}"
    return int.from_bytes(_digest(text.encode())[:8], "little")


def read(
    source: Source,
    required: Collection[str],
    missing: Collection[str],
    problem: Callable[[Problem], None],
) -> Iterator[Item]:
    """Yields images: first the unpacked ones, then those in archives.

    Archives are read, each once and from its start to its end, only if an image is
    not there unpacked. At most one member is in memory.

    Args:
      source: what `find` found.
      required: names whose copies must not differ.
      missing: those of `required` to yield.
      problem: called with what is not there or is damaged.

    Raises:
      DpaError: two copies differ, or a member of an archive has an unsafe path.
    """
    left = set(missing)
    for name in sorted(left.intersection(source.files)):
        path = source.files[name][0]
        yield Item(name, _stamp(path), functools.partial(_content, path))
    left.difference_update(source.files)
    seen: dict[str, tuple[bytes, object]] = {}
    for archive in source.archives if left else ():
        stamp = _stamp(archive)
        try:
            for name, content in archives.members(
                archive, lambda name: name in required, _LARGEST
            ):
                for path in source.files.get(name, ())[:1]:
                    seen.setdefault(name, (_digest(_content(path)), path))
                digest, first = seen.setdefault(name, (_digest(content), archive))
                if digest != _digest(content):
                    raise DpaError(_differ(f"{name} in {archive}", first))
                if name in left:
                    left.remove(name)
                    yield Item(name, stamp, functools.partial(bytes, content))
        except archives.DAMAGE as error:
            problem(Problem(archive.name, "unreadable", f"damaged archive: {error}"))
    for name in sorted(left):
        problem(Problem(name, "missing", ""))


def _content(path: str) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise DpaError(f"{path} cannot be read: {error.strerror}") from None


def _same(paths: Sequence[str | pathlib.Path]) -> None:
    for path in paths[1:]:
        if not filecmp.cmp(paths[0], path, shallow=False):
            raise DpaError(_differ(path, paths[0]))


def _differ(path: object, first: object) -> str:
    return f"{path} and {first} have one name but differ: keep the right one"


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
