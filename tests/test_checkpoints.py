import gc
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

import dpa_jax
from dpa_jax import errors
from dpa_jax.storage import checkpoints


def tree(value=1.0):
    return {
        "parameters": {
            "encoder": {
                f"block_{i}": {"kernel": np.full((3, 3, 2, 4), value, np.float32)}
                for i in range(8)
            }
        },
        "optimizer": {"count": np.int32(7), "mu": np.arange(5, dtype=np.float32)},
    }


def test_arrays_come_back_as_they_were(tmp_path):
    saved = tree(0.1)
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(3, jax.device_put(saved), {})
    found = checkpoints.restore(tmp_path, 3).arrays
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(saved), strict=True):
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_reading_leaves_nothing_behind(tmp_path):
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(3, tree(), {})

    def objects():
        checkpoints.restore(tmp_path, 3)
        gc.collect()
        return len(gc.get_objects())

    objects()
    before = objects()
    # TensorStore's JSON of these ten arrays is some 100
    assert objects() < before + 30


def test_later_changes_do_not_reach_what_is_being_written(tmp_path):
    values, notes = tree(), {"window": {"sums": {"loss": 0.0}}}
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(1, jax.device_put(values), notes)
        values["optimizer"]["mu"][:] = -1
        notes["window"]["sums"]["loss"] = -1.0
    found = checkpoints.restore(tmp_path, 1)
    assert found.arrays["optimizer"]["mu"][1] == 1
    assert found.notes["window"]["sums"]["loss"] == 0


def test_the_last_two_and_those_to_keep_stay(tmp_path):
    with checkpoints.Checkpoints(tmp_path, keep=[2, 5]) as kept:
        for step in range(1, 9):
            kept.save(step, tree(), {})
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {2, 5, 7, 8}
    assert checkpoints.latest(tmp_path) == 8


def test_latest_of_an_empty_or_missing_workdir_is_none(tmp_path):
    assert checkpoints.latest(tmp_path) is None
    assert checkpoints.latest(tmp_path / "missing") is None
    checkpoints.Checkpoints(tmp_path).close()
    assert checkpoints.latest(tmp_path) is None


def test_unfinished_checkpoints_and_other_files_are_no_checkpoints(tmp_path):
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(4, tree(), {})
    folder = tmp_path / "checkpoints"
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    (folder / "notes.txt").write_text("mine")
    assert checkpoints.latest(tmp_path) == 4
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(5, tree(), {})
    # what a killed run left is cleared, what is not ours stays
    assert sorted(os.listdir(folder)) == ["4", "5", "notes.txt"]


def test_reading_writes_nothing_and_says_nothing(tmp_path, capfd):
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(4, tree(), {})
    before = sorted(tmp_path.rglob("*"))
    capfd.readouterr()
    checkpoints.restore(tmp_path, checkpoints.latest(tmp_path))
    assert capfd.readouterr() == ("", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_writing_says_nothing(tmp_path, capfd):
    with checkpoints.Checkpoints(tmp_path, keep=[1]) as kept:
        for step in range(4):
            kept.save(step, tree(), {})
    assert capfd.readouterr() == ("", "")


def test_notes_come_back_as_they_were(tmp_path):
    notes = {"window": {"count": 3, "sums": {"loss": 0.1 + 0.2}}, "evaluations": []}
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(3, tree(), notes)
    assert checkpoints.restore(tmp_path, 3).notes == notes


def test_the_best_stays_and_the_one_before_it_until_the_next(tmp_path):
    with checkpoints.Checkpoints(tmp_path) as kept:
        for step in range(1, 12):
            if step in (2, 5, 7):
                kept.keep_best(step)
            kept.save(step, tree(), {})
            kept.wait()
            if step == 6:
                assert checkpoints.steps(tmp_path) == [2, 5, 6]
    assert checkpoints.steps(tmp_path) == [5, 7, 10, 11]


def test_every_bit_of_the_arrays_is_checked(tmp_path):
    rng = np.random.default_rng(0)
    saved = {"parameters": rng.normal(size=10_000).astype(np.float32)}
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(4, saved, {})
    files = (tmp_path / "checkpoints" / "4" / "default").rglob("d/*")
    path, detected = max(files, key=lambda file: file.stat().st_size), 0
    whole = path.read_bytes()
    for _ in range(20):
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            found = checkpoints.restore(tmp_path, 4).arrays
        except checkpoints.DamagedError as error:
            assert "checkpoints/4" in str(error)
            detected += 1
        else:  # a byte that no array is made of
            jax.tree.map(np.testing.assert_array_equal, found, saved)
    assert detected > 15
    path.write_bytes(whole)
    found = checkpoints.restore(tmp_path, 4).arrays
    jax.tree.map(np.testing.assert_array_equal, found, saved)


def test_other_numbers_than_were_written_are_named(tmp_path):
    with checkpoints.Checkpoints(tmp_path) as kept:
        for step, value in ((4, 1.0), (5, 2.0)):
            kept.save(step, tree(value), {})
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder / "4" / "default")
    shutil.copytree(folder / "5" / "default", folder / "4" / "default")
    with pytest.raises(checkpoints.DamagedError, match="damaged: parameters/encoder"):
        checkpoints.restore(tmp_path, 4)


def test_a_checkpoint_without_digests_is_of_an_earlier_version(tmp_path):
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(4, tree(), {})
    shutil.rmtree(tmp_path / "checkpoints" / "4" / "meta")
    found = checkpoints.restore(tmp_path, 4)
    assert found.notes == {} and found.arrays["optimizer"]["count"] == 7


def test_a_checkpoint_without_a_digest_of_its_notes_is_of_an_earlier_version(tmp_path):
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(4, tree(), {"window": 7})
    path = tmp_path / "checkpoints" / "4" / "meta" / "metadata"
    notes = json.loads(path.read_text())
    del notes["sha256"]["meta"]
    path.write_text(json.dumps(notes))
    assert checkpoints.restore(tmp_path, 4).notes == {"window": 7}
    notes["sha256"]["parameters/encoder/block_0/kernel"] = "0" * 64
    path.write_text(json.dumps(notes))
    with pytest.raises(checkpoints.DamagedError, match="block_0/kernel not as written"):
        checkpoints.restore(tmp_path, 4)


def test_one_that_is_set_aside_is_none_any_more(tmp_path):
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(3, tree(), {})
        kept.save(4, tree(), {})
    assert checkpoints.set_aside(tmp_path, 4).name == "4.damaged"
    assert checkpoints.latest(tmp_path) == 3
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(4, tree(), {})
    assert checkpoints.set_aside(tmp_path, 4).name == "4.damaged_2"


@pytest.mark.parametrize("damage", ["manifest.ocdbt", "d/*", "_METADATA", "metadata"])
def test_damaged_checkpoint_is_one_error_that_names_it(tmp_path, capfd, damage):
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(4, tree(), {})
    for path in (tmp_path / "checkpoints" / "4").rglob(damage):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(
        checkpoints.DamagedError, match=r"checkpoints/4: .* cannot be read"
    ):
        checkpoints.restore(tmp_path, 4)
    assert capfd.readouterr().err == ""


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = checkpoints.shutil.disk_usage(tmp_path)
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(1, tree(), {})
        with monkeypatch.context() as patch:
            patch.setattr(
                checkpoints.shutil, "disk_usage", lambda path: usage._replace(free=9000)
            )
            with pytest.raises(errors.DpaError, match="no room.* 0.01 MiB are left"):
                kept.save(2, tree(), {})
    assert checkpoints.latest(tmp_path) == 1


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(errors.DpaError, match="checkpoints: cannot be written"):
        checkpoints.Checkpoints(tmp_path)


def test_only_this_module_imports_orbax():
    package = pathlib.Path(dpa_jax.__file__).parent
    found = [
        path.name
        for path in package.rglob("*.py")
        if "import orbax" in path.read_text()
    ]
    assert found == ["checkpoints.py"]
