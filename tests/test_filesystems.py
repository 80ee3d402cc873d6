"""Files of folders and of object filesystems."""

import importlib.util
import io
import sys
import zipfile

import pytest

from dpa_jax.data import filesystems
from dpa_jax.errors import DpaError

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
    found = filesystems.list_files(tmp_path)
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
    assert filesystems.list_files(tmp_path / "source") == [(path, 3)]


def test_object_storage_is_listed_in_order(bucket):
    assert filesystems.list_files(bucket) == [
        ("memory:///bucket/a/one.tif", 1),
        ("memory:///bucket/b/two.tif", 2),
    ]


def test_object_is_on_the_disk_for_a_while(bucket, tmp_path):
    with filesystems.local_copy("memory://bucket/b/two.tif") as path:
        with open(path, "rb") as file:
            assert file.read() == b"22"
        assert path.endswith("two.tif")
    with pytest.raises(FileNotFoundError):
        open(path)


def test_a_file_packed_in_an_object_is_read(bucket):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("folder/one.xml", "<a/>")
    fsspec.filesystem("memory").pipe("/bucket/a.zip", stream.getvalue())
    name = "memory://bucket/a.zip::folder/one.xml"
    assert filesystems.list_packed("memory://bucket/a.zip", 2**20) == [(name, 4)]
    with filesystems.local_copy(name) as path:
        with open(path) as file:
            assert file.read() == "<a/>"


@pytest.mark.parametrize("remote", [False, True])
def test_files_are_written_read_and_removed_anywhere(bucket, tmp_path, remote):
    root = bucket if remote else str(tmp_path)
    path = f"{root}/new/one.npz"
    assert not filesystems.exists(path)
    for content in (b"first", b"second"):
        filesystems.write(path, content)
        assert filesystems.read(path) == content
    names = [
        place.rpartition("/")[2] for place, _ in filesystems.list_files(f"{root}/new")
    ]
    assert names == ["one.npz"]
    filesystems.remove(f"{root}/new")
    assert not filesystems.exists(path)
    with pytest.raises(DpaError, match="one.npz cannot be read"):
        filesystems.read(path)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DpaError, match="file/one.npz cannot be written"):
        filesystems.write(f"{tmp_path}/file/one.npz", b"")


def test_missing_folder_and_object_are_named(bucket, tmp_path):
    with pytest.raises(DpaError, match="there is no folder .*nowhere"):
        filesystems.list_files(tmp_path / "nowhere")
    with pytest.raises(DpaError, match="memory://bucket/c cannot be fetched"):
        with filesystems.local_copy("memory://bucket/c"):
            pass


@pytest.mark.parametrize(
    ("url", "package"), [("s3://bucket", "s3fs"), ("gs://bucket", "gcsfs")]
)
def test_a_scheme_names_the_package_that_it_needs(url, package):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(DpaError, match=f"needs a package: pip install {package}"):
        filesystems.list_files(url)
    with pytest.raises(DpaError, match=f"needs a package: pip install {package}"):
        with filesystems.local_copy(f"{url}/one.tif"):
            pass


def test_the_public_bucket_is_read_without_an_account(monkeypatch):
    asked = []

    class Bucket(fsspec.AbstractFileSystem):
        protocol = "s3"
        cachable = False

        def __init__(self, **options):
            super().__init__()
            asked.append(options)

        def find(self, path, **options):
            return {"camelyon-dataset/one.tif": {"size": 1}}

    registry = sys.modules["fsspec.registry"]._registry
    monkeypatch.setitem(registry, "s3", Bucket)
    found = filesystems.list_files("s3://camelyon-dataset/CAMELYON16")
    assert found == [("s3://camelyon-dataset/one.tif", 1)]
    filesystems.list_files("s3://camelyon-dataset-of-mine")
    assert asked == [{"anon": True}, {}]


def test_unknown_scheme_is_named():
    with pytest.raises(DpaError, match="nosuch://bucket cannot be reached"):
        filesystems.list_files("nosuch://bucket")
