"""Makes NIH ChestX-ray14 in miniature: 24 images of 8 patients, in any layout."""

import csv
import functools
import gzip
import io
import pathlib
import tarfile
import zipfile
from collections.abc import Iterable

import numpy as np
from PIL import Image

# patient: (view, findings, age, sex) of each of its images; 6 to 8 are the test list
PATIENTS = {
    1: [("PA", "No Finding", 57, "M"), ("PA", "Mass|Nodule", 58, "M")],
    2: [("PA", "No Finding", 30, "F"), ("AP", "No Finding", 31, "F")] * 2,
    3: [("AP", "No Finding", 44, "F"), ("AP", "Hernia", 45, "F")],
    4: [("PA", "Pleural_Thickening", 70, "M"), ("AP", "Edema|Effusion", 70, "M")],
    5: [("PA", "No Finding", 20, "F"), ("PA", "No Finding", 22, "F")],
    6: [("PA", "No Finding", 61, "M"), ("AP", "No Finding", 61, "M")] * 2,
    7: [("PA", "Fibrosis", 33, "F"), ("AP", "Pneumonia", 34, "F")] * 2,
    8: [("PA", "No Finding", 9, "M"), ("AP", "Mass", 12, "M")] * 2,
}
ROWS = [
    (f"{patient:08d}_{number:03d}.png", findings, number, patient, age, sex, view)
    for patient, images in PATIENTS.items()
    for number, (view, findings, age, sex) in enumerate(images)
]
NAMES = [row[0] for row in ROWS]
LAYOUTS = ("flat", "images", "kaggle", "doubled", "archives", "zips", "mixed")


@functools.lru_cache
def png(name: str, size: int = 1024) -> bytes:
    """Returns a grey PNG that is another for each name, of coarse random squares."""
    rng = np.random.default_rng(int(name[:8]) * 1000 + int(name[9:12]))
    coarse = rng.integers(0, 256, (16, 16), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def published(name: str, equalize: bool = False) -> np.ndarray:
    """Returns the published preprocessing of `png(name)`, spelt out in Pillow."""
    from PIL import ImageOps

    bilinear = Image.Resampling.BILINEAR
    image = Image.open(io.BytesIO(png(name))).resize((300, 300), bilinear)
    image = image.crop((38, 38, 262, 262))
    if equalize:
        image = ImageOps.equalize(image)
    return np.asarray(image.resize((64, 64), bilinear))[:, :, None]


def write_tables(
    root: pathlib.Path,
    table: str = "Data_Entry_2017_v2020.csv",
    sex: str = "Patient Gender",
    age: str = "{}",
    suffix: str = "",
) -> None:
    """Writes the CSVs and lists; `suffix` is `.gz` to compress them."""
    root.mkdir(parents=True, exist_ok=True)
    head = [
        *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age"),
        *(sex, "View Position", "OriginalImage[Width", "Height]"),
        *("OriginalImagePixelSpacing[x", "y]"),
    ]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(head)
    for name, findings, number, patient, years, gender, view in ROWS:
        row = [name, findings, number, patient, age.format(years), gender, view]
        writer.writerow([*row, 2500, 2048 + number, 0.168, 0.168])
    boxes = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n" + (
        "00000001_001.png,Mass,256,512,128.0,64.0,,,\n"
        "00000007_000.png,Infiltrate,960,0,80,1024,,,\n"
    )
    files = {
        table: text.getvalue(),
        "BBox_List_2017.csv": boxes,
        "train_val_list.txt": "".join(f"{n}\n" for n in NAMES if n < "00000006"),
        "test_list.txt": "".join(f"{n}\n" for n in NAMES if n > "00000006"),
    }
    for name, content in files.items():
        raw = content.encode()
        compressed = gzip.compress(raw) if suffix else raw
        (root / (name + suffix)).write_bytes(compressed)


def write_images(
    root: pathlib.Path, layout: str = "images", names: Iterable[str] = NAMES
) -> None:
    """Writes images in a layout as found on disk."""
    names = list(names)
    half = len(names) // 2
    places = {
        "flat": [("", names)],
        "images": [("images", names)],
        "kaggle": [
            ("images_001/images", names[:half]),
            ("images_002/images", names[half:]),
        ],
        "doubled": [("images", names), ("images/images", names)],
        "archives": [],
        "zips": [],
        "mixed": [("images", names[:half])],
    }
    for folder, members in places[layout]:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in members:
            (root / folder / name).write_bytes(png(name))
    if layout == "archives":
        write_archive(
            root / "images_01.tar.gz", {f"images/{n}": png(n) for n in names[:half]}
        )
        write_archive(
            root / "images_02.tar.gz", {f"images/{n}": png(n) for n in names[half:]}
        )
    if layout == "zips":
        for number, part in enumerate((names[:half], names[half:]), 1):
            with zipfile.ZipFile(root / f"images_{number:03d}.zip", "w") as archive:
                for name in part:
                    archive.writestr(f"images/{name}", png(name))
    if layout == "mixed":
        write_archive(
            root / "images_02.tar.gz", {f"images/{n}": png(n) for n in names[half:]}
        )


def write_archive(path: pathlib.Path, members: dict[str, bytes]) -> None:
    """Writes a .tar.gz with members of any name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_lists(root: pathlib.Path, lists: dict[str, Iterable[str]]) -> pathlib.Path:
    """Writes lists such as `normal/train` below a folder and returns it."""
    for part, names in lists.items():
        path = root / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names))
    return root


def write_subset(root: pathlib.Path) -> pathlib.Path:
    """Writes the lists of a subset with its validation set and returns their folder."""
    write_lists(
        root / "subset",
        {
            "normal/train": ["00000001_000.png", "00000002_000.png"],
            # the table calls this one abnormal
            "normal/test": ["00000008_000.png", "00000008_001.png"],
            "anomaly/test": ["00000007_001.png", "00000007_000.png"],
        },
    )
    write_lists(
        root / "subset_validation",
        {
            "normal/train": ["00000001_000.png", "00000002_000.png"],
            "normal/val": ["00000003_000.png"],
            "normal/test": ["00000003_000.png"],
            "anomaly/test": ["00000004_000.png"],
        },
    )
    return root
