"""Annotations as ASAP writes them and as masks."""

import math
import time
import tracemalloc

import numpy as np
import pytest
import slide_factory

from dpa_jax.errors import DpaError
from dpa_jax.slides import annotations, reader

pytest.importorskip("shapely", reason="annotations need shapely")
slide_factory.need_reader()
box = slide_factory.box


@pytest.mark.parametrize(
    ("tumour", "hole"),
    [("_0", "_2"), ("_1", "_2"), ("Tumor", "Exclusion"), ("metastases", "normal")],
)
def test_holes_are_not_tumour(tmp_path, tumour, hole):
    polygons = [(tumour, box(0, 0, 100, 100)), (hole, box(20, 20, 10, 10))]
    path = slide_factory.asap(tmp_path / "a.xml", polygons)
    coverage, notes = annotations.from_xml(path)
    assert notes == []
    assert coverage(40, 40, 50) == 1
    assert coverage(15, 15, 20) == pytest.approx(1 - 100 / 400)
    assert coverage(90, 90, 20) == pytest.approx(0.25)
    assert coverage(200, 0, 10) == 0


def test_neighbouring_outlines_are_one_region(tmp_path):
    polygons = [("_0", box(0, 0, 50, 100)), ("_1", box(50, 0, 50, 100))]
    path = slide_factory.asap(tmp_path / "a.xml", polygons)
    coverage, _ = annotations.from_xml(path)
    assert coverage(30, 30, 40) == 1


def test_curved_outline_is_exact(tmp_path):
    angles = np.linspace(0, 2 * math.pi, 720, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1) * 100 + 100
    path = slide_factory.asap(tmp_path / "a.xml", [("_0", circle.tolist())])
    coverage, _ = annotations.from_xml(path)
    assert coverage(0, 0, 200) == pytest.approx(math.pi / 4, abs=1e-4)


def test_outline_that_crosses_itself_is_mended_and_named(tmp_path):
    bow_tie = [(0, 0), (10, 10), (10, 0), (0, 10)]
    path = slide_factory.asap(tmp_path / "tumor_001.xml", [("_0", bow_tie)])
    coverage, notes = annotations.from_xml(path)
    assert coverage(0, 0, 10) == pytest.approx(0.5)
    (note,) = notes
    assert "tumor_001.xml: the outline of Annotation 0 crosses" in note
    assert "Self-intersection[5 5]" in note


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([("artefact", box(0, 0, 9, 9))], "Annotation 0 is of the group 'artefact'"),
        ([("_0", [(0, 0), (1, 1)])], "outlines no tumour"),
        ([("_2", box(0, 0, 9, 9))], "outlines no tumour"),
        ([("_0", [(0, 0), ("x", 1), (2, 2)])], "Annotation 0 has a bad coordinate"),
        ([("_0", [(0, 0), ("nan", 1), (2, 2)])], "Annotation 0 has a bad coordinate"),
    ],
)
def test_bad_annotation_is_named(tmp_path, polygons, message):
    path = slide_factory.asap(tmp_path / "a.xml", polygons)
    with pytest.raises(DpaError, match=message) as error:
        annotations.from_xml(path)
    assert "a.xml" in str(error.value)


@pytest.mark.parametrize("group", ["_0", "None", "artefact"])
def test_a_stray_dot_is_left_out_and_named(tmp_path, group):
    polygons = [("Tumor", box(0, 0, 100, 100)), (group, [(500, 500)])]
    path = slide_factory.asap(tmp_path / "tumor_001.xml", polygons)
    coverage, notes = annotations.from_xml(path)
    assert coverage(0, 0, 100) == 1
    assert notes == [
        f"{path}: Annotation 1 has fewer than three points; it is left out"
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_an_xml_bomb_is_refused_before_it_grows(tmp_path, encoding):
    entities = "".join(
        f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "ha" * 50}">' for n in range(9)
    )
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [{entities}]>'
    (tmp_path / "a.xml").write_text(f"{text}<a>&e8;</a>", encoding)
    tracemalloc.start()
    with pytest.raises(DpaError, match=r"a\.xml .* document type"):
        annotations.from_xml(tmp_path / "a.xml")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**24


def test_file_that_is_no_xml_is_named(tmp_path):
    (tmp_path / "a.xml").write_text("<ASAP_Annotations><Annot")
    with pytest.raises(DpaError, match=r"a\.xml is no annotation"):
        annotations.from_xml(tmp_path / "a.xml")


@pytest.mark.parametrize(("tumour", "tissue"), [(2, 0), (255, 0), (2, 1)])
def test_mask_is_an_annotation(tmp_path, tumour, tissue):
    mask = np.full((512, 640), tissue, np.uint8)
    mask[:, :32] = 0
    mask[128:384, 128:384] = tumour
    slide_factory.write(tmp_path / "a.tif", np.zeros((512, 640, 3), np.uint8), levels=1)
    slide_factory.write(tmp_path / "mask.tif", mask)
    with (
        reader.open_slide(tmp_path / "a.tif") as slide,
        reader.open_slide(tmp_path / "mask.tif") as opened,
    ):
        coverage = annotations.from_mask(opened, slide)
        assert coverage(200, 200, 100) == 1
        assert coverage(64, 128, 128) == 0.5
        assert coverage(400, 200, 100) == 0


@pytest.mark.parametrize("inside", [0, 1])
def test_mask_that_does_not_say_what_is_tumour_is_refused(tmp_path, inside):
    mask = np.zeros((512, 640), np.uint8)
    mask[128:384, 128:384] = inside
    slide_factory.write(tmp_path / "a.tif", np.zeros((512, 640, 3), np.uint8), levels=1)
    slide_factory.write(tmp_path / "mask.tif", mask)
    with (
        reader.open_slide(tmp_path / "a.tif") as slide,
        reader.open_slide(tmp_path / "mask.tif") as opened,
    ):
        with pytest.raises(DpaError, match=r"mask\.tif has no value above 1"):
            annotations.from_mask(opened, slide)


def test_mask_of_another_size_is_named(tmp_path):
    slide_factory.write(tmp_path / "a.tif", np.zeros((512, 640, 3), np.uint8))
    slide_factory.write(tmp_path / "mask.tif", np.zeros((256, 320), np.uint8))
    with (
        reader.open_slide(tmp_path / "a.tif") as slide,
        reader.open_slide(tmp_path / "mask.tif") as opened,
    ):
        with pytest.raises(DpaError, match=r"mask\.tif has 320x256 .*a\.tif 640x512"):
            annotations.from_mask(opened, slide)


def star(points):
    """An outline that jumps about at random: every second edge crosses another."""
    return np.random.default_rng(0).uniform(0, 1000, (points, 2)).tolist()


def grid(lines):
    """Thin outlines across each other, none of which crosses itself."""
    across = [("_0", box(0, 10 * i, 10 * lines, 1)) for i in range(lines)]
    return across + [("_0", box(10 * i, 0, 1, 10 * lines)) for i in range(lines)]


@pytest.mark.parametrize("polygons", [[("_0", star(3_000))], grid(400)])
def test_outlines_that_would_take_hours_are_refused_at_once(tmp_path, polygons):
    path = slide_factory.asap(tmp_path / "a.xml", polygons)
    start = time.process_time()
    with pytest.raises(DpaError, match=r"a\.xml has outlines of .* too often"):
        annotations.from_xml(path)
    assert time.process_time() - start < 2


def test_an_outline_of_fifty_thousand_points_is_none_too_many(tmp_path):
    angles = np.linspace(0, 2 * math.pi, 50_000, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1) * 10_000 + 10_000
    path = slide_factory.asap(tmp_path / "a.xml", [("_0", circle.tolist())])
    coverage, notes = annotations.from_xml(path)
    assert notes == []
    assert coverage(0, 0, 20_000) == pytest.approx(math.pi / 4, abs=1e-4)
