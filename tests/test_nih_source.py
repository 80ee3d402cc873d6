"""Finding and reading NIH ChestX-ray14's files."""

import gzip
import os
import stat
import tarfile
import tracemalloc
import zipfile

import nih_factory
import pytest

from dpa_jax.datasets import nih_source
from dpa_jax.errors import DpaError

NAMES = nih_factory.NAMES


def read(root, names=NAMES):
    """Returns what is read, as bytes, and the problems."""
    problems = []
    source = nih_source.find(root)
    nih_source.check_copies(source, names)
    found = nih_source.read(source, names, names, problems.append)
    return {item.name: item.read() for item in found}, problems


@pytest.mark.parametrize("layout", nih_factory.LAYOUTS)
def test_every_layout_gives_every_image(tmp_path, layout):
    nih_factory.write_images(tmp_path, layout)
    images, problems = read(tmp_path)
    assert images == {name: nih_factory.png(name) for name in NAMES}
    assert problems == []


def test_tables_are_found_anywhere_and_the_newest_release_is_taken(tmp_path):
    nih_factory.write_tables(tmp_path / "a", "Data_Entry_2017.csv")
    nih_factory.write_tables(tmp_path / "b", suffix=".gz")
    tables = nih_source.find(tmp_path).tables
    assert tables["entries"].name == "Data_Entry_2017_v2020.csv.gz"
    assert set(tables) == {"entries", "train_val", "test", "boxes"}


def test_a_table_that_is_not_there_is_named(tmp_path):
    source = nih_source.find(tmp_path)
    with pytest.raises(DpaError, match="no train_val_list.txt .* below"):
        source.table("train_val")


def test_two_tables_that_differ_are_refused(tmp_path):
    nih_factory.write_tables(tmp_path / "a")
    nih_factory.write_tables(tmp_path / "b")
    (tmp_path / "b" / "test_list.txt").write_text("00000001_000.png\n")
    with pytest.raises(DpaError, match="one name but differ"):
        nih_source.find(tmp_path)


def test_links_are_followed_but_not_in_circles(tmp_path):
    nih_factory.write_images(tmp_path / "elsewhere")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "source")
    assert len(read(tmp_path / "source")[0]) == len(NAMES)


def test_an_archive_is_opened_once_and_only_as_a_stream(tmp_path, monkeypatch):
    nih_factory.write_images(tmp_path, "archives")
    opened, original = [], tarfile.open

    def count(path, mode, **options):
        opened.append((path.name, mode))
        return original(path, mode, **options)

    monkeypatch.setattr(tarfile, "open", count)
    read(tmp_path)
    assert opened == [("images_01.tar.gz", "r|*"), ("images_02.tar.gz", "r|*")]


def test_archives_are_not_read_if_everything_is_unpacked(tmp_path):
    nih_factory.write_images(tmp_path)
    (tmp_path / "images_01.tar.gz").write_bytes(b"not an archive")
    assert read(tmp_path)[1] == []


def write_archive(root, kind, members):
    """Writes a .tar.gz or a .zip with members of any name."""
    path = root / f"images_01.{kind}"
    if kind == "tar.gz":
        nih_factory.write_archive(path, members)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    return path


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
@pytest.mark.parametrize("path", ["/images/{}", "images/../../{}", "C:/{}"])
def test_members_that_lead_out_are_refused(tmp_path, path, kind):
    members = {path.format(NAMES[0]): nih_factory.png(NAMES[0])}
    write_archive(tmp_path, kind, members)
    with pytest.raises(DpaError, match=f"images_01.{kind} holds .* leads out of"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
@pytest.mark.parametrize("name", [NAMES[0], "notes.txt"])
def test_members_larger_than_any_image_are_refused_unread(tmp_path, kind, name):
    path = write_archive(tmp_path, kind, {f"images/{name}": bytes(2**26 + 1)})
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(DpaError, match=f"holds 'images/{name}' of 67,108,865 bytes"):
        read(tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**25


def test_links_in_a_zip_are_not_followed(tmp_path):
    with zipfile.ZipFile(tmp_path / "images_01.zip", "w") as archive:
        link = zipfile.ZipInfo(f"images/{NAMES[0]}")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/hostname")
    assert read(tmp_path, NAMES[:1])[0] == {}


def test_a_damaged_zip_is_named_and_the_next_one_read(tmp_path):
    nih_factory.write_images(tmp_path, "zips")
    path = tmp_path / "images_001.zip"
    path.write_bytes(path.read_bytes()[:-100])
    images, problems = read(tmp_path)
    assert set(images) == set(NAMES[12:])
    assert problems[0].name == "images_001.zip" and problems[0].kind == "unreadable"


def test_links_in_archives_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "images_01.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo(f"images/{NAMES[0]}")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    images, problems = read(tmp_path, NAMES[:1])
    assert images == {}
    assert problems == [nih_source.Problem(NAMES[0], "missing", "")]


def test_a_truncated_archive_is_named_and_the_next_one_read(tmp_path):
    nih_factory.write_images(tmp_path, "archives")
    path = tmp_path / "images_01.tar.gz"
    path.write_bytes(path.read_bytes()[:-20_000])
    images, problems = read(tmp_path)
    assert set(NAMES[12:]) <= set(images)
    assert "images_01.tar.gz" in {problem.name for problem in problems}
    missing = {problem.name for problem in problems if problem.kind == "missing"}
    assert missing == set(NAMES) - set(images)


def test_copies_may_not_differ_on_disk(tmp_path):
    nih_factory.write_images(tmp_path, "doubled")
    (tmp_path / "images" / NAMES[3]).write_bytes(nih_factory.png(NAMES[4]))
    with pytest.raises(DpaError, match=f"{NAMES[3]} and .* one name but differ"):
        read(tmp_path)


def test_copies_of_one_size_and_time_may_not_differ_either(tmp_path):
    for folder, content in (("a", b"one"), ("b", b"two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / NAMES[0]).write_bytes(content)
        os.utime(tmp_path / folder / NAMES[0], (0, 0))
    with pytest.raises(DpaError, match="one name but differ"):
        read(tmp_path)


@pytest.mark.parametrize("other", ["images_02.tar.gz", "images"])
def test_copies_may_not_differ_from_those_in_archives(tmp_path, other):
    content = {f"images/{name}": nih_factory.png(name) for name in NAMES[:2]}
    nih_factory.write_archive(tmp_path / "images_01.tar.gz", content)
    wrong = nih_factory.png(NAMES[5])
    if other == "images":
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / NAMES[0]).write_bytes(wrong)
    else:
        nih_factory.write_archive(tmp_path / other, {f"images/{NAMES[0]}": wrong})
    with pytest.raises(DpaError, match=f"{NAMES[0]}.* one name but differ"):
        read(tmp_path, NAMES[:2])


def test_equal_copies_in_archives_are_read_once(tmp_path):
    content = {f"images/{name}": nih_factory.png(name) for name in NAMES}
    nih_factory.write_archive(tmp_path / "images_01.tar.gz", content)
    nih_factory.write_archive(tmp_path / "images_01 (1).tar.gz", content)
    source = nih_source.find(tmp_path)
    found = nih_source.read(source, NAMES, NAMES, pytest.fail)
    assert sorted(item.name for item in found) == NAMES


def test_gzip_of_something_else_is_a_problem(tmp_path):
    (tmp_path / "images_01.tar.gz").write_bytes(gzip.compress(b"nothing" * 999))
    _, problems = read(tmp_path, NAMES[:1])
    assert [problem.kind for problem in problems] == ["unreadable", "missing"]
