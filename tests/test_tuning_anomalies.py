import dataclasses
import pathlib

import numpy as np
import pytest
import run_factory
import study_factory

from dpa_jax import errors, training
from dpa_jax.data import ImageSet, test_set
from dpa_jax.tuning import anomalies
from dpa_jax.tuning.search import default_options


def load(source, **more):
    config = run_factory.quick_config()
    config.data.update(more.pop("data", {}))
    options = default_options().anomalies
    options.update({"source": str(source), "count": 2, **more})
    return anomalies.load(options, config, False)


def write_manifest(folder, header, rows):
    run_factory.write_folder(folder / "images", len(rows))
    path = folder / "pool.csv"
    lines = [f"images/{i:02d}.png,{row}" for i, row in enumerate(rows)]
    path.write_text("\n".join([f"path,{header}", *lines]))
    return path


def test_kinds_are_the_first_subfolders(tmp_path):
    run_factory.write_folder(tmp_path / "pool" / "mass" / "left", 2)
    run_factory.write_folder(tmp_path / "pool" / "nodule", 2, seed=1)
    run_factory.write_folder(tmp_path / "pool", 1, seed=2)
    pool = load(f"{tmp_path / 'pool'}/")
    assert pool.kinds == ("", "mass", "mass", "nodule", "nodule")
    assert pool.images.images.shape == (5, 8, 8, 1)  # as the config says


def test_kinds_are_a_column(tmp_path):
    path = write_manifest(tmp_path, "kind,group", ["a,s1", "b,s2", "a,s1"])
    assert load(path).kinds == ("a", "b", "a")
    assert load(path, kind="group").kinds == ("s1", "s2", "s1")
    with pytest.raises(errors.DpaError, match="'sort'.*the columns group, kind"):
        load(path, kind="sort")


def test_where_takes_a_part(tmp_path):
    path = write_manifest(tmp_path, "finding", ["Mass", "Cyst", "Nodule", "Mass"])
    pool = load(path, where="finding=Mass|Nodule", kind="finding")
    assert pool.kinds == ("Mass", "Nodule", "Mass")
    with pytest.raises(errors.UsageError, match=r"count is 4; .* has 3 anomalies"):
        load(path, where="finding=Mass|Nodule", count=4)


def test_no_source_is_no_pool():
    assert load("") is None
    with pytest.raises(errors.UsageError, match=r"need anomalies\.source"):
        load("", where="finding=Mass")


@pytest.mark.parametrize(
    "header, rows, normal, message",
    [
        ("label", ["abnormal", "normal", "normal"], "", r"2 of 3 .*images.01\.png"),
        ("class", ["cat", "dog", "dog"], "class=cat|lion", r"1 of 3 .*images.00\.png"),
    ],
)
def test_normal_images_are_refused(tmp_path, header, rows, normal, message):
    path = write_manifest(tmp_path, header, rows)
    with pytest.raises(errors.DpaError, match=message):
        load(path, data={"normal": normal})


def test_drawing_is_without_replacement_by_the_seed_and_nested():
    first = anomalies.draw(50, 20, 3)
    assert len(set(first.tolist())) == 20 and (np.diff(first) > 0).all()
    assert first.tolist() == anomalies.draw(50, 20, 3).tolist()
    assert first.tolist() != anomalies.draw(50, 20, 3, 1).tolist()
    assert set(anomalies.draw(50, 5, 3)) < set(first)
    times = np.bincount(np.concatenate([anomalies.draw(10, 3, s) for s in range(3000)]))
    assert times == pytest.approx(900, rel=0.1)


# --- what they must not be in ---


def image_set(count=4, seed=0, **more):
    images = run_factory.images(count, 8, seed)[..., None]
    named = {"paths": [f"set {seed}, {i}" for i in range(count)]}
    return ImageSet(images, **{**named, **more})


POOL = study_factory.pool(3, [0, 2], groups=["p1", "p2", "p3"])


def check(normal, test, pool=POOL):
    kept = anomalies.usable(normal, pool, 2)
    return " ".join(anomalies.check(pool, normal, kept, test))


def test_normal_images_of_patients_with_a_drawn_anomaly_are_left_out():
    # p1 and p3 are drawn, p2 is not
    groups = ["p1", "p2", "p4", "p3", "p5", "p5", "p1", "p6"]
    normal = image_set(8, groups=groups)
    kept = anomalies.usable(normal, POOL, 2)
    assert kept.groups == ["p2", "p4", "p5", "p5", "p6"]
    text = check(normal, None)
    assert "3 of 3 anomalies share a patient or slide with the 8 normal" in text
    assert "The 3 normal images of those drawn are neither trained on nor held" in text


def test_a_few_images_are_left_out_to_make_folds_equal():
    normal = image_set(201, groups=[f"n{i}" for i in range(201)])
    assert len(anomalies.usable(normal, POOL, 2)) == 200
    assert "1 normal images are left out to make folds equal" in check(normal, None)


def test_report_says_what_could_not_be_checked():
    normal = image_set(groups=list("abcd"))
    assert "No test set was named" in check(normal, None)
    assert "share no image (patients are unknown)" in check(image_set(), None)
    assert "(patients are unknown)" in check(normal, image_set(6, 2))
    apart = image_set(6, 2, groups=list("efghij"))
    assert "the 6 test images share no image, patient or slide" in check(normal, apart)


@pytest.mark.parametrize("tested", [False, True])
def test_anomaly_of_the_same_name_or_pixels_is_refused(tested, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = image_set().images.copy()
    images[2] = POOL.images.images[2]
    named = ["a", "b", str(tmp_path / "x" / ".." / "anomaly 1"), "c"]
    for other, name in (
        (image_set(paths=named), "anomaly 1, which is .*anomaly 1"),
        (
            dataclasses.replace(image_set(), base=images),
            "anomaly 2, which is set 0, 2",
        ),
    ):
        where = "the test set" if tested else "normal training images"
        with pytest.raises(errors.DpaError, match=f"1 of 3 .*{where}, .*{name}"):
            check(*((image_set(4, 1), other) if tested else (other, None)))


def test_patient_of_the_test_set_is_refused():
    test = image_set(3, 2, groups=["p0", "p2", "p2"])
    with pytest.raises(errors.DpaError, match="1 of 3 .*such as anomaly 1; leave"):
        check(image_set(groups=list("abcd")), test)


def test_anomaly_of_the_same_pixels_is_refused_where_training_takes_crops(tmp_path):
    """Anomalies are read as they are scored: cut to the centre of a training image."""
    paths = run_factory.write_folder(tmp_path / "normal", 3, size=16)
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "other.png").write_bytes(
        (pathlib.Path(paths) / "01.png").read_bytes()
    )
    crops = {"size": 16, "crop": 16, "random_crop": True}
    pool = load(tmp_path / "pool", count=1, data=crops)
    config = run_factory.quick_config()
    config.data.update({**crops, "train": paths})
    normal = training.training_images(config, visible=False)
    with pytest.raises(errors.DpaError, match=r"1 of 1 .*other\.png, which is .*01"):
        check(normal, None, pool)


def test_anomalies_may_be_as_small_as_what_is_scored(tmp_path):
    """As `evaluate` reads them; training cuts random squares out of larger images."""
    run_factory.write_folder(tmp_path / "pool", 2, size=8)
    pool = load(tmp_path / "pool", data={"size": 16, "crop": 16, "random_crop": True})
    assert pool.images.images.shape == (2, 8, 8, 1)


# --- the test set ---


def read_test_set(**fields):
    config = run_factory.quick_config()
    config.data.update(fields)
    return test_set.load(config, visible=False)


def test_test_set_is_labelled_by_its_source_its_folders_or_its_classes(tmp_path):
    assert read_test_set() is None
    path = run_factory.write_npz(tmp_path / "t.npz", labels=np.arange(24) % 2)
    assert read_test_set(test=path).labels.tolist() == [0, 1] * 12
    normal = run_factory.write_folder(tmp_path / "normal", 2)
    abnormal = run_factory.write_folder(tmp_path / "abnormal", 3, seed=1)
    found = read_test_set(test_normal=normal, test_abnormal=abnormal)
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    path = str(write_manifest(tmp_path, "class", ["cat", "dog", "cat"]))
    assert read_test_set(test=path, normal="class=cat").labels.tolist() == [0, 1, 0]


def test_test_set_without_labels_or_half_of_one_is_refused(tmp_path):
    with pytest.raises(errors.DpaError, match=r"t\.npz has no labels"):
        read_test_set(test=run_factory.write_npz(tmp_path / "t.npz"))
    with pytest.raises(errors.UsageError, match="one of them is empty"):
        read_test_set(test_normal=str(tmp_path))
