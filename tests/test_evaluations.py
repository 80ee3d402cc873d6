import pytest

from dpa_jax import errors
from dpa_jax.storage import evaluations


@pytest.mark.parametrize(
    "locations, name",
    [
        (["data/Test set.csv"], "Test-set"),
        (["data/all.csv:val"], "all-val"),
        (["x/arrays.npz"], "arrays"),
        (["some/folder/"], "folder"),
        (["tfds:nih_chest_xray14/pa:test[:10%]"], "nih_chest_xray14-pa-test-10"),
        (["data/test/normal", "data/test/abnormal/"], "test"),
        (["a/x", "b/y"], "test"),
        (["..."], "test"),
    ],
)
def test_an_evaluation_is_named_after_its_test_set(locations, name):
    assert evaluations.name_of(locations) == name


def test_names_that_are_taken_get_numbers(tmp_path):
    found = [evaluations.claim([tmp_path], "a") for _ in range(3)]
    assert found == ["a", "a-2", "a-3"]
    assert evaluations.claim([tmp_path / "other", tmp_path], "a") == "a-4"
    assert not evaluations.folder(tmp_path, "a-4").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_a_name_does_not_lead_out_of_the_workdir(tmp_path, name):
    with pytest.raises(errors.UsageError, match="without slashes"):
        evaluations.folder(tmp_path, name)
