import pytest

from dpa_jax import errors
from dpa_jax.storage import json_files

FIELDS = {"steps": int, "loss": float, "name": (str, int)}


def test_an_object_with_its_fields_is_read_as_it_is(tmp_path):
    (tmp_path / "a.json").write_text('{"steps": 3, "loss": 1, "name": "x", "more": []}')
    found = json_files.read(tmp_path / "a.json", FIELDS, "delete it")
    assert found == {"steps": 3, "loss": 1, "name": "x", "more": []}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"\xff\xfe\x00", "not text"),
        (b'{"steps": 3', "not JSON"),
        (b"[]", "not an object of names and values"),
        (b"{}", "steps is missing"),
        (b'{"steps": 3, "loss": 1}', "name is missing"),
        (b'{"steps": 3.5, "loss": 1, "name": 1}', "steps is not a whole number"),
        (b'{"steps": true, "loss": 1, "name": 1}', "steps is not a whole number"),
        (b'{"steps": 3, "loss": "1", "name": 1}', "loss is not a number"),
        (b'{"steps": 3, "loss": 1, "name": 1.5}', "name is not text or a whole number"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"steps": ' + b"9" * 5_000 + b"}", "it holds a number that is too long"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason_and_the_remedy(
    tmp_path, content, reason
):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(errors.DpaError) as caught:
        json_files.read(path, FIELDS, "delete it")
    message = str(caught.value)
    assert message.startswith(f"{path}: damaged, {reason}")
    assert message.endswith("; delete it")


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(errors.DpaError, match=f"{tmp_path}: cannot be read: Is a dir"):
        json_files.read(tmp_path, FIELDS, "delete it")
