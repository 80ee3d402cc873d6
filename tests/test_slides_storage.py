"""Files of folders and of object storage."""

import pytest

from dpa_jax.errors import DpaError
from dpa_jax.slides import storage

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def bucket():
    system = fsspec.filesystem("memory")
    system.pipe({"/bucket/b/two.tif": b"22", "/bucket/a/one.tif": b"1"})
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def test_folder_is_listed_in_order(tmp_path):
    for name in ("b/two.tif", "a/one.tif"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"123")
    found = storage.list_files(tmp_path)
    assert found == [
        (str(tmp_path / "a/one.tif"), 3),
        (str(tmp_path / "b/two.tif"), 3),
    ]


def test_linked_folders_are_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "normal_001.tif").write_bytes(b"abc")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "images").symlink_to(tmp_path / "disk")
    path = str(tmp_path / "source" / "images" / "normal_001.tif")
    assert storage.list_files(tmp_path / "source") == [(path, 3)]


def test_object_storage_is_listed_in_order(bucket):
    assert storage.list_files(bucket) == [
        ("memory:///bucket/a/one.tif", 1),
        ("memory:///bucket/b/two.tif", 2),
    ]


def test_object_is_on_the_disk_for_a_while(bucket, tmp_path):
    with storage.local_copy("memory://bucket/b/two.tif") as path:
        with open(path, "rb") as file:
            assert file.read() == b"22"
        assert path.endswith("two.tif")
    with pytest.raises(FileNotFoundError):
        open(path)


def test_missing_folder_and_object_are_named(bucket, tmp_path):
    with pytest.raises(DpaError, match="there is no folder .*nowhere"):
        storage.list_files(tmp_path / "nowhere")
    with pytest.raises(DpaError, match="memory://bucket/c cannot be fetched"):
        with storage.local_copy("memory://bucket/c"):
            pass


def test_unknown_scheme_is_named():
    with pytest.raises(DpaError, match="nosuch://bucket cannot be listed"):
        storage.list_files("nosuch://bucket")
