"""Which slides, annotations and masks of Camelyon16 a folder holds, in any layout."""

import csv
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

from dpa_jax.errors import DpaError
from dpa_jax.slides import storage

_SLIDE = re.compile(r"(normal|tumou?r|test)_?(\d{1,3})\.tiff?")
_MASK = re.compile(r"(normal|tumou?r|test)_?(\d{1,3})_mask\.tiff?")
_ANNOTATION = re.compile(r"(normal|tumou?r|test)_?(\d{1,3})\.xml")
# Folders of the distribution that hold other files under the slides' names.
_OTHER = {"background_tissue", "evaluation", "evaluation_masks"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of the data set; every mapping is by a name such as `tumor_001`.

    Attributes:
      slides: paths of slides.
      annotations: paths of ASAP XML files.
      masks: paths of mask TIFFs.
      sizes: bytes of each of these paths.
      test_tumours: names of the test slides with a tumour, or None if unknown.
      notes: what was found that a reader should know.
    """

    slides: Mapping[str, str]
    annotations: Mapping[str, str]
    masks: Mapping[str, str]
    sizes: Mapping[str, int]
    test_tumours: frozenset[str] | None
    notes: Sequence[str] = ()

    def has_tumour(self, name: str) -> bool:
        """Says whether a slide has a tumour, annotated or not."""
        if name.startswith("test_") and self.test_tumours is not None:
            return name in self.test_tumours
        if name.startswith("test_"):
            return name in self.annotations or name in self.masks
        return name.startswith("tumor_")


def find(source: str | os.PathLike) -> Layout:
    """Looks through a folder or a URL for the files of Camelyon16.

    Files are told by their names in any case, wherever they lie: the challenge's
    tree, GigaDB's, the flat `images/ annotations/ masks/`.

    Raises:
      DpaError: there are no slides, or two files of the same name.
    """
    slides: dict[str, str] = {}
    annotations: dict[str, str] = {}
    masks: dict[str, str] = {}
    sizes: dict[str, int] = {}
    archives, references = [], []
    for path, size in storage.list_files(source):
        folders, _, base = path.replace("\\", "/").lower().rpartition("/")
        if folders.rpartition("/")[2] in _OTHER and not base.endswith(".csv"):
            continue
        for pattern, found in (
            (_SLIDE, slides),
            (_MASK, masks),
            (_ANNOTATION, annotations),
        ):
            if match := pattern.fullmatch(base):
                name = canonical(*match.groups()[:2])
                if name in found:
                    raise DpaError(
                        f"two files for {name}: {found[name]} and {path}; "
                        "keep the one to be used"
                    )
                found[name] = path
                sizes[path] = size
        if base == "reference.csv":
            references.append(path)
        if base.endswith(".zip") and "annotation" in base:
            archives.append(path)
    if not slides:
        raise DpaError(
            f"no slide of Camelyon16 under {os.fspath(source)}; their names are "
            "normal_001.tif, tumor_001.tif, test_001.tif, in any case and folder"
        )
    notes = [f"{path} is packed: unpack it" for path in archives if not annotations]
    return Layout(slides, annotations, masks, sizes, _read(references), notes)


def canonical(kind: str, number: str) -> str:
    """Returns the name of a slide as the data set's lists write it."""
    return f"{kind.replace('tumour', 'tumor')}_{int(number):03d}"


def _read(references: Sequence[str]) -> frozenset[str] | None:
    """Reads the challenge's table of test slides: name, Tumor or Normal, ..."""
    for path in references:
        with storage.local_copy(path) as local, open(local, newline="") as file:
            tumours = set()
            for row in csv.reader(file):
                match = re.fullmatch(r"test_?(\d{1,3})(\.tif)?", row[0].lower())
                if match and len(row) > 1 and row[1].strip().lower() == "tumor":
                    tumours.add(canonical("test", match[1]))
        if tumours:
            return frozenset(tumours)
    return None
