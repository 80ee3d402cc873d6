"""What NIH ChestX-ray14's tables say about each image."""

import collections
import csv
import dataclasses
import io
import pathlib
import re
import zlib
from importlib.resources.abc import Traversable

from dpa_jax.errors import DpaError

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
SIDE = 1024  # pixels, of every image as distributed
_LARGEST = 2**26  # bytes of a table; NIH's have less than 2**23

# Column names differ between releases in case, brackets and the last word.
_COLUMNS = {
    "imageindex": "image_id",
    "findinglabels": "findings",
    "followup": "follow_up",
    "patientid": "patient_id",
    "patientage": "age",
    "patientgender": "sex",
    "patientsex": "sex",
    "viewposition": "view",
    "originalimagewidth": "original_width",
    "originalimageheight": "original_height",
    "height": "original_height",
}
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


@dataclasses.dataclass(frozen=True)
class Box:
    """Where a radiologist saw a finding, as fractions of the whole image."""

    finding: str
    ymin: float
    xmin: float
    ymax: float
    xmax: float


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the table: an image and its patient.

    Attributes have the names of the data set's features.

    Attributes:
      image_id: the file name, such as `00000001_000.png`.
      findings: those of `FINDINGS` that the report names; none if it is normal.
      follow_up: the number of earlier examinations of the patient.
      patient_id: NIH's number of the patient.
      age: in years.
      sex: `F` or `M`.
      view: `PA` or `AP`.
      original_width: of the radiograph before NIH resized it, in pixels.
      original_height: the same.
      boxes: where findings are, known for 880 images.
    """

    image_id: str
    findings: tuple[str, ...]
    follow_up: int
    patient_id: int
    age: float
    sex: str
    view: str
    original_width: int
    original_height: int
    boxes: tuple[Box, ...] = ()


def read_entries(
    table: pathlib.Path, boxes: pathlib.Path | None = None
) -> dict[str, Entry]:
    """Reads `Data_Entry_2017.csv` or `_v2020.csv`, gzipped or not.

    Args:
      table: the file.
      boxes: `BBox_List_2017.csv`, or None.

    Returns:
      The entries by image id, in the order of the ids.

    Raises:
      DpaError: naming the file, the line and the value that cannot be used.
    """
    located = _read_boxes(boxes) if boxes else {}
    rows = csv.DictReader(io.StringIO(_text(table), newline=""), restval="")
    header = rows.fieldnames or ()
    columns = [
        _COLUMNS.get(re.sub("[^a-z]", "", name.lower()), name) for name in header
    ]
    absent = sorted(set(_COLUMNS.values()) - set(columns))
    if absent:
        raise DpaError(
            f"{table} has no column for {', '.join(absent)}; it has "
            f"{', '.join(header) or 'no line'}: is it Data_Entry_2017.csv as "
            "distributed by NIH?"
        )
    rows.fieldnames = columns
    entries: dict[str, Entry] = {}
    for fields in rows:
        line = rows.line_num
        try:
            entry = _entry(fields, tuple(located.get(fields["image_id"], ())))
        except ValueError as error:
            raise DpaError(f"{table}, line {line}: {error}") from None
        if entry.image_id in entries:
            raise DpaError(f"{table}, line {line}: {entry.image_id} is there twice")
        entries[entry.image_id] = entry
    if not entries:
        raise DpaError(f"{table} has no rows")
    return dict(sorted(entries.items()))


def read_names(path: Traversable) -> list[str]:
    """Reads a list of image ids, one a line, in its order.

    Raises:
      DpaError: the file holds no name, or one twice.
    """
    names = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not names:
        raise DpaError(f"{path} lists no image")
    name, times = collections.Counter(names).most_common(1)[0]
    if times > 1:
        raise DpaError(f"{path} lists {name} {times} times")
    return names


def _entry(fields: dict[str, str], boxes: tuple[Box, ...]) -> Entry:
    labels = [label.strip() for label in fields["findings"].split("|")]
    findings = () if labels == ["No Finding"] else tuple(map(_finding, labels))
    age = re.fullmatch(r"(\d+)([YMWD]?)", fields["age"].strip())
    if age is None:
        raise ValueError(f"the age {fields['age']!r} is not a number of years")
    for name, options in (("sex", ("F", "M")), ("view", ("PA", "AP"))):
        if fields[name] not in options:
            raise ValueError(
                f"the {name} is {fields[name]!r}, not {' or '.join(options)}"
            )
    numbers = ("follow_up", "patient_id", "original_width", "original_height")
    return Entry(
        image_id=fields["image_id"],
        findings=findings,
        age=int(age[1]) * _YEARS[age[2]],
        sex=fields["sex"],
        view=fields["view"],
        boxes=boxes,
        **{name: _integer(fields, name) for name in numbers},
    )


def _integer(fields: dict[str, str], name: str) -> int:
    try:
        return int(fields[name])
    except ValueError:
        raise ValueError(f"the {name} {fields[name]!r} is not a number") from None


def _finding(label: str) -> str:
    name = {"Infiltrate": "Infiltration"}.get(label, label.replace(" ", "_"))
    if name not in FINDINGS:
        raise ValueError(f"there is no finding {label!r}")
    return name


def _read_boxes(path: pathlib.Path) -> dict[str, list[Box]]:
    boxes: dict[str, list[Box]] = {}
    rows = csv.reader(io.StringIO(_text(path), newline=""))
    next(rows, None)
    for row in filter(None, rows):
        try:
            x, y, width, height = (float(value) for value in row[2:6])
            corners = (y, x, y + height, x + width)
            # A few boxes reach a pixel over the edge.
            limits = (min(max(c / SIDE, 0.0), 1.0) for c in corners)
            boxes.setdefault(row[0], []).append(Box(_finding(row[1]), *limits))
        except (IndexError, ValueError) as error:
            raise DpaError(f"{path}, line {rows.line_num}: {error}") from None
    return boxes


def _text(path: Traversable) -> str:
    try:
        raw = path.read_bytes()
        if path.name.endswith(".gz"):
            unpacking = zlib.decompressobj(wbits=31)  # of gzip
            raw = unpacking.decompress(raw, _LARGEST)
            if not unpacking.eof:
                raise EOFError(f"it is cut off, or of more than {_LARGEST:,} bytes")
        return raw.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DpaError(f"{path} cannot be read: {error}") from None
