"""Which images are in which split."""

import pathlib
import re

import nih_factory
import pytest

from dpa_jax.datasets import nih_metadata, nih_protocols, nih_source, published_splits
from dpa_jax.errors import DpaError


@pytest.fixture
def entries(tmp_path):
    nih_factory.write_tables(tmp_path)
    return nih_metadata.read_entries(tmp_path / "Data_Entry_2017_v2020.csv")


def test_the_rule_for_a_view(entries):
    train_val = [n for n in nih_factory.NAMES if n < "00000006"]
    test = [n for n in nih_factory.NAMES if n > "00000006"]
    splits = nih_protocols.by_rule(entries, train_val[::-1], test, "PA")
    assert splits == {
        "train": [
            ("00000001_000.png", 0),
            ("00000002_000.png", 0),
            ("00000002_002.png", 0),
            ("00000005_000.png", 0),
            ("00000005_001.png", 0),
        ],
        "validation": [("00000001_001.png", 1), ("00000004_000.png", 1)],
        "test": [
            ("00000006_000.png", 0),
            ("00000006_002.png", 0),
            ("00000008_000.png", 0),
            ("00000008_002.png", 0),
            ("00000007_000.png", 1),
            ("00000007_002.png", 1),
        ],
    }


def test_both_views_are_every_image_once(entries):
    splits = nih_protocols.by_rule(
        entries, nih_factory.NAMES[:12], nih_factory.NAMES[12:], None
    )
    names = sorted(name for split in splits.values() for name, _ in split)
    assert names == nih_factory.NAMES


def test_lists_go_before_the_labels_of_the_table(entries, tmp_path):
    folder = nih_factory.write_subset(tmp_path / "lists")
    assert nih_protocols.by_lists(entries, folder) == {
        "train": [("00000001_000.png", 0), ("00000002_000.png", 0)],
        "validation": [("00000003_000.png", 0), ("00000004_000.png", 1)],
        "test": [
            ("00000008_000.png", 0),
            ("00000008_001.png", 0),
            ("00000007_001.png", 1),
            ("00000007_000.png", 1),
        ],
    }


def test_the_folder_of_the_subset_itself_will_do(entries, tmp_path):
    folder = nih_factory.write_subset(tmp_path / "lists")
    splits = nih_protocols.by_lists(entries, folder / "subset")
    assert list(splits) == ["train", "test"]


def test_custom_lists_may_have_a_validation_split(entries, tmp_path):
    lists = {
        "normal/train": ["00000001_000.png"],
        "normal/val": ["00000002_000.png"],
        "anomaly/val": ["00000003_001.png"],
        "normal/test": ["00000005_000.png"],
        "anomaly/test": ["00000007_000.png"],
    }
    folder = nih_factory.write_lists(tmp_path / "lists", lists)
    splits = nih_protocols.by_lists(entries, folder)
    assert splits["validation"] == [("00000002_000.png", 0), ("00000003_001.png", 1)]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"normal/test": None}, "has no list normal/test"),
        ({"anomaly/train": ["00000003_001.png"]}, "holds anomaly/train, for which"),
        ({"anomaly/test": ["00000009_000.png"]}, "names 1 images that the table has"),
        ({"anomaly/test": ["00000001_000.png"]}, "00000001_000.png is in .* and in"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(entries, tmp_path, lists, message):
    good = {
        "normal/train": ["00000001_000.png"],
        "normal/test": ["00000005_000.png"],
        "anomaly/test": ["00000007_000.png"],
    }
    chosen = {part: names for part, names in (good | lists).items() if names}
    folder = nih_factory.write_lists(tmp_path / "lists", chosen)
    with pytest.raises(DpaError, match=message):
        nih_protocols.by_lists(entries, folder)


def test_a_folder_of_much_else_is_refused_in_a_line(entries, tmp_path):
    lists = {f"images/{number}": ["x"] for number in range(5)}
    folder = nih_factory.write_lists(tmp_path / "lists", lists)
    with pytest.raises(DpaError, match="images/0, images/1, images/2 and 2 more, for"):
        nih_protocols.by_lists(entries, folder)


def test_a_folder_that_is_not_there_is_refused(entries, tmp_path):
    with pytest.raises(DpaError, match="lists is not a folder of lists"):
        nih_protocols.by_lists(entries, tmp_path / "lists")


def test_official_lists_that_overlap_are_refused(entries):
    with pytest.raises(DpaError, match="00000001_000.png is in the official training"):
        nih_protocols.by_rule(entries, nih_factory.NAMES, nih_factory.NAMES[:1], "PA")


class AnyName:
    """A table that has every image."""

    def __contains__(self, name):
        return True


def test_the_package_holds_the_published_lists_of_the_subset():
    config = nih_protocols.find("subset_64")
    splits = nih_protocols.requested_splits(config, None, AnyName(), None)
    labels = {part: [label for _, label in split] for part, split in splits.items()}
    assert labels["train"] == [0] * 4_261
    assert labels["test"] == [0] * 677 + [1] * 667
    assert labels["validation"] == [0] * 849 + [1] * 857
    assert splits["train"][0] == ("00000047_001.png", 0)
    assert splits["test"][677] == ("00000013_025.png", 1)
    assert splits["validation"][849] == ("00000009_000.png", 1)


def test_the_documentation_has_the_counts_of_every_description():
    text = (pathlib.Path(__file__).parents[1] / "docs" / "data.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for config in nih_protocols.CONFIGS:
        counts = re.findall(r"[\d,]+ \+ [\d,]*\d", config.description)
        lines = [row for row in rows if f"`{config.name}`" in row]
        assert lines and all(count in lines[0] for count in counts)


def test_descriptions_hold_the_counts_to_expect(shared, nih_entries):
    source = nih_source.find(shared / "data" / "nih_chest_xray14")
    for config in nih_protocols.CONFIGS:
        if config.protocol == "custom":
            continue
        splits = nih_protocols.requested_splits(config, source, nih_entries, None)
        parts = []
        for part in ("train", "validation", "test"):
            abnormal = sum(label for _, label in splits[part])
            parts.append(f"{part} {len(splits[part]) - abnormal:,} + {abnormal:,}")
        assert f"({', '.join(parts)})" in config.description


def test_the_real_rules_give_the_published_lists(shared, nih_entries):
    folder, entries = shared / "data" / "nih_chest_xray14", nih_entries
    train_val, test = (
        nih_metadata.read_names(folder / f"{name}_list.txt")
        for name in ("train_val", "test")
    )
    counts = {"PA": (34_497, 4_805, 6_291), "AP": (16_003, 5_056, 9_444)}
    for view, expected in counts.items():
        rule = nih_protocols.by_rule(entries, train_val, test, view)
        lists = nih_protocols.by_lists(entries, folder / "reference_splits" / view)
        assert rule["train"] == lists["train"]
        assert rule["test"] == lists["test"]
        abnormal = sum(label for _, label in rule["test"])
        assert (len(rule["train"]), len(rule["test"]) - abnormal, abnormal) == expected


def test_the_real_subset_has_its_published_counts(shared, nih_entries):
    folder, entries = shared / "data" / "nih_chest_xray14", nih_entries
    splits = nih_protocols.by_lists(entries, folder / "reference_splits")
    assert splits == nih_protocols.by_lists(
        entries, published_splits.lists("nih_chest_xray14")
    )
    labels = {part: [label for _, label in split] for part, split in splits.items()}
    assert labels["train"] == [0] * 4_261
    assert labels["test"] == [0] * 677 + [1] * 667
    assert labels["validation"] == [0] * 849 + [1] * 857
    differ = [n for n, label in splits["test"] if bool(entries[n].findings) != label]
    assert len(differ) == 21
    patients = {
        part: {entries[name].patient_id for name, _ in split}
        for part, split in splits.items()
    }
    assert not patients["train"] & (patients["validation"] | patients["test"])
    assert not patients["validation"] & patients["test"]
