import dataclasses

import numpy as np
import pytest
import run_factory
import study_factory

from dpa_jax import errors
from dpa_jax.data import ImageSet
from dpa_jax.tuning import anomalies, guard
from dpa_jax.tuning import search as search_lib


def asked(source="", **more):
    """The anomalies of a search."""
    search = search_lib.default_search().anomalies
    search.update({"source": str(source), "count": 2, **more})
    return search


def load(source, **more):
    config = run_factory.quick_config()
    config.data.update(more.pop("data", {}))
    return anomalies.load(asked(source, **more), config, visible=False)


def test_kinds_are_the_first_subfolders(tmp_path):
    run_factory.write_folder(tmp_path / "pool" / "mass" / "left", 2)
    run_factory.write_folder(tmp_path / "pool" / "nodule", 2, seed=1)
    run_factory.write_folder(tmp_path / "pool", 1, seed=2)
    pool = load(tmp_path / "pool")
    assert pool.kinds == ("", "mass", "mass", "nodule", "nodule")
    assert pool.images.images.shape == (5, 8, 8, 1)  # as the config says


def write_manifest(folder, header, rows):
    run_factory.write_folder(folder / "images", len(rows))
    path = folder / "pool.csv"
    lines = [f"images/{i:02d}.png,{row}" for i, row in enumerate(rows)]
    path.write_text("\n".join([f"path,{header}", *lines]))
    return path


def test_kinds_are_a_column(tmp_path):
    path = write_manifest(
        tmp_path, "kind,finding", ["a,Mass", "b,Mass", "a,Mass", "a,Nodule"]
    )
    assert load(path).kinds == ("a", "b", "a", "a")
    assert load(path, kind="finding").kinds == ("Mass", "Mass", "Mass", "Nodule")


def test_groups_can_be_the_kinds(tmp_path):
    path = write_manifest(tmp_path, "group", ["slide 1", "slide 2", "slide 1"])
    pool = load(path, kind="group")
    assert pool.kinds == ("slide 1", "slide 2", "slide 1")
    assert pool.groups == ["slide 1", "slide 2", "slide 1"]


def test_where_takes_a_part(tmp_path):
    path = write_manifest(tmp_path, "finding", ["Mass", "Cyst", "Nodule", "Mass"])
    pool = load(path, where="finding=Mass|Nodule", kind="finding")
    assert pool.kinds == ("Mass", "Nodule", "Mass")
    assert max(pool.drawn) < 3


def test_no_source_is_no_pool():
    assert load("") is None


def test_where_without_a_source_is_refused():
    with pytest.raises(errors.UsageError, match=r"need anomalies\.source"):
        load("", where="finding=Mass")


def test_an_unknown_column_of_kinds_is_refused(tmp_path):
    path = write_manifest(tmp_path, "finding", ["Mass", "Cyst"])
    with pytest.raises(errors.DpaError, match="'sort'.*the columns finding"):
        load(path, kind="sort")


def test_more_than_there_are_is_refused(tmp_path):
    run_factory.write_folder(tmp_path / "pool", 3)
    with pytest.raises(errors.UsageError, match="count is 4; .*pool has 3 anomalies"):
        load(tmp_path / "pool", count=4)


def test_normal_images_are_refused(tmp_path):
    path = write_manifest(tmp_path, "label", ["abnormal", "normal", "normal"])
    with pytest.raises(errors.DpaError, match=r"2 of 3 are normal.*images.01\.png"):
        load(path)


def test_what_the_config_calls_normal_is_refused(tmp_path):
    path = write_manifest(tmp_path, "class", ["cat", "dog", "dog"])
    with pytest.raises(errors.DpaError, match=r"1 of 3 are normal.*images.00\.png"):
        load(path, data={"normal": "class=cat|lion"})
    pool = load(path, where="class=dog", data={"normal": "class=cat"})
    assert len(pool.images) == 2


# --- the drawing ---


def test_drawing_is_without_replacement_and_by_the_seed():
    first = anomalies.draw(50, 20, 3)
    assert len(set(first.tolist())) == 20 and (np.diff(first) > 0).all()
    assert first.tolist() == anomalies.draw(50, 20, 3).tolist()
    assert first.tolist() != anomalies.draw(50, 20, 4).tolist()
    assert first.tolist() != anomalies.draw(50, 20, 3, 1).tolist()


def test_every_anomaly_is_drawn_as_often():
    times = np.bincount(np.concatenate([anomalies.draw(10, 3, s) for s in range(3000)]))
    assert times == pytest.approx(900, rel=0.1)


def test_a_larger_draw_holds_the_smaller():
    assert set(anomalies.draw(50, 5, 1)) < set(anomalies.draw(50, 20, 1))


def test_none_may_be_drawn(tmp_path):
    run_factory.write_folder(tmp_path / "pool", 3)
    pool = load(tmp_path / "pool", count=0)
    assert len(pool.images) == 3 and len(pool.drawn) == 0


# --- what they must not be in ---


def image_set(count=4, seed=0, **more):
    images = run_factory.images(count, 8, seed)[..., None]
    named = {"paths": [f"set {seed}, {i}" for i in range(count)]}
    return ImageSet(images, **{**named, **more})


POOL = study_factory.pool(3, [0, 2], groups=["p1", "p2", "p3"])


def test_guard_passes_what_is_apart():
    test = image_set(6, 2, groups=list("abcdef"))
    said = " ".join(guard.guard(POOL, image_set(), test))
    assert "the 3 anomalies is among the 4 normal training images" in said
    assert "test set of 6 images, by name or by pixels, and neither" in said


def test_guard_says_what_it_cannot_check():
    no_groups = dataclasses.replace(POOL, images=image_set(3, 5))
    test = image_set(6, 2)
    assert "names no test set" in guard.guard(POOL, image_set(), None)[-1]
    for pool, whose in ((POOL, "of the test set"), (no_groups, "of the anomalies")):
        assert (
            f"slides {whose} are not known" in guard.guard(pool, image_set(), test)[1]
        )


@pytest.mark.parametrize("tested", [False, True])
def test_an_anomaly_of_the_same_name_is_refused(tested, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = image_set(paths=["a", "b", str(tmp_path / "x" / ".." / "anomaly 1"), "c"])
    sets = (image_set(4, 1), other) if tested else (other, None)
    where = "the test set" if tested else "the normal training images"
    with pytest.raises(errors.DpaError, match=f"1 of 3 .* {where}, .*anomaly 1 .*name"):
        guard.guard(POOL, *sets)


@pytest.mark.parametrize("tested", [False, True])
def test_an_anomaly_of_the_same_pixels_is_refused(tested):
    images = image_set().images.copy()
    images[2] = POOL.images.images[2]
    other = dataclasses.replace(image_set(), base=images)
    sets = (image_set(4, 1), other) if tested else (other, None)
    with pytest.raises(
        errors.DpaError, match="anomaly 2 .*pixels are those of set 0, 2"
    ):
        guard.guard(POOL, *sets)


def test_a_patient_of_the_test_set_is_refused():
    test = image_set(3, 2, groups=["p0", "p2", "p2"])
    with pytest.raises(errors.DpaError, match="1 of 3 .*such as anomaly 1 of p2"):
        guard.guard(POOL, image_set(), test)


def test_a_patient_of_the_training_images_is_not():
    # normal images of a patient whose others are abnormal are in the published lists
    training = image_set(3, 2, groups=["p0", "p2", "p2"])
    guard.guard(POOL, training, None)


# --- the test set ---


def read_test_set(**fields):
    config = run_factory.quick_config()
    config.data.update(fields)
    return guard.test_set(config, visible=False)


def test_no_test_set():
    assert read_test_set() is None


def test_a_labelled_test_set(tmp_path):
    path = run_factory.write_npz(tmp_path / "t.npz", labels=np.arange(24) % 2)
    assert read_test_set(test=path).labels.tolist() == [0, 1] * 12


def test_a_test_set_of_two_folders(tmp_path):
    normal = run_factory.write_folder(tmp_path / "normal", 2)
    abnormal = run_factory.write_folder(tmp_path / "abnormal", 3, seed=1)
    found = read_test_set(test_normal=normal, test_abnormal=abnormal)
    assert found.labels.tolist() == [0, 0, 1, 1, 1]


def test_a_test_set_by_class(tmp_path):
    path = write_manifest(tmp_path, "class", ["cat", "dog", "cat"])
    found = read_test_set(test=str(path), normal="class=cat")
    assert found.labels.tolist() == [0, 1, 0]


def test_a_test_set_without_labels_is_refused(tmp_path):
    with pytest.raises(errors.DpaError, match=r"t\.npz has no labels"):
        read_test_set(test=run_factory.write_npz(tmp_path / "t.npz"))


def test_half_a_test_set_is_refused(tmp_path):
    with pytest.raises(errors.UsageError, match="one of them is empty"):
        read_test_set(test_normal=str(tmp_path))


# --- what is kept ---


def test_a_pool_is_kept(tmp_path):
    path = tmp_path / "anomalies.npz"
    pool = study_factory.pool(3, [0, 2], kinds=["x", "y", "x"], groups=["1", "2", "3"])
    anomalies.keep(path, pool, ["one", "two"])
    found = anomalies.read(path)
    assert found.paths == ("anomaly 0", "anomaly 1", "anomaly 2")
    assert found.groups == ("1", "2", "3") and found.kinds == ("x", "y", "x")
    assert found.drawn.tolist() == [0, 2] and found.statements == ("one", "two")
    assert found.sha256 == tuple(anomalies.hashes(pool.images))
    assert found.count_kinds() == {"x": 2}


def test_unknown_groups_stay_unknown(tmp_path):
    anomalies.keep(tmp_path / "a.npz", study_factory.pool(), [])
    found = anomalies.read(tmp_path / "a.npz")
    assert found.groups is None and found.statements == ()


def test_keeping_the_same_again_writes_nothing_but_new_statements(tmp_path):
    anomalies.keep(tmp_path / "a.npz", POOL, ["old"])
    before = run_factory.files(tmp_path)
    anomalies.keep(tmp_path / "a.npz", POOL, ["old"])
    assert run_factory.files(tmp_path) == before
    anomalies.keep(tmp_path / "a.npz", POOL, ["new"])
    assert anomalies.read(tmp_path / "a.npz").statements == ("new",)


@pytest.mark.parametrize(
    "other, told",
    [
        (study_factory.pool(4, [0, 2]), "3 other anomalies than the 4"),
        (study_factory.pool(3, [0, 1]), "draws 2 other anomalies than the 2"),
        (study_factory.pool(3, []), "draws 2 other anomalies than the 0"),
    ],
)
def test_another_pool_is_refused(tmp_path, other, told):
    anomalies.keep(tmp_path / "a.npz", POOL, [])
    with pytest.raises(errors.DpaError, match=told):
        anomalies.keep(tmp_path / "a.npz", other, [])
    assert anomalies.read(tmp_path / "a.npz").drawn.tolist() == [0, 2]


def test_a_damaged_record_is_told(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(errors.DpaError, match=r"a\.npz"):
        anomalies.read(tmp_path / "a.npz")
