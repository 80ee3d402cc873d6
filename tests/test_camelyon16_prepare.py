"""From made-up slides to the prepared TFDS data set, by every path."""

import dataclasses
import functools
import importlib.util
import os
import pathlib
import shutil
import signal
import types
import zipfile

import numpy as np
import pytest
import slide_factory

from dpa_jax.data.decode import Preprocessing
from dpa_jax.data.tfds_source import load_tfds
from dpa_jax.datasets import (
    camelyon16,
    camelyon16_parts,
    camelyon16_patches,
    camelyon16_prepare,
)
from dpa_jax.datasets.camelyon16_prepare import resolve_target
from dpa_jax.errors import DpaError, UsageError
from dpa_jax.slides import stain

slide_factory.need_reader()
pytest.importorskip("shapely", reason="annotations need shapely")


def prepare(source, data_dir, allow_missing=False, **given):
    """Prepares by the rule: the published lists are of slides that no test has."""
    own = {field.name for field in dataclasses.fields(camelyon16_prepare.Options)}
    options = {"lists": "none"} | {k: v for k, v in given.items() if k in own}
    builder, existed = camelyon16_prepare.prepare(
        source,
        data_dir,
        camelyon16_prepare.Options(**options),
        run=functools.partial(
            camelyon16_parts.run, **{k: v for k, v in given.items() if k not in own}
        ),
        allow_missing=allow_missing,
    )
    return types.SimpleNamespace(
        location=str(builder.data_dir),
        existed=existed,
        text=camelyon16_prepare.describe(builder, existed),
        **builder.info.metadata,
    )


TARGET = "normal_001:768,768,512,512"
TISSUE = (512, 512, 1792, 1024)  # wholly inside: cells 1 and 2 of row 1


def picture(seed):
    return slide_factory.picture(2560, 1792, [TISSUE], seed=seed)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The challenge's tree with five slides."""
    root = tmp_path_factory.mktemp("camelyon16")
    for seed, name in enumerate(
        (
            "training/normal/normal_001.tif",
            "training/normal/normal_002.tif",
            "training/tumor/tumor_001.tif",
            "testing/images/test_001.tif",
            "testing/images/test_002.tif",
        )
    ):
        slide_factory.write(root / name, picture(seed))
    left_half = slide_factory.box(600, 600, 1000, 1000)
    for name in ("training/lesion_annotations/Tumor_001", "testing/Test_002"):
        slide_factory.asap(root / f"{name}.xml", [("Tumor", left_half)])
    return root


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    seen = []
    report = prepare(
        source,
        data_dir,
        stain_target=TARGET,
        jobs=1,
        progress=lambda *state: seen.append(state),
    )
    assert [state[:2] for state in seen] == [(n, 5) for n in range(1, 6)]
    return data_dir, report


def load(data_dir, split):
    return load_tfds("camelyon16/x10", split, Preprocessing(3, 192), data_dir)


def copy(source, tmp_path):
    return pathlib.Path(shutil.copytree(source, tmp_path / "source"))


def test_report_counts_slides_and_patches(prepared):
    data_dir, report = prepared
    assert report.counts == {
        "train": {"normal": 4, "tumor": 0, "slides": 2},
        "validation": {"normal": 0, "tumor": 1, "slides": 1},
        "test": {"normal": 2, "tumor": 1, "slides": 2},
    }
    assert not report.problems and not report.existed
    assert "test: 2 normal and 1 tumour patches of 2 slides" in report.text
    # The patches of each slide were kept only until the data set was there.
    assert [path.name for path in data_dir.iterdir()] == ["camelyon16"]


def test_image_set_is_grouped_by_slide(prepared):
    images = load(prepared[0], "test")
    assert images.images.shape == (3, 192, 192, 3)
    assert list(images.groups) == ["test_001", "test_001", "test_002"]
    assert images.labels.tolist() == [0, 0, 1]
    assert list(images.paths) == [
        "test_001_normal_x_768_y_768_w_768_h_768",
        "test_001_normal_x_1536_y_768_w_768_h_768",
        "test_002_tumor_x_768_y_768_w_768_h_768",
    ]
    assert images.columns["x"].tolist() == [768, 1536, 768]
    assert images.columns["y"].tolist() == [768] * 3
    assert images.columns["tumor_fraction"].tolist() == [0, 0, 1]


def test_images_are_normalised_to_the_saved_target(prepared):
    folder = pathlib.Path(prepared[1].location)
    target = stain.load(folder / stain.FILE)
    expected = stain.estimate(picture(0)[768:1280, 768:1280])
    np.testing.assert_allclose(target.matrix, expected.matrix, atol=1e-12)
    assert target.source == TARGET
    patch = stain.normalize(picture(3)[768:1536, 768:1536], target)
    stored = load(prepared[0], "test").images[0]
    assert np.abs(stored.mean((0, 1)) - patch.mean((0, 1))).max() < 1


def test_preparing_again_does_nothing(source, prepared):
    again = prepare(source, prepared[0], stain_target=TARGET)
    assert again.existed and again.counts == prepared[1].counts


def test_other_settings_do_not_overwrite(source, prepared):
    with pytest.raises(DpaError, match="prepared with other settings: seed 0 instead"):
        prepare(source, prepared[0], stain_target=TARGET, seed=1)


def same_records(one, other):
    files = [
        {p.name: p.read_bytes() for p in sorted(d.rglob("*.array_record*"))}
        for d in (one, other)
    ]
    assert files[0] and files[0].keys() == files[1].keys()
    # The container holds no time or random number, so neither may the records.
    images = [
        {split: load(d, split) for split in ("train", "validation", "test")}
        for d in (one, other)
    ]
    for split, expected in images[0].items():
        found = images[1][split]
        assert (found.images == expected.images).all()
        assert list(found.paths) == list(expected.paths)
        assert found.labels.tolist() == expected.labels.tolist()


def test_processes_give_the_same_examples(source, prepared, tmp_path):
    prepare(source, tmp_path, stain_target=TARGET, jobs=2)
    same_records(prepared[0], tmp_path)


def killed(part):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_one_message(source, tmp_path, monkeypatch):
    monkeypatch.setattr(camelyon16_parts, "make_part", killed)
    with pytest.raises(DpaError, match="a process .* ended .* memory .* fewer --jobs"):
        prepare(source, tmp_path, stain_target="none", jobs=2)


needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="Apache Beam is not installed",
)


@needs_beam
@pytest.mark.filterwarnings("default")  # Apache Beam's own
def test_beam_gives_the_same_examples(source, prepared, tmp_path):
    flags = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    prepare(source, tmp_path, stain_target=TARGET, runner="direct", beam_options=flags)
    same_records(prepared[0], tmp_path)


@needs_beam
@pytest.mark.filterwarnings("default")
def test_flags_reach_beam(source, tmp_path, capsys):
    with pytest.raises(SystemExit):  # of Beam's own parser
        flags = ["--direct_running_mode=nonsense"]
        prepare(
            source, tmp_path, stain_target="none", runner="direct", beam_options=flags
        )
    assert "--direct_running_mode: invalid choice" in capsys.readouterr().err


@needs_beam
@pytest.mark.filterwarnings("default")
def test_failure_of_beam_is_told_in_one_message(source, tmp_path, monkeypatch):
    def broken(part):
        raise RuntimeError("a worker was lost")

    monkeypatch.setattr(camelyon16_parts, "make_part", broken)
    with pytest.raises(DpaError, match="Beam's DirectRunner failed: a worker was lost"):
        prepare(source, tmp_path, stain_target="none", runner="direct")


@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is not None,
    reason="Apache Beam is installed",
)
def test_beam_that_is_absent_is_named(source, tmp_path):
    with pytest.raises(DpaError, match=r"pip install 'dpa_jax\[beam\]'"):
        prepare(source, tmp_path, stain_target=TARGET, runner="flink")


def test_unknown_runner_is_refused(source, tmp_path):
    with pytest.raises(UsageError, match="--runner is 'slurm'"):
        prepare(source, tmp_path, stain_target=TARGET, runner="slurm")


def test_tfds_alone_prepares_from_manual_dir(source, prepared, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(camelyon16_prepare, "STAIN_TARGET", TARGET)
    builder = tfds.builder("camelyon16/x10", data_dir=tmp_path, lists="none")
    builder.download_and_prepare(
        download_dir=tmp_path / "downloads",
        download_config=tfds.download.DownloadConfig(
            manual_dir=source, try_download_gcs=False
        ),
        file_format="array_record",
    )
    same_records(prepared[0], tmp_path)
    assert stain.find(pathlib.Path(builder.data_dir)).source == TARGET
    assert builder.info.metadata["counts"] == prepared[1].counts


def test_tfds_knows_input_label_and_licence(tmp_path):
    info = camelyon16.Camelyon16(config="x10", data_dir=tmp_path).info
    assert info.supervised_keys == ("image", "label")
    assert info.redistribution_info.license.startswith("CC0")


LISTED = {
    "normal/train": ["normal_001_normal_x_700_y_600_w_768_h_768.jpg"],
    "normal/test": ["test_001_normal_x_768_y_512_w_768_h_768.jpg"],
    "anomaly/test": [
        "test_002_tumor_x_832_y_768_w_768_h_768.jpg",
        "test_003_tumor_x_0_y_0_w_768_h_768.jpg",
        "test_003_tumor_x_768_y_0_w_768_h_768.jpg",
    ],
}


@pytest.fixture
def lists(tmp_path):
    for name, lines in LISTED.items():
        path = tmp_path / "lists" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    return tmp_path / "lists"


def test_the_published_lists_come_with_the_package(source, tmp_path):
    with pytest.raises(DpaError) as error:
        prepare(source, tmp_path / "d", lists="published", stain_target="none")
    # 153 normal, 64 tumour and 104 test slides, of which five are there
    assert str(error.value).startswith("316 problems:")
    assert not (tmp_path / "d").exists()


def test_what_is_missing_is_said_before_a_slide_is_cut(source, lists, tmp_path):
    with pytest.raises(DpaError, match=r"test_003: no such slide \(2 patches lost\)"):
        prepare(source, tmp_path / "d", lists=lists, stain_target="none", jobs=1)
    assert not (tmp_path / "d").exists()


def test_a_seed_draws_nothing_from_lists(source, lists, tmp_path):
    with pytest.raises(UsageError, match="--seed draws patches"):
        prepare(source, tmp_path / "d", lists=lists, stain_target="none", seed=1)


def test_lists_give_exactly_their_patches(source, lists, tmp_path):
    report = prepare(
        source,
        tmp_path / "d",
        lists=lists,
        stain_target="none",
        jobs=1,
        allow_missing=True,
    )
    assert report.problems == ["test_003: no such slide (2 patches lost)"]
    test = load(tmp_path / "d", "test")
    assert list(test.paths) == [
        "test_001_normal_x_768_y_512_w_768_h_768",
        "test_002_tumor_x_832_y_768_w_768_h_768",
    ]
    # The factory's x10 level is every fourth pixel.
    assert (test.images[0] == picture(3)[512:1280:4, 768:1536:4]).all()
    train = load(tmp_path / "d", "train")
    assert (train.images[0] == picture(0)[600:1368:4, 700:1468:4]).all()
    assert not (tmp_path / "d/camelyon16/x10/2.0.0" / stain.FILE).exists()


def test_listed_tumours_without_an_outline_are_named(source, lists, tmp_path):
    root = copy(source, tmp_path)
    (root / "testing/Test_002.xml").unlink()
    report = prepare(
        root,
        tmp_path / "d",
        lists=lists,
        stain_target="none",
        jobs=1,
        allow_missing=True,
    )
    assert report.notes == [
        "no annotation or mask of test_002: the tumour fraction of its patches is NaN"
    ]


def test_bad_slides_are_reported_and_the_others_go_on(source, tmp_path):
    root = copy(source, tmp_path)
    normal = root / "training/normal"
    content = (normal / "normal_002.tif").read_bytes()
    (normal / "normal_002.tif").write_bytes(content[: len(content) // 2])
    slide_factory.write(
        normal / "normal_003.tif", slide_factory.picture(1024, 1024, [])
    )
    slide_factory.write(normal / "normal_004.tif", picture(4), mpp=None)
    slide_factory.write(root / "training/tumor/tumor_002.tif", picture(5))
    slide_factory.write(root / "training/tumor/tumor_003.tif", picture(6))
    mask = np.zeros((896, 1280), np.uint8)
    slide_factory.write(root / "masks/tumor_003_mask.tif", mask)
    slide_factory.asap(root / "tumor_004.xml", [("_0", slide_factory.box(0, 0, 9, 9))])
    bow_tie = [(700, 700), (1600, 1600), (1600, 700), (700, 1600)]
    slide_factory.asap(root / "testing/Test_002.xml", [("_0", bow_tie)])
    slide_factory.write(normal / "normal_027.tif", picture(7))

    def run(**options):
        return prepare(root, tmp_path / "d", stain_target=TARGET, jobs=1, **options)

    with pytest.raises(DpaError) as error:
        run()
    assert not (tmp_path / "d/camelyon16/x10/2.0.0").exists()
    message = str(error.value)
    assert message.startswith("2 problems:") and "--allow-missing" in message
    report = run(allow_missing=True)
    reasons = "\n".join(report.problems)
    for part in (
        r"normal_002.tif cannot be ",
        r"normal_003.tif: no tissue found",
        r"normal_004.tif does not say how many micrometres a pixel has",
        r"tumor_002.tif has a tumour but neither an annotation",
        r"tumor_003_mask.tif has 1280x896 pixels, but",
        r"tumor_004.xml: an annotation without a slide",
    ):
        assert part in reasons
    assert len(report.problems) == 6
    assert report.counts["train"] == {"normal": 2, "tumor": 0, "slides": 1}
    notes = "\n".join(report.notes)
    assert "Test_002.xml: the outline of Annotation 0 crosses" in notes
    assert "test_002.tif: no patch lies wholly in its tumour" in notes
    assert "normal_027: left out by the published protocol" in notes


def test_interrupted_run_takes_up_where_it_stopped(source, tmp_path, monkeypatch):
    cut, seen = camelyon16_patches.cut, []

    def interrupted(task, settings):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(task.slide)
        return cut(task, settings)

    monkeypatch.setattr(camelyon16_patches, "cut", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path, stain_target=TARGET, jobs=1)
    assert not (tmp_path / "camelyon16" / "x10").exists()
    rest = []

    def counted(task, settings):
        rest.append(task.slide)
        return cut(task, settings)

    monkeypatch.setattr(camelyon16_patches, "cut", counted)
    prepare(source, tmp_path, stain_target=TARGET, jobs=1)
    assert len(rest) == 2 and not set(rest) & set(seen)


def test_what_a_killed_run_left_is_removed(source, tmp_path):
    left = tmp_path / "camelyon16/x10/incomplete.ABCDEF_2.0.0"
    left.mkdir(parents=True)
    (left / "half.array_record").touch()
    prepare(source, tmp_path, stain_target=TARGET, jobs=1)
    assert [path.name for path in left.parent.iterdir()] == ["2.0.0"]


def test_part_that_is_done_is_not_made_again(source, tmp_path, monkeypatch):
    path = str(source / "training/normal/normal_001.tif")
    task = camelyon16_patches.SlideTask("train", "normal_001", 0, path)
    (part,) = camelyon16_parts.plan(
        [task], camelyon16_patches.Settings(), {path: 1}, tmp_path
    )
    camelyon16_parts.make_part(part)
    monkeypatch.delattr(camelyon16_patches, "cut")
    camelyon16_parts.make_part(part)
    assert camelyon16_parts.read_part(part).images.shape == (2, 192, 192, 3)


def test_replaced_slide_is_cut_anew(source, tmp_path):
    how = camelyon16_patches.Settings()
    task = camelyon16_patches.SlideTask("train", "normal_001", 0, "normal_001.tif")
    paths = {
        camelyon16_parts.plan([task], settings, sizes, tmp_path)[0].path
        for settings, sizes in (
            (how, {"normal_001.tif": 1}),
            (how, {"normal_001.tif": 2}),
            (camelyon16_patches.Settings(20), {"normal_001.tif": 1}),
            (camelyon16_patches.Settings(seed=1), {"normal_001.tif": 1}),
        )
    }
    assert len(paths) == 4


def test_slides_are_read_from_object_storage(source, prepared, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    try:
        system.put(str(source), "/camelyon", recursive=True)
        prepare("memory://camelyon", tmp_path, stain_target=TARGET, jobs=1)
    finally:
        system.rm("/camelyon", recursive=True)
    same_records(prepared[0], tmp_path)


def test_packed_annotations_give_the_same_examples(source, prepared, tmp_path):
    root = copy(source, tmp_path)
    with zipfile.ZipFile(root / "lesion_annotations.zip", "w") as archive:
        for path in sorted(root.rglob("*.xml")):
            archive.write(path, path.name)
            path.unlink()
    prepare(root, tmp_path / "data", stain_target=TARGET, jobs=1)
    same_records(prepared[0], tmp_path / "data")


def test_absent_target_slide_offers_the_other_choices(source, tmp_path):
    with pytest.raises(
        DpaError, match=r"normal_056 of --stain-target .* FILE.npz, or none"
    ):
        prepare(source, tmp_path)


@pytest.mark.parametrize("text", ["red", "normal_001:1,2,3", "normal_001:0,0,0,9"])
def test_target_that_cannot_be_read_is_refused(source, tmp_path, text):
    with pytest.raises(UsageError, match="--stain-target"):
        prepare(source, tmp_path, stain_target=text)


def test_saved_target_is_used(prepared):
    path = pathlib.Path(prepared[1].location) / stain.FILE
    target = resolve_target(str(path), None)
    assert (target.maxima == stain.load(path).maxima).all()


def test_metadata_tell_how_the_data_set_was_made(prepared):
    builder = camelyon16.Camelyon16(config="x10", data_dir=prepared[0])
    assert builder.info.metadata["settings"] == {
        "magnification": 10,
        "stain_target": TARGET,
        "lists": None,
        "mpp": None,
        "seed": 0,
    }


def test_a_second_preparation_at_once_is_refused(source, tmp_path):
    def second(done, total, slide):
        prepare(source, tmp_path, stain_target="none", jobs=1)

    message = f"camelyon16/x10 is being prepared already, by process {os.getpid()} on"
    with pytest.raises(UsageError, match=message):
        prepare(source, tmp_path, stain_target="none", jobs=1, progress=second)


def test_what_only_cutting_shows_stops_it_too(source, tmp_path):
    root = copy(source, tmp_path)
    path = root / "training/normal/normal_002.tif"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DpaError, match="1 problem:\n.*normal_002.tif cannot be ") as e:
        prepare(root, tmp_path / "d", stain_target=TARGET, jobs=1)
    assert "what was cut is kept in" in str(e.value)
    assert not (tmp_path / "d/camelyon16/x10/2.0.0").exists()
