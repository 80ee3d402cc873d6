"""Made-up trees of the layouts in which public data sets are distributed."""

import collections
import csv
import json
import pathlib

import numpy as np
import pytest
import run_factory
from PIL import Image

from dpa_jax.data import Preprocessing, layouts, load, manifest
from dpa_jax.errors import DpaError, UsageError


def draw(path, value=0):
    """Writes a small image, made of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def draw_all(folder, *names):
    for name in names:
        draw(folder / name)


def written(layout, source):
    """Writes a manifest beside its source and returns its rows."""
    out = source.parent / "out" / "set.csv"
    out.parent.mkdir()
    layouts.write(layout, source, out)
    manifest.read(str(out))  # all files are there, relative to the manifest
    with open(out, newline="") as file:
        return list(csv.DictReader(file))


def counts(rows):
    return dict(collections.Counter((row["split"], row["label"]) for row in rows))


def by_name(rows, column):
    return {pathlib.Path(row["path"]).name: row[column] for row in rows}


def medianomaly(source):
    names = {
        "train": {"0": ["a.png", "b.png", "c.png"], "unlabeled": {"0": ["x.png"]}},
        "test": {"0": ["d.png"], "1": ["e.png", "f.png"]},
    }
    draw_all(source / "images", *(f"{letter}.png" for letter in "abcdef"))
    (source / "data.json").write_text(json.dumps(names))
    return names


def test_medianomaly_takes_the_lists_of_both_classes(tmp_path):
    medianomaly(tmp_path / "RSNA")
    rows = written("medianomaly", tmp_path / "RSNA")
    assert counts(rows) == {
        ("train", "normal"): 3,
        ("test", "normal"): 1,
        ("test", "abnormal"): 2,
    }
    assert by_name(rows, "label")["e.png"] == "abnormal"
    assert list(rows[0]) == ["path", "label", "split"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "data.json: not an object of names and values"),
        ('{"train": ["a.png"]}', "not lists of names"),
        ('{"train": {"0": "a.png"}}', "not lists of names"),
        ('{"train": {"0": [1]}}', "not lists of names"),
        ("{", "data.json: not JSON"),
        ('{"train": {"0": ["../../a.png"]}}', "'../../a.png', which is not in images"),
        ('{"train": {"0": ["/etc/hosts"]}}', "'/etc/hosts', which is not in images"),
        ('{"train": {"0": ["z.png"]}}', "z.png is missing"),
        ('{"train": {"2": ["z.png"]}}', "holds no images in the layout medianomaly"),
    ],
)
def test_medianomaly_refuses_other_lists(tmp_path, content, message):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(DpaError, match=message):
        layouts.write("medianomaly", tmp_path, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_medianomaly_without_its_list_is_refused(tmp_path):
    with pytest.raises(DpaError, match="data.json: cannot be read: No such file"):
        layouts.write("medianomaly", tmp_path, tmp_path / "out.csv")


def isic(source, part, diagnoses):
    stem = source / f"ISIC2018_Task3_{part}"
    lines = ["image,MEL,NV,BCC"]
    for name, diagnosis in diagnoses.items():
        draw(pathlib.Path(f"{stem}_Input") / f"{name}.jpg")
        flags = [f"{float(diagnosis == d)}" for d in ("MEL", "NV", "BCC")]
        lines.append(",".join([name, *flags]))
    folder = pathlib.Path(f"{stem}_GroundTruth")
    folder.mkdir()
    (folder / f"{stem.name}_GroundTruth.csv").write_text("\n".join(lines))


def test_of_isic_nevi_are_normal_and_other_diagnoses_are_findings(tmp_path):
    source = tmp_path / "ISIC2018_Task3"
    isic(source, "Training", {"I_1": "NV", "I_2": "MEL", "I_3": "NV"})
    isic(source, "Test", {"I_4": "NV", "I_5": "BCC"})
    rows = written("medianomaly-isic", source)
    assert counts(rows) == {
        ("train", "normal"): 2,
        ("train_abnormal", "abnormal"): 1,
        ("test", "normal"): 1,
        ("test", "abnormal"): 1,
    }
    assert by_name(rows, "findings") == {
        "I_1.jpg": "",
        "I_2.jpg": "MEL",
        "I_3.jpg": "",
        "I_4.jpg": "",
        "I_5.jpg": "BCC",
    }


def test_of_isic_the_validation_images_are_taken_if_they_are_there(tmp_path):
    source = tmp_path / "ISIC2018_Task3"
    for number, part in enumerate(("Training", "Validation", "Test")):
        isic(source, part, {f"I_{number}": "NV"})
    assert [row["split"] for row in written("medianomaly-isic", source)] == [
        "train",
        "val",
        "test",
    ]


def test_of_isic_an_image_without_a_diagnosis_is_refused(tmp_path):
    isic(tmp_path, "Training", {"I_1": "unknown"})
    with pytest.raises(DpaError, match="not an image and one diagnosis"):
        layouts.write("medianomaly-isic", tmp_path, tmp_path / "out.csv")


def test_of_brats_volumes_are_groups_and_annotations_masks(tmp_path):
    source = tmp_path / "BraTS2021"
    draw_all(source / "train", "V1_flair_70.png", "V1_flair_71.png", "V2_flair_70.png")
    draw_all(source / "test/normal", "V3_flair_70.png")
    draw_all(source / "test/tumor", "V3_flair_80.png", "V4_flair_75.png")
    draw_all(source / "test/annotation", "V3_seg_80.png", "V4_seg_75.png")
    rows = written("medianomaly-brats", source)
    assert counts(rows) == {
        ("train", "normal"): 3,
        ("test", "normal"): 1,
        ("test", "abnormal"): 2,
    }
    assert by_name(rows, "group")["V3_flair_80.png"] == "V3"
    masks = by_name(rows, "mask")
    assert masks["V3_flair_70.png"] == ""
    assert masks["V4_flair_75.png"].endswith("annotation/V4_seg_75.png")


def test_of_brats_a_tumour_without_annotation_is_refused(tmp_path):
    draw_all(tmp_path / "train", "V1_flair_70.png")
    draw_all(tmp_path / "test/normal", "V3_flair_70.png")
    draw_all(tmp_path / "test/tumor", "V3_flair_80.png")
    with pytest.raises(DpaError, match="annotation/V3_seg_80.png is missing"):
        layouts.write("medianomaly-brats", tmp_path, tmp_path / "out.csv")


BMAD = {("train", "normal"): 2, ("val", "normal"): 1, ("val", "abnormal"): 1}


@pytest.mark.parametrize("val", ["valid", "val"])
@pytest.mark.parametrize("ungood", ["Ungood", "ungood"])
def test_bmad_without_masks(tmp_path, val, ungood):
    source = tmp_path / "camelyon16_256"
    draw_all(source, "train/good/1000.png", "train/good/1001.png")
    draw_all(source, f"{val}/good/1080.png", f"{val}/{ungood}/1000.png")
    draw_all(source, "test/good/1000.png", f"test/{ungood}/100.png")
    rows = written("bmad", source)
    assert counts(rows) == {
        **BMAD,
        ("test", "normal"): 1,
        ("test", "abnormal"): 1,
    }
    assert "mask" not in rows[0] and "group" not in rows[0]


@pytest.mark.parametrize("nesting", ["{kind}/{what}", "{what}/{kind}"])
@pytest.mark.parametrize("label", ["label", "anomaly_mask"])
def test_bmad_never_takes_masks_for_images(tmp_path, nesting, label):
    source = tmp_path / "BraTS2021_slice"
    draw_all(source, "train/good/00003_60.png", "train/good/00003_61.png")
    for split, volume in (("valid", "00100"), ("test", "00002")):
        for kind in ("good", "Ungood"):
            for what in ("img", label):
                folder = nesting.format(kind=kind, what=what)
                draw(source / split / folder / f"{volume}_{len(kind)}.png")
    rows = written("bmad", source)
    assert counts(rows) == {
        **BMAD,
        ("test", "normal"): 1,
        ("test", "abnormal"): 1,
    }
    assert not any(label in row["path"] for row in rows)
    masks = [row["mask"] for row in rows if row["label"] == "abnormal"]
    assert [label in pathlib.Path(mask).parts for mask in masks] == [True, True]
    assert not any(row["mask"] for row in rows if row["label"] == "normal")
    assert by_name(rows, "group")["00002_6.png"] == "00002"


def test_bmad_refuses_a_folder_that_it_does_not_know(tmp_path):
    draw_all(tmp_path, "train/good/1.png", "valid/good/2.png", "test/good/3.png")
    draw(tmp_path / "test/Ungood/bodymask/4.png")
    with pytest.raises(DpaError, match="bodymask/4.png: images of test belong in"):
        layouts.write("bmad", tmp_path, tmp_path / "out.csv")


def test_bmad_refuses_a_set_without_its_splits(tmp_path):
    draw(tmp_path / "train/good/1.png")
    with pytest.raises(DpaError, match="holds no folder valid or val"):
        layouts.write("bmad", tmp_path, tmp_path / "out.csv")


def test_of_mvtec_defects_are_findings_with_masks(tmp_path):
    source = tmp_path / "bottle"
    draw_all(source, "train/good/000.png", "train/good/001.png", "test/good/000.png")
    draw_all(source, "test/broken_large/000.png", "test/contamination/000.png")
    draw_all(source / "ground_truth", "broken_large/000_mask.png")
    draw_all(source / "ground_truth", "contamination/000_mask.png")
    rows = written("mvtec", source)
    assert counts(rows) == {
        ("train", "normal"): 2,
        ("test", "normal"): 1,
        ("test", "abnormal"): 2,
    }
    found = {row["findings"]: pathlib.Path(row["mask"]).parts[-2:] for row in rows}
    assert found["contamination"] == ("contamination", "000_mask.png")


def test_of_oct2017_patients_are_groups_and_classes_findings(tmp_path):
    source = tmp_path / "OCT2017"
    draw_all(source, "train/NORMAL/NORMAL-12-1.jpeg", "train/NORMAL/NORMAL-12-2.jpeg")
    draw_all(source, "train/CNV/CNV-34-1.jpeg", "val/DME/DME-56-1.jpeg")
    draw_all(source, "test/NORMAL/NORMAL-78-1.jpeg", "test/DRUSEN/DRUSEN-90-1.jpeg")
    rows = written("oct2017", source)
    assert counts(rows) == {
        ("train", "normal"): 2,
        ("train_abnormal", "abnormal"): 1,
        ("val", "abnormal"): 1,
        ("test", "normal"): 1,
        ("test", "abnormal"): 1,
    }
    assert by_name(rows, "group")["NORMAL-12-2.jpeg"] == "12"
    assert by_name(rows, "findings")["DRUSEN-90-1.jpeg"] == "DRUSEN"


@pytest.mark.parametrize(
    ("name", "group", "finding"),
    [
        ("NORMAL/IM-0115-0001.jpeg", "IM-0115", ""),
        ("NORMAL/IM-0500-0001-0002.jpeg", "IM-0500", ""),
        ("NORMAL/NORMAL2-IM-1427-0001.jpeg", "NORMAL2-IM-1427", ""),
        ("NORMAL/NORMAL-1003233-0001.jpeg", "1003233", ""),
        ("PNEUMONIA/person1946_bacteria_4874.jpeg", "person1946", "bacteria"),
        ("PNEUMONIA/person1_virus_6.jpeg", "person1", "virus"),
        ("PNEUMONIA/BACTERIA-1008087-0001.jpeg", "1008087", "bacteria"),
        ("PNEUMONIA/VIRUS-1000234-0003.jpeg", "1000234", "virus"),
    ],
)
def test_of_chest_xrays_names_hold_patient_and_germ(tmp_path, name, group, finding):
    source = tmp_path / "chest_xray"
    draw_all(source, f"test/{name}", "train/NORMAL/IM-0001-0001.jpeg")
    draw(source / "test/PNEUMONIA/person7_virus_9.jpeg")
    rows = written("chest-xray", source)
    assert by_name(rows, "group")[pathlib.Path(name).name] == group
    assert by_name(rows, "findings")[pathlib.Path(name).name] == finding


@pytest.mark.parametrize(
    ("layout", "name", "message"),
    [
        ("chest-xray", "train/NORMAL/scan.jpeg", "holds no patient"),
        ("chest-xray", "train/COVID/IM-1-1.jpeg", "belong in NORMAL, PNEUMONIA"),
        ("oct2017", "train/NORMAL/scan.jpeg", "not CLASS-PATIENT-NUMBER"),
        ("oct2017", "train/NORMAL/more/NORMAL-1-1.jpeg", "belong in CNV, DME"),
    ],
)
def test_what_does_not_belong_to_a_layout_is_refused(tmp_path, layout, name, message):
    draw(tmp_path / name)
    with pytest.raises(DpaError, match=message):
        layouts.write(layout, tmp_path, tmp_path / "out.csv")


def test_patients_in_several_splits_are_named():
    lines = manifest.describe(
        ["train", "train", "test"], ["normal", "normal", "abnormal"], ["7", "8", "7"]
    )
    assert lines == [
        "train: 2 images, 2 normal, 0 abnormal, 2 groups",
        "test: 1 images, 0 normal, 1 abnormal, 1 groups",
        "warning: 1 groups are in several splits, such as 7 in test, train",
    ]


def test_an_unknown_layout_names_those_there_are(tmp_path):
    with pytest.raises(UsageError, match="no layout bamd; there are medianomaly, "):
        layouts.write("bamd", tmp_path, tmp_path / "out.csv")


def test_paths_hold_where_folders_are_links(tmp_path):
    medianomaly(tmp_path / "far" / "RSNA")
    (tmp_path / "near" / "deep").mkdir(parents=True)
    (tmp_path / "near" / "deep" / "RSNA").symlink_to(tmp_path / "far" / "RSNA")
    (tmp_path / "out").symlink_to(tmp_path / "near" / "deep")
    out = tmp_path / "out" / "rsna.csv"
    layouts.write("medianomaly", tmp_path / "out" / "RSNA", out)
    assert len(manifest.read(str(out)).paths) == 6


def test_a_manifest_is_a_csv(tmp_path):
    medianomaly(tmp_path)
    with pytest.raises(UsageError, match="must be called FILE.csv, not .*rsna.txt"):
        layouts.write("medianomaly", tmp_path, tmp_path / "rsna.txt")


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(DpaError, match="there is no folder .*RSNA"):
        layouts.write("medianomaly", tmp_path / "RSNA", tmp_path / "rsna.csv")


def test_the_verb_writes_a_manifest_that_loads_by_split(tmp_path):
    medianomaly(tmp_path)
    out = tmp_path / "rsna.csv"
    command = ("prepare", "layout", "medianomaly", f"--source={tmp_path}")
    code, text, _ = run_factory.call(*command, f"--out={out}")
    assert code == 0
    assert text.splitlines()[0] == "train: 3 images, 3 normal, 0 abnormal"
    images = load(f"{out}:test", Preprocessing(1, 8))
    assert images.labels.tolist() == [0, 1, 1]
    code, _, error = run_factory.call(*command, f"--out={out}")
    assert code == 1 and "already there" in error


def test_every_layout_is_named_in_the_help():
    _, text, _ = run_factory.call("prepare", "layout", "--help")
    words = text.replace(",", " ").split()
    assert set(layouts.LAYOUTS) <= set(words)


def test_a_new_layout_is_a_function_that_yields_rows(tmp_path, monkeypatch):
    def own(source):
        for kind in ("normal", "polyp"):
            for i, path in enumerate(sorted((source / kind).iterdir())):
                yield layouts.Row(path, "test" if i < 1 else "train", kind == "polyp")

    draw_all(tmp_path / "own", "normal/a.png", "normal/b.png", "polyp/c.png")
    monkeypatch.setitem(layouts.LAYOUTS, "own", own)
    assert counts(written("own", tmp_path / "own")) == {
        ("test", "normal"): 1,
        ("train", "normal"): 1,
        ("test", "abnormal"): 1,
    }
