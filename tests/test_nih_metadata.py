"""The tables of NIH ChestX-ray14."""

import gzip
import zlib

import nih_factory
import pytest

from dpa_jax.datasets import nih_metadata
from dpa_jax.errors import DpaError


@pytest.mark.parametrize("table", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"])
@pytest.mark.parametrize("sex", ["Patient Gender", "Patient Sex"])
@pytest.mark.parametrize(("age", "suffix"), [("{}", ".gz"), ("{:03d}Y", "")])
def test_reads_every_release_of_the_table(tmp_path, table, sex, age, suffix):
    nih_factory.write_tables(tmp_path, table, sex, age, suffix)
    entries = nih_metadata.read_entries(tmp_path / (table + suffix))
    assert list(entries) == nih_factory.NAMES
    assert entries["00000001_001.png"] == nih_metadata.Entry(
        image_id="00000001_001.png",
        findings=("Mass", "Nodule"),
        follow_up=1,
        patient_id=1,
        age=58,
        sex="M",
        view="PA",
        original_width=2500,
        original_height=2049,
    )
    assert entries["00000001_000.png"].findings == ()


def test_boxes_are_fractions_of_the_image(tmp_path):
    nih_factory.write_tables(tmp_path)
    entries = nih_metadata.read_entries(
        tmp_path / "Data_Entry_2017_v2020.csv", tmp_path / "BBox_List_2017.csv"
    )
    assert entries["00000001_001.png"].boxes == (
        nih_metadata.Box("Mass", ymin=0.5, xmin=0.25, ymax=0.5625, xmax=0.375),
    )
    # its label is that of another release, and it reaches over the edge
    assert entries["00000007_000.png"].boxes == (
        nih_metadata.Box("Infiltration", ymin=0, xmin=0.9375, ymax=1, xmax=1),
    )


@pytest.mark.parametrize(
    ("age", "years"), [("058Y", 58), ("006M", 0.5), ("000D", 0), ("7", 7)]
)
def test_ages_are_in_years(tmp_path, age, years):
    nih_factory.write_tables(tmp_path, age=age)
    entries = nih_metadata.read_entries(tmp_path / "Data_Entry_2017_v2020.csv")
    assert entries["00000001_000.png"].age == pytest.approx(years)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("View Position", "Position", "no column for view"),
        (",PA,", ",LL,", "line 2: the view is 'LL', not PA or AP"),
        ("Hernia", "Hernias", "line 9: there is no finding 'Hernias'"),
        ("00000002_000.png", "00000001_000.png", "00000001_000.png is there twice"),
        (",57,", ",?,", "line 2: the age '\\?' is not a number"),
        (",2048,", ",,", "line 2: the original_height '' is not a number"),
    ],
)
def test_names_what_is_wrong_with_the_table(tmp_path, old, new, message):
    nih_factory.write_tables(tmp_path)
    path = tmp_path / "Data_Entry_2017_v2020.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DpaError, match=message) as error:
        nih_metadata.read_entries(path)
    assert str(path) in str(error.value)


def test_a_truncated_table_is_refused(tmp_path):
    path = tmp_path / "Data_Entry_2017.csv.gz"
    path.write_bytes(gzip.compress(b"Image Index" * 100)[:-9])
    with pytest.raises(DpaError, match="Data_Entry_2017.csv.gz cannot be read"):
        nih_metadata.read_entries(path)


def test_a_table_that_unpacks_to_gigabytes_is_refused(tmp_path):
    packer = zlib.compressobj(1, wbits=31)
    blocks = [packer.compress(bytes(2**20)) for _ in range(65)]
    path = tmp_path / "Data_Entry_2017.csv.gz"
    path.write_bytes(b"".join([*blocks, packer.flush()]))
    with pytest.raises(DpaError, match="cannot be read: .* more than 67,108,864"):
        nih_metadata.read_entries(path)


@pytest.mark.parametrize(
    ("content", "message"), [("\n", "lists no image"), ("a\nb\na\n", "lists a 2 times")]
)
def test_a_list_without_use_is_refused(tmp_path, content, message):
    (tmp_path / "list").write_text(content)
    with pytest.raises(DpaError, match=message):
        nih_metadata.read_names(tmp_path / "list")


def test_reads_the_real_tables(nih_entries):
    entries = nih_entries
    assert len(entries) == 112_120
    assert len({entry.patient_id for entry in entries.values()}) == 30_805
    assert sum(len(entry.boxes) for entry in entries.values()) == 984
    assert sum(entry.view == "PA" for entry in entries.values()) == 67_310
    assert sum("Hernia" in entry.findings for entry in entries.values()) == 227
