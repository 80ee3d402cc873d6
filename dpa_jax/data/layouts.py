"""Writes manifests of public data sets that lie in the folders they are distributed in.

A layout is a function that yields the rows of a folder, and its line in `LAYOUTS`.
Normal training images are the split train; training images of a disease are the split
train_abnormal, of which tuning may take a few.
"""

import csv
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator

from dpa_jax import errors
from dpa_jax.data import listing, manifest
from dpa_jax.data.manifest import Row
from dpa_jax.storage import json_files


def medianomaly(source: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of RSNA, VinCXR, BrainTumor or LAG as MedIAnomaly has them.

    `data.json` lists by split the names in `images` of class 0, normal, and 1. Lists of
    other names, such as those of unlabelled images, are no part of the benchmark.
    """
    listing = _read_json(source / "data.json")
    for split, classes in listing.items():
        for key in ("0", "1"):
            for name in classes.get(key, ()):
                path = source / "images" / name
                if ".." in path.parts or source not in path.parents:
                    raise errors.DpaError(
                        f"{source}/data.json lists {name!r}, which is not in images"
                    )
                yield Row(path, split, key == "1")


def medianomaly_isic(source: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of ISIC 2018, task 3, as distributed: nevi (NV) are normal.

    The folders `ISIC2018_Task3_{Training,Validation,Test}_Input` hold the images, those
    in `_GroundTruth` a table with a column of 0 and 1 for each diagnosis.
    """
    for part, split in (("Training", "train"), ("Validation", "val"), ("Test", "test")):
        stem = f"ISIC2018_Task3_{part}"
        table = source / f"{stem}_GroundTruth" / f"{stem}_GroundTruth.csv"
        if part == "Validation" and not table.exists():
            continue  # MedIAnomaly's copy is without it
        with _opened(table) as file:
            for row in csv.DictReader(file):
                name = row.pop("image", None)
                found = [k for k, value in row.items() if value in ("1", "1.0")]
                if not name or len(found) != 1:
                    raise errors.DpaError(f"{table}: not an image and one diagnosis")
                path = source / f"{stem}_Input" / f"{name}.jpg"
                abnormal = found != ["NV"]
                yield Row(path, split, abnormal, findings=found[0] * abnormal)


def medianomaly_brats(source: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of MedIAnomaly's BraTS2021: slices with masks of the tumour.

    `train`, `test/normal` and `test/tumor` hold VOLUME_flair_SLICE, `test/annotation`
    the masks VOLUME_seg_SLICE. A group is what stands before `_flair`.
    """
    for folder, split in (("train", "train"), ("test/normal", "test")):
        for path in _images(source / folder):
            yield Row(path, split, False, path.stem.partition("_flair")[0])
    for path in _images(source / "test/tumor"):
        mask = source / "test/annotation" / path.name.replace("flair", "seg")
        yield Row(path, "test", True, path.stem.partition("_flair")[0], mask=mask)


def bmad(source: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of one of BMAD's six sets, or of a set in its folders.

    `train`, `valid` or `val`, and `test` hold `good` and `Ungood`; in these, or above
    them, images may lie in `img` and masks of the same name in `label` (in some copies
    `anomaly_mask`). A name of two numbers is VOLUME_SLICE, the volume being the group.
    """
    masks = ("label", "anomaly_mask")
    for split, names in (
        ("train", ["train"]),
        ("val", ["valid", "val"]),
        ("test", ["test"]),
    ):
        top = next((source / n for n in names if (source / n).is_dir()), None)
        if top is None:
            raise errors.DpaError(f"{source} holds no folder {' or '.join(names)}")
        for path in _images(top):
            within = path.relative_to(top).parent.parts
            kinds = {name.lower() for name in within}
            if kinds & set(masks):
                continue
            if kinds not in ({"good"}, {"ungood"}, {"good", "img"}, {"ungood", "img"}):
                raise errors.DpaError(
                    f"{path}: images of {split} belong in good and Ungood, in "
                    "these or in img"
                )
            mask = ""
            if "ungood" in kinds and "img" in kinds:
                for name in masks:
                    mirrored = [name if n.lower() == "img" else n for n in within]
                    if top.joinpath(*mirrored).is_dir():
                        mask = top.joinpath(*mirrored, path.name)
            group = path.stem.partition("_")[0]
            numbers = re.fullmatch(r"\d+_\d+", path.stem)
            yield Row(
                path, split, "ungood" in kinds, group if numbers else "", "", mask
            )


def mvtec(source: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of one category of MVTec AD, such as its folder `bottle`.

    `train/good`, `test/good` and `test/DEFECT` hold the images, `ground_truth/DEFECT`
    the masks, called NAME_mask.png.
    """
    for path in _images(source / "train/good"):
        yield Row(path, "train", False)
    for path in _images(source / "test"):
        defect = path.parent.name
        mask = source / "ground_truth" / defect / f"{path.stem}_mask.png"
        if defect == "good":
            yield Row(path, "test", False)
        else:
            yield Row(path, "test", True, findings=defect, mask=mask)


def oct2017(source: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of OCT2017 (Kermany et al., 2018).

    `train`, `val` and `test` hold NORMAL, CNV, DME and DRUSEN with files called
    CLASS-PATIENT-NUMBER.
    """
    for split, kind, path in _classes(source, {"NORMAL", "CNV", "DME", "DRUSEN"}):
        patient = re.fullmatch(r"[A-Z]+-(\w+)-\d+", path.stem)
        if not patient:
            raise errors.DpaError(f"{path}: the name is not CLASS-PATIENT-NUMBER")
        abnormal = kind != "NORMAL"
        yield Row(path, split, abnormal, patient[1], kind * abnormal)


def chest_xray(source: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of the pediatric chest X-rays (Kermany et al., 2018).

    `train`, `test` and, in Kaggle's copy, `val` hold NORMAL and PNEUMONIA. Files are
    called KIND-PATIENT-NUMBER, or in Kaggle's copy IM-PATIENT-NUMBER,
    NORMAL2-IM-PATIENT-NUMBER and personPATIENT_KIND_NUMBER.
    """
    names = re.compile(
        r"(person\d+)_(bacteria|virus)_\d+|((?:NORMAL2-)?IM-\d+)-\d+(?:-\d+)?|"
        r"(NORMAL|BACTERIA|VIRUS)-(\w+)-\d+"
    )
    for split, kind, path in _classes(source, {"NORMAL", "PNEUMONIA"}):
        found = names.fullmatch(path.stem)
        if not found:
            raise errors.DpaError(f"{path}: the name holds no patient")
        person, germ, image, other, patient = found.groups()
        abnormal = kind != "NORMAL"
        finding = (germ or other or "").lower() * abnormal
        yield Row(path, split, abnormal, person or image or patient, finding)


LAYOUTS: dict[str, Callable[[pathlib.Path], Iterator[Row]]] = {
    "medianomaly": medianomaly,
    "medianomaly-isic": medianomaly_isic,
    "medianomaly-brats": medianomaly_brats,
    "bmad": bmad,
    "mvtec": mvtec,
    "oct2017": oct2017,
    "chest-xray": chest_xray,
}


def write(name: str, source: str | os.PathLike, out: str | os.PathLike) -> list[str]:
    """Writes the manifest of a data set.

    Args:
      name: of a layout, one of `LAYOUTS`.
      source: the folder of the data set.
      out: the CSV file; see `manifest.write`.

    Returns:
      Lines on what it lists; see `manifest.describe`.

    Raises:
      UsageError: there is no such layout, or `out` is no .csv.
      DpaError: the folder does not have it, or an image or a mask is missing.
    """
    if name not in LAYOUTS:
        raise errors.UsageError(
            f"there is no layout {name}; there are {', '.join(LAYOUTS)}"
        )
    if not os.path.isdir(source):
        raise errors.DpaError(f"there is no folder {source}")
    rows = [
        dataclasses.replace(row, split="train_abnormal")
        if row.split == "train" and row.is_abnormal
        else row
        for row in LAYOUTS[name](pathlib.Path(source))
    ]
    if not rows:
        raise errors.DpaError(f"{source} holds no images in the layout {name}")
    return manifest.write(rows, out)


def _classes(
    source: pathlib.Path, kinds: set[str]
) -> Iterator[tuple[str, str, pathlib.Path]]:
    """Yields split, class and path of images in folders SPLIT/CLASS."""
    for split in ("train", "val", "test"):
        if split == "val" and not (source / split).is_dir():
            continue
        for path in _images(source / split):
            if path.parent.name not in kinds or path.parent.parent.name != split:
                raise errors.DpaError(
                    f"{path}: images of {split} belong in {', '.join(sorted(kinds))}"
                )
            yield split, path.parent.name, path


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    return [pathlib.Path(path) for path in listing.list_images(folder)]


def _opened(path: pathlib.Path):
    try:
        return open(path, newline="", encoding="utf-8-sig")
    except OSError as error:
        raise errors.DpaError(f"{path}: cannot be read: {error.strerror}") from error


def _read_json(path: pathlib.Path) -> dict[str, dict[str, list[str]]]:
    with _opened(path) as file:
        try:
            found = json_files.parse(file.read(), {})
        except ValueError as error:
            raise errors.DpaError(f"{path}: {error}") from error
    parts = list(found.values()) if isinstance(found, dict) else [None]
    lists = [
        part.get(key, []) if isinstance(part, dict) else None
        for part in parts
        for key in ("0", "1")
    ]
    if not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in lists
    ):
        raise errors.DpaError(f"{path}: not lists of names by split and class")
    return found
