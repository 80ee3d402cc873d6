"""Which patches are cut: layouts, the rule, the published lists."""

import collections
import struct
import zipfile

import numpy as np
import pytest
import slide_factory

from dpa_jax.data import filesystems
from dpa_jax.datasets import camelyon16_layout as layouts
from dpa_jax.datasets import camelyon16_lists as lists
from dpa_jax.datasets import camelyon16_patches as patches
from dpa_jax.datasets import published_splits
from dpa_jax.errors import DpaError, UsageError
from dpa_jax.slides import annotations, stain

slide_factory.need_reader()
pytest.importorskip("shapely", reason="annotations need shapely")
box = slide_factory.box

NAMES = ["normal_001", "test_001", "test_002", "tumor_009"]


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


CHALLENGE = (
    "training/normal/normal_001.tif",
    "training/tumor/tumor_009.tif",
    "training/lesion_annotations/tumor_009.xml",
    "testing/images/test_001.tif",
    "testing/images/test_002.tif",
    "testing/lesion_annotations/test_002.xml",
)
SHOUTED = tuple(name.upper() for name in CHALLENGE)
OLD = (
    "TrainingData/Train_Normal/Normal_001.tif",
    "TrainingData/Train_Tumor/Tumor_009.tif",
    "TrainingData/Ground_Truth/XML/Tumor_009.xml",
    "Testset/Images/Test_001.tif",
    "Testset/Images/Test_002.tif",
    "Testset/Ground_Truth/Annotations/Test_002.xml",
)
FLAT = (
    "images/normal_001.tif",
    "images/tumor_009.tif",
    "images/test_001.tif",
    "images/test_002.tif",
    "annotations/tumor_009.xml",
    "annotations/test_002.xml",
    "background_tissue/normal_001.tif",
    "evaluation/evaluation_masks/test_002_mask.tif",
)


@pytest.mark.parametrize("files", [CHALLENGE, SHOUTED, OLD, FLAT])
def test_every_layout_is_found(tmp_path, files):
    touch(tmp_path, *files)
    found = layouts.find(tmp_path)
    assert sorted(found.slides) == NAMES
    assert sorted(found.annotations) == ["test_002", "tumor_009"]
    assert not found.masks
    assert [name for name in NAMES if found.has_tumour(name)] == [
        *("test_002", "tumor_009")
    ]


def test_masks_are_found(tmp_path):
    touch(tmp_path, "images/Tumor_009.tif", "masks/Tumor_009_Mask.tif")
    assert list(layouts.find(tmp_path).masks) == ["tumor_009"]


def test_reference_table_says_which_test_slides_have_a_tumour(tmp_path):
    touch(tmp_path, *CHALLENGE)
    (tmp_path / "testing/reference.csv").write_text(
        "test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\n"
    )
    found = layouts.find(tmp_path)
    assert found.has_tumour("test_001") and not found.has_tumour("test_002")


AWS = (
    *("images/normal_001.tif", "images/tumor_009.tif"),
    *("images/test_001.tif", "images/test_002.tif"),
    *("masks/tumor_009_mask.tif", "masks/test_001_mask.tif", "masks/test_002_mask.tif"),
)
HEADER = "image,class,type,center\n"


@pytest.mark.parametrize("tumour", ["micro", "macro"])
def test_reference_table_of_the_public_bucket(tmp_path, tumour):
    touch(tmp_path, *AWS)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/reference.csv").write_text(
        f"\ufeff{HEADER}normal_001.tif,negative,train,0\n\n"
        f"test_001.tif,negative,test,1\ntest_002.tif,{tumour},test,0\n"
    )
    tasks, _ = patches.tasks_by_rule(layouts.find(tmp_path))
    assert [(t.split, t.slide, t.label) for t in tasks] == [
        ("train", "normal_001", 0),
        ("test", "test_001", 0),
        ("test", "test_002", 1),
        ("validation", "tumor_009", 1),
    ]


def test_a_mask_alone_makes_no_test_slide_a_tumour(tmp_path):
    touch(tmp_path, *AWS)
    with pytest.raises(DpaError, match="test_001.tif is a test slide, and neither"):
        patches.tasks_by_rule(layouts.find(tmp_path))


def test_a_test_slide_that_the_table_leaves_out_is_not_taken_for_normal(tmp_path):
    touch(tmp_path, *CHALLENGE)
    (tmp_path / "reference.csv").write_text("test_002,Normal,None,None\n")
    with pytest.raises(DpaError, match="test_001.tif is a test slide"):
        patches.tasks_by_rule(layouts.find(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "slide,diagnosis\ntest_001,negative\n",
        "test_001,Normal\ntest_002,benign\n",
        "test_001\n",
        HEADER + "patient_001.tif,negative,test,0\n",
        "test_001,Normal\nTest_001.tif,Tumor\n",
    ],
)
def test_reference_table_that_cannot_be_read_is_refused(tmp_path, text):
    touch(tmp_path, *CHALLENGE)
    (tmp_path / "reference.csv").write_text(text)
    with pytest.raises(DpaError, match=r"reference\.csv, line [12]: "):
        layouts.find(tmp_path)


def test_two_slides_of_one_name_are_refused(tmp_path):
    touch(tmp_path, "a/normal_001.tif", "b/Normal_001.tif")
    with pytest.raises(DpaError, match="two files for normal_001"):
        layouts.find(tmp_path)


def test_folder_without_slides_is_refused(tmp_path):
    touch(tmp_path, "cat.jpg")
    with pytest.raises(DpaError, match="no slide of Camelyon16 under"):
        layouts.find(tmp_path)


def pack(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_packed_annotations_are_read_as_they_are(tmp_path):
    outline = slide_factory.asap(tmp_path / "a", [("_0", box(0, 0, 9, 9))]).read_text()
    touch(tmp_path, "tumor_001.tif", "tumor_009.tif", "test_002.tif")
    for name, slide in (("a", "Tumor_001"), ("b", "Test_002")):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).mkdir()
        members = {f"annotations/{slide}.xml": outline}
        pack(tmp_path / name / "lesion_annotations.zip", members)
    touch(tmp_path, "tumor_009.xml")
    found = layouts.find(tmp_path)
    assert sorted(found.annotations) == ["test_002", "tumor_001", "tumor_009"]
    assert found.sizes[found.annotations["tumor_001"]] == len(outline)
    with filesystems.local_copy(found.annotations["test_002"]) as path:
        coverage, _ = annotations.from_xml(path)
    assert coverage(0, 0, 9) == 1


def test_unpacked_annotations_go_before_packed_ones(tmp_path):
    touch(tmp_path, "tumor_001.tif", "tumor_001.xml")
    members = {"tumor_001.xml": "other", "tumor_002.xml": "another"}
    pack(tmp_path / "lesion_annotations.zip", members)
    assert layouts.find(tmp_path).annotations == {
        "tumor_001": str(tmp_path / "tumor_001.xml"),
        "tumor_002": str(tmp_path / "lesion_annotations.zip::tumor_002.xml"),
    }


@pytest.mark.parametrize("name", ["../tumor_001.xml", "/tumor_001.xml"])
def test_packed_annotations_that_lead_out_are_refused(tmp_path, name):
    touch(tmp_path, "tumor_001.tif")
    pack(tmp_path / "lesion_annotations.zip", {name: "x"})
    with pytest.raises(DpaError, match="lesion_annotations.zip holds .* leads out of"):
        layouts.find(tmp_path)


def test_packed_annotations_too_large_to_be_any_are_refused_unread(tmp_path):
    touch(tmp_path, "tumor_001.tif")
    path = tmp_path / "lesion_annotations.zip"
    pack(path, {"tumor_001.xml": "x"})
    five = struct.pack("<I", 4_000_000_000)  # bytes, as its table of contents says
    content = path.read_bytes()
    start = content.rindex(b"PK\1\2") + 24
    path.write_bytes(content[:start] + five + content[start + 4 :])
    with pytest.raises(DpaError, match="holds 'tumor_001.xml' of 4,000,000,000 bytes"):
        layouts.find(tmp_path)


def test_a_damaged_archive_of_annotations_is_named(tmp_path):
    touch(tmp_path, "tumor_001.tif", "lesion_annotations.zip")
    with pytest.raises(DpaError, match="lesion_annotations.zip cannot be listed"):
        layouts.find(tmp_path)


def test_rule_sorts_slides_into_splits_without_the_excluded(tmp_path):
    touch(tmp_path, *CHALLENGE, "training/normal/normal_027.tif", "x/test_114.tif")
    tasks, missing = patches.tasks_by_rule(layouts.find(tmp_path))
    assert missing == []
    assert [(t.split, t.slide, t.label) for t in tasks] == [
        ("train", "normal_001", 0),
        ("test", "test_001", 0),
        ("test", "test_002", 1),
        ("validation", "tumor_009", 1),
    ]


def test_unannotated_test_slides_are_not_taken_for_normal(tmp_path):
    touch(tmp_path, "normal_001.tif", "test_001.tif")
    with pytest.raises(DpaError, match="whether it has a tumour"):
        patches.tasks_by_rule(layouts.find(tmp_path))


def test_published_lists_have_the_published_counts():
    wanted = lists.read(published_splits.lists("camelyon16"))
    counts, slides = collections.Counter(), collections.Counter()
    for (split, _, label), corners in wanted.items():
        counts[split, label] += len(corners)
        slides[split, label] += 1
        assert (np.array(corners) % 768 == 0).all()
    assert counts == {
        ("train", 0): 7612,
        ("validation", 1): 2169,
        ("test", 0): 4000,
        ("test", 1): 817,
    }
    assert (slides["train", 0], slides["test", 0], slides["test", 1]) == (153, 80, 24)
    assert not {slide for _, slide, _ in wanted} & set(patches.EXCLUDED)


def test_published_lists_are_those_of_the_authors(shared):
    theirs = lists.read(shared / "data/camelyon16/reference_splits")
    assert lists.read(published_splits.lists("camelyon16")) == theirs


def write_list(root, name, *lines):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "line",
    [
        "normal_001_normal_x_0_y_0_w_512_h_512.jpg",
        "normal_001_tumor_x_0_y_0_w_768_h_768.jpg",
        "00000001_000.png",
        "normal_001_normal_x_768_y_0_w_768_h_768.jpg",
    ],
)
def test_bad_entry_of_a_list_is_named(tmp_path, line):
    good = "normal_001_normal_x_768_y_0_w_768_h_768.jpg"
    write_list(tmp_path, "normal/train", good, line)
    with pytest.raises(DpaError, match=r"train, entry 2: '.*'"):
        lists.read(tmp_path)


def test_folder_without_lists_is_named(tmp_path):
    with pytest.raises(DpaError, match="there should be normal/train"):
        lists.read(tmp_path)


def test_slides_missing_from_the_lists_are_counted(tmp_path):
    touch(tmp_path, "normal_001.tif")
    write_list(
        tmp_path,
        "normal/train",
        "normal_001_normal_x_768_y_0_w_768_h_768.jpg",
        "normal_002_normal_x_768_y_0_w_768_h_768.jpg",
        "normal_002_normal_x_0_y_0_w_768_h_768.jpg",
    )
    tasks, missing = patches.tasks_by_lists(
        layouts.find(tmp_path), lists.read(tmp_path)
    )
    assert [task.corners for task in tasks] == [((768, 0),)]
    assert missing == ["normal_002: no such slide (2 patches lost)"]


@pytest.fixture(scope="module")
def pixels():
    # In tissue: cells 1 to 3 by 1 to 2; one tile holds both stains.
    return slide_factory.picture(3328, 2560, [(512, 512, 2560, 1792)], seed=1)


@pytest.fixture(scope="module")
def slide(pixels, tmp_path_factory):
    return str(slide_factory.write(tmp_path_factory.mktemp("c") / "s.tif", pixels))


def task(slide, **options):
    return patches.SlideTask("train", "normal_001", patches.NORMAL, slide, **options)


ALL = [[x, y] for y in (768, 1536) for x in (768, 1536, 2304)]


def test_patches_lie_wholly_in_tissue(slide, pixels):
    cut = patches.cut(task(slide), patches.Settings())
    assert cut.corners.tolist() == ALL
    assert cut.images.shape == (6, 192, 192, 3)
    assert (cut.fractions == 0).all()
    # The factory's x10 level is every fourth pixel.
    assert (cut.images[1] == pixels[768:1536:4, 1536:2304:4]).all()


@pytest.mark.parametrize(("magnification", "size"), [(20, 384), (40, 768)])
def test_other_magnifications(slide, pixels, magnification, size):
    cut = patches.cut(task(slide), patches.Settings(magnification))
    step = 40 // magnification
    assert cut.images.shape[1:] == (size, size, 3)
    assert (cut.images[0] == pixels[768:1536:step, 768:1536:step]).all()


def test_draw_is_bounded_seeded_and_its_slides_own(slide, monkeypatch):
    monkeypatch.setattr(patches, "PER_SLIDE", 3)
    draws = [
        patches.cut(task(slide), patches.Settings(seed=s)).corners.tolist()
        for s in (0, 0, 1, 2, 3)
    ]
    assert draws[0] == draws[1]
    assert len({str(draw) for draw in draws}) > 1
    assert all(len(draw) == 3 and all(c in ALL for c in draw) for draw in draws)
    assert all(draw == sorted(draw, key=ALL.index) for draw in draws)
    others = [
        patches.cut(
            patches.SlideTask("train", f"normal_00{n}", patches.NORMAL, slide),
            patches.Settings(),
        ).corners.tolist()
        for n in range(2, 6)
    ]
    assert any(draw != draws[0] for draw in others)


def test_tumour_patches_lie_wholly_in_the_annotation(slide, tmp_path):
    xml = slide_factory.asap(
        tmp_path / "tumor_001.xml",
        [("_0", box(700, 700, 1700, 1700)), ("_2", box(1600, 1600, 10, 10))],
    )
    cut = patches.cut(
        patches.SlideTask("test", "tumor_001", patches.TUMOUR, slide, str(xml)),
        patches.Settings(),
    )
    assert cut.corners.tolist() == [[768, 768], [1536, 768], [768, 1536]]
    assert (cut.fractions == 1).all()


def test_mask_does_instead_of_an_annotation(slide, pixels, tmp_path):
    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[768:1536, 700:2400] = 255
    path = slide_factory.write(tmp_path / "tumor_001_mask.tif", mask)
    cut = patches.cut(
        patches.SlideTask("test", "tumor_001", patches.TUMOUR, slide, mask=str(path)),
        patches.Settings(),
    )
    assert cut.corners.tolist() == [[768, 768], [1536, 768]]


def test_listed_patches_are_cut_where_they_are_listed(slide, pixels, tmp_path):
    xml = slide_factory.asap(tmp_path / "a.xml", [("_0", box(0, 0, 1152, 9999))])
    cut = patches.cut(
        patches.SlideTask(
            "test",
            "tumor_001",
            patches.TUMOUR,
            slide,
            str(xml),
            corners=((768, 768), (8, 16)),
        ),
        patches.Settings(),
    )
    assert cut.corners.tolist() == [[768, 768], [8, 16]]
    assert (cut.images[1] == pixels[16:784:4, 8:776:4]).all()
    assert cut.fractions.tolist() == [0.5, 1]


def test_listed_tumour_without_annotation_has_no_known_fraction(slide):
    cut = patches.cut(
        patches.SlideTask("test", "t", patches.TUMOUR, slide, corners=((768, 768),)),
        patches.Settings(),
    )
    assert np.isnan(cut.fractions).all()


def test_stains_are_normalised_at_x40_then_reduced(slide, pixels):
    target = stain.estimate(slide_factory.stained((128, 128), seed=4))
    cut = patches.cut(task(slide), patches.Settings(target=target))
    fine = patches.cut(task(slide), patches.Settings(40, target))
    expected = stain.normalize(pixels[768:1536, 768:1536], target)
    assert (fine.images[0] == expected).all()
    # Antialiased bilinear: a triangle as wide as eight pixels about each centre.
    distance = np.abs(np.arange(768) + 0.5 - 4 * (np.arange(192)[:, None] + 0.5))
    weights = np.maximum(1 - distance / 4, 0)
    weights /= weights.sum(1, keepdims=True)
    reduced = np.einsum("ry,yxc,sx->rsc", weights, expected, weights, optimize=True)
    assert np.abs(cut.images[0] - reduced).max() <= 1


def test_slide_scanned_at_x20_has_cells_of_half_the_pixels(pixels, tmp_path):
    path = slide_factory.write(tmp_path / "s.tif", pixels[::2, ::2], mpp=0.5)
    cut = patches.cut(task(str(path)), patches.Settings())
    assert cut.corners.tolist() == [[x // 2, y // 2] for x, y in ALL]
    with pytest.raises(DpaError, match="scanned at x20, below the x40 asked for"):
        patches.cut(task(str(path)), patches.Settings(40))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": patches.TUMOUR}, r"neither an annotation \(normal_001.xml\)"),
        ({"corners": ((4000, 0),)}, "the region 4000,0,768,768 is outside"),
    ],
)
def test_slide_that_does_not_fit_its_task_is_named(slide, options, message):
    what = {"split": "train", "slide": "normal_001", "label": 0, "path": slide}
    with pytest.raises(DpaError, match=message) as error:
        patches.cut(patches.SlideTask(**{**what, **options}), patches.Settings())
    assert slide in str(error.value)


def test_unknown_magnification_is_refused():
    with pytest.raises(UsageError, match="--magnification is 15"):
        _ = patches.Settings(15).size
