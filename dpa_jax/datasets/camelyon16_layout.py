"""Which slides, annotations and masks of Camelyon16 a folder holds, in any layout."""

import csv
import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from dpa_jax.data import filesystems
from dpa_jax.errors import DpaError

_SLIDE = re.compile(r"(normal|tumou?r|test)_?(\d{1,3})\.tiff?")
_PACKED = re.compile(r".*annotation.*\.zip")
_LARGEST = 2**28  # bytes of an annotation; the largest has some 2**22
_MASK = re.compile(r"(normal|tumou?r|test)_?(\d{1,3})_mask\.tiff?")
_ANNOTATION = re.compile(r"(normal|tumou?r|test)_?(\d{1,3})\.xml")
# Folders of the distribution that hold other files under the slides' names.
_OTHER = {"background_tissue", "evaluation", "evaluation_masks"}
# of the challenge's table and of the one in the public bucket
_CLASSES = dict(normal=False, negative=False, tumor=True, micro=True, macro=True)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of the data set; every mapping is by a name such as `tumor_001`.

    Attributes:
      slides: paths of slides.
      annotations: paths of ASAP XML files.
      masks: paths of mask TIFFs.
      sizes: bytes of each of these paths.
      tumours: of the slides in reference.csv, whether they have one; empty if there
        is no such table.
    """

    slides: Mapping[str, str]
    annotations: Mapping[str, str]
    masks: Mapping[str, str]
    sizes: Mapping[str, int]
    tumours: Mapping[str, bool]

    def has_tumour(self, name: str) -> bool:
        """Returns whether a slide has a tumour.

        Of test slides the table says so, or, without one, an annotation: masks come
        with slides of both kinds.

        Raises:
          DpaError: it is not known.
        """
        if not name.startswith("test_"):
            return name.startswith("tumor_")
        if not self.tumours and any(n.startswith("test_") for n in self.annotations):
            return name in self.annotations
        if name not in self.tumours:
            raise DpaError(
                f"{self.slides[name]} is a test slide, and neither reference.csv nor "
                "the test slides' annotations say whether it has a tumour; put one of "
                "them beside the slides"
            )
        return self.tumours[name]


def find(source: str | os.PathLike) -> Layout:
    """Looks through a folder or a URL for the files of Camelyon16.

    Files are recognised by their names in any case, wherever they lie: the challenge's
    tree, GigaDB's, the flat `images/ annotations/ masks/`. Annotations may lie in a
    .zip too; those that are unpacked go first.

    Raises:
      DpaError: there are no slides, or two files of the same name.
    """
    slides: dict[str, str] = {}
    annotations: dict[str, str] = {}
    masks: dict[str, str] = {}
    sizes: dict[str, int] = {}
    references = []
    files = filesystems.list_files(source)
    packed = [path for path, _ in files if _PACKED.fullmatch(_parts(path)[-1])]
    for archive in packed:
        files += filesystems.list_packed(archive, _LARGEST)
    for path, size in files:
        *folders, base = _parts(path)
        if folders[-1] in _OTHER and not base.endswith(".csv"):
            continue
        for pattern, found in (
            (_SLIDE, slides),
            (_MASK, masks),
            (_ANNOTATION, annotations),
        ):
            if match := pattern.fullmatch(base):
                name = canonical(*match.groups()[:2])
                if "::" in path and "::" not in found.get(name, "::"):
                    continue
                if name in found:
                    raise DpaError(
                        f"two files for {name}: {found[name]} and {path}; "
                        "keep the one to be used"
                    )
                found[name] = path
                sizes[path] = size
        if base == "reference.csv":
            references.append(path)
    if not slides:
        raise DpaError(
            f"no slide of Camelyon16 under {os.fspath(source)}; their names are "
            "normal_001.tif, tumor_001.tif, test_001.tif, in any case and folder"
        )
    return Layout(slides, annotations, masks, sizes, _read(references))


def _parts(path: str) -> list[str]:
    return re.split(r"/|\\|::", path.lower())


def canonical(kind: str, number: str) -> str:
    """Returns the name of a slide as the data set's lists write it."""
    return f"{kind.replace('tumour', 'tumor')}_{int(number):03d}"


def _read(references: Sequence[str]) -> dict[str, bool]:
    """Reads which slides have a tumour: the columns image and class, or the first two.

    Raises:
      DpaError: a table cannot be read, or two of them disagree.
    """
    tumours: dict[str, bool] = {}
    for path in references:
        with filesystems.local_copy(path) as local:
            text = pathlib.Path(local).read_text("utf-8-sig", "replace").lower()
        rows = [[c.strip() for c in row] for row in csv.reader(text.splitlines())]
        columns = (0, 1)
        if rows and {"image", "class"} <= set(rows[0]):
            columns = rows[0].index("image"), rows[0].index("class")
            rows[0] = []
        for number, row in enumerate(rows, 1):
            if not any(row):
                continue
            name, kind = (row[i] if i < len(row) else "" for i in columns)
            match = _SLIDE.fullmatch(name.removesuffix(".tif") + ".tif")
            if not match or kind not in _CLASSES:
                raise DpaError(
                    f"{path}, line {number}: {','.join(row)!r} is not like "
                    "test_001,Tumor or, below a header with image and class, like "
                    "test_001.tif,negative"
                )
            slide = canonical(*match.groups())
            if tumours.setdefault(slide, _CLASSES[kind]) != _CLASSES[kind]:
                raise DpaError(f"{path}, line {number}: {slide} has two classes")
    return tumours
