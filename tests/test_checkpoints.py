import os
import pathlib

import jax
import numpy as np
import pytest

from dpa_jax import checkpoint, errors


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
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, jax.device_put(saved))
    found = checkpoint.restore(tmp_path, 3)
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(saved), strict=True):
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_later_changes_do_not_reach_what_is_being_written(tmp_path):
    values = tree()
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(values))
        values["optimizer"]["mu"][:] = -1
    assert checkpoint.restore(tmp_path, 1)["optimizer"]["mu"][1] == 1


def test_the_last_two_and_those_to_keep_stay(tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep=[2, 5]) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(step, tree())
        assert checkpoints.latest() is not None
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {2, 5, 7, 8}
    assert checkpoint.latest(tmp_path) == 8


def test_latest_of_an_empty_or_missing_workdir_is_none(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "missing") is None
    checkpoint.Checkpoints(tmp_path).close()
    assert checkpoint.latest(tmp_path) is None


def test_unfinished_checkpoints_and_other_files_are_no_checkpoints(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, tree())
    folder = tmp_path / "checkpoints"
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    (folder / "notes.txt").write_text("mine")
    assert checkpoint.latest(tmp_path) == 4
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, tree())
    # what a killed run left is cleared, what is not ours stays
    assert sorted(os.listdir(folder)) == ["4", "5", "notes.txt"]


def test_reading_writes_nothing_and_says_nothing(tmp_path, capfd):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, tree())
    before = sorted(tmp_path.rglob("*"))
    capfd.readouterr()
    checkpoint.restore(tmp_path, checkpoint.latest(tmp_path))
    assert capfd.readouterr() == ("", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_writing_says_nothing(tmp_path, capfd):
    with checkpoint.Checkpoints(tmp_path, keep=[1]) as checkpoints:
        for step in range(4):
            checkpoints.save(step, tree())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("damage", ["manifest.ocdbt", "d/*", "_METADATA"])
def test_damaged_checkpoint_is_one_error_that_names_it(tmp_path, capfd, damage):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, tree())
    for path in (tmp_path / "checkpoints" / "4").rglob(damage):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(errors.DpaError, match=r"checkpoints/4: .* cannot be read"):
        checkpoint.restore(tmp_path, 4)
    assert capfd.readouterr().err == ""


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = checkpoint.shutil.disk_usage(tmp_path)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree())
        with monkeypatch.context() as patch:
            patch.setattr(
                checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=9000)
            )
            with pytest.raises(errors.DpaError, match="no room.* 0.01 MiB are left"):
                checkpoints.save(2, tree())
    assert checkpoint.latest(tmp_path) == 1


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(errors.DpaError, match="checkpoints: cannot be written"):
        checkpoint.Checkpoints(tmp_path)


def test_only_this_module_imports_orbax():
    package = pathlib.Path(checkpoint.__file__).parent
    found = [
        path.name
        for path in package.rglob("*.py")
        if "import orbax" in path.read_text()
    ]
    assert found == ["checkpoint.py"]
