"""NIH ChestX-ray14's protocols: which images train, validate and test, at what size."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable

from tensorflow_datasets.core import dataset_builder

from dpa_jax.data.decode import Preprocessing
from dpa_jax.datasets import nih_metadata, nih_source, published_splits
from dpa_jax.errors import DpaError, UsageError

NORMAL, ABNORMAL = 0, 1

# (image id, label) in the order in which they are stored
Split = list[tuple[str, int]]
Splits = Mapping[str, Split]
Entries = Mapping[str, nih_metadata.Entry]

# The first step of the published preprocessing. It serves them all: the others follow
# from it byte for byte.
WHOLE = Preprocessing(channels=1, size=300, resize=300)
PUBLISHED = Preprocessing(channels=1, size=64, resize=300, crop=224)
EQUALIZED = dataclasses.replace(PUBLISHED, equalize=True)


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(dataset_builder.BuilderConfig):
    """A configuration of the data set: a protocol, preprocessed in one way.

    The description ends in the numbers of normal + abnormal images of each split, if
    all images are there.
    """

    protocol: str
    preprocessing: Preprocessing


_PA = "train 34,497 + 0, validation 0 + 21,717, test 4,805 + 6,291"
_AP = "train 16,003 + 0, validation 0 + 14,307, test 5,056 + 9,444"
_BOTH = "train 50,500 + 0, validation 0 + 36,024, test 9,861 + 15,735"
_SUBSET = "train 4,261 + 0, validation 849 + 857, test 677 + 667"
CONFIGS = [
    Config(name=name, protocol=protocol, preprocessing=how, description=description)
    for name, protocol, how, description in (
        ("subset_64", "subset", PUBLISHED, f"The curated subset ({_SUBSET})."),
        ("pa_64", "pa", PUBLISHED, f"Postero-anterior images ({_PA})."),
        ("ap_64", "ap", PUBLISHED, f"Antero-posterior images ({_AP})."),
        ("ap_64_equalized", "ap", EQUALIZED, f"With equalised histograms ({_AP})."),
        ("all_64", "all", PUBLISHED, f"Both views ({_BOTH})."),
        ("custom_64", "custom", PUBLISHED, "Split by lists of your own."),
        ("native", "native", WHOLE, f"Both views, whole, at 300 px ({_BOTH})."),
    )
]
_VIEWS = {"pa": "PA", "ap": "AP", "all": None, "native": None}
# which split and label the images of a list have
_LISTS = {
    "normal/train": ("train", NORMAL),
    "normal/val": ("validation", NORMAL),
    "anomaly/val": ("validation", ABNORMAL),
    "normal/test": ("test", NORMAL),
    "anomaly/test": ("test", ABNORMAL),
}
_NEEDED = ("normal/train", "normal/test", "anomaly/test")


def find(name: str) -> Config:
    """Returns the config of a name."""
    return next(config for config in CONFIGS if config.name == name)


def configs_of(protocol: str, has_lists: bool) -> list[Config]:
    """Returns the configs to prepare for a protocol.

    Args:
      protocol: `subset`, `pa`, `ap`, `custom`, `native`, or `all` for the first three
        and both views together.
      has_lists: whether lists were given.

    Raises:
      UsageError: there is no such protocol, or it needs lists, or uses none.
    """
    known = list(dict.fromkeys(config.protocol for config in CONFIGS))
    if protocol not in known:
        raise UsageError(
            f"there is no protocol {protocol!r}; it may be {', '.join(known)}"
        )
    if protocol == "custom" and not has_lists:
        raise UsageError(
            "the protocol custom is split by lists: name their folder by --lists"
        )
    if protocol in ("pa", "ap", "native") and has_lists:
        raise UsageError(
            f"the protocol {protocol} follows from the official lists; to split by "
            "your own use --protocol custom"
        )
    chosen = ("subset", "pa", "ap", "all") if protocol == "all" else (protocol,)
    return [config for config in CONFIGS if config.protocol in chosen]


def requested_splits(
    config: Config,
    source: nih_source.Source,
    entries: Entries,
    lists: Traversable | None,
) -> dict[str, Split]:
    """Returns a config's splits, whether or not their images are there.

    Args:
      config: of which protocol.
      source: where the official lists are.
      entries: the table by image id.
      lists: the folder of the lists of the subset, None for the published ones, or of
        a custom protocol.

    Raises:
      DpaError: lists are missing or do not fit the table.
    """
    if config.protocol in _VIEWS:
        train_val, test = (
            nih_metadata.read_names(source.table(name))
            for name in ("train_val", "test")
        )
        return by_rule(entries, train_val, test, _VIEWS[config.protocol])
    if lists is None and config.protocol == "subset":
        lists = published_splits.lists("nih_chest_xray14")
    if lists is None:
        raise DpaError(f"{config.name} is split by lists; give the folder they are in")
    return by_lists(entries, lists)


def by_rule(
    entries: Entries, train_val: Sequence[str], test: Sequence[str], view: str | None
) -> dict[str, Split]:
    """Splits by the official lists, the view and the label `No Finding`.

    Args:
      entries: the table by image id.
      train_val: the names of the official list for training and validation.
      test: the names of the official test list.
      view: `PA`, `AP`, or None for both.

    Returns:
      train: every normal image of the official training list. validation: the
      abnormal images of that list, which the method trains without; they are there
      to choose hyper-parameters with, and share patients with `train`. test: all
      images of the official test list, normal ones first.

    Raises:
      DpaError: a list names an image that the table has not, or both name one.
    """
    _check(
        {"the official training list": train_val, "the official test list": test},
        entries,
    )

    def chosen(names: Sequence[str], label: int) -> Split:
        return [
            (name, label)
            for name in sorted(names)
            if bool(entries[name].findings) == bool(label)
            and view in (None, entries[name].view)
        ]

    return {
        "train": chosen(train_val, NORMAL),
        "validation": chosen(train_val, ABNORMAL),
        "test": chosen(test, NORMAL) + chosen(test, ABNORMAL),
    }


def by_lists(entries: Entries, folder: Traversable) -> dict[str, Split]:
    """Splits as lists of names say; their labels go before those of the table.

    Args:
      entries: the table by image id.
      folder: holds `normal/train`, `normal/test`, `anomaly/test` and, if there is a
        validation split, `normal/val` and `anomaly/val`. Or, as the published lists of
        the subset, a folder `subset` with these and, if there is a validation split,
        `subset_validation`, whose normal/val and anomaly/test are that split.

    Raises:
      DpaError: a list is missing, unknown, or names an unknown image or one that
        another list has too.
    """
    if not (folder / "subset").is_dir():
        return _read(entries, _find_lists(folder))
    lists = _find_lists(folder / "subset")
    more = folder / "subset_validation"
    if more.is_dir():
        if any(split == "validation" for _, split, _ in lists):
            raise DpaError(f"{folder}/subset has a validation split, and so has {more}")
        # The published lists call the abnormal images of the validation set a test.
        lists.append((more / "normal/val", "validation", NORMAL))
        lists.append((more / "anomaly/test", "validation", ABNORMAL))
    return _read(entries, lists)


def fingerprint(splits: Splits) -> str:
    """Returns what identifies the images and labels of some splits."""
    return hashlib.sha256(json.dumps(splits).encode()).hexdigest()


def _find_lists(folder: Traversable) -> list[tuple[Traversable, str, int]]:
    """Returns the lists in a folder, each with the split and label of its images."""
    if not folder.is_dir():
        raise DpaError(f"{folder} is not a folder of lists")
    found = {
        f"{kind.name}/{path.name}": path
        for kind in folder.iterdir()
        if kind.is_dir()
        for path in kind.iterdir()
        if not path.name.startswith(".")
    }
    absent = [name for name in _NEEDED if name not in found]
    unknown = sorted(set(found) - set(_LISTS))
    if absent or unknown:
        faults = [f"has no list {', '.join(absent)}"] if absent else []
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            faults.append(
                f"holds {', '.join(unknown[:3])}{more}, for which there is no split"
            )
        raise DpaError(
            f"{folder} {'; '.join(faults)} (the lists are {', '.join(_LISTS)}; "
            "training images are all normal)"
        )
    return [(found[name], *_LISTS[name]) for name in _LISTS if name in found]


def _read(
    entries: Entries, lists: Sequence[tuple[Traversable, str, int]]
) -> dict[str, Split]:
    names = {str(path): nih_metadata.read_names(path) for path, _, _ in lists}
    _check(names, entries)
    splits: dict[str, Split] = {}
    for path, split, label in lists:
        splits.setdefault(split, []).extend((name, label) for name in names[str(path)])
    return splits


def _check(lists: Mapping[str, Sequence[str]], entries: Entries) -> None:
    """Refuses lists that name an image that the table has not, or one twice."""
    seen: dict[str, str] = {}
    for source, names in lists.items():
        unknown = [name for name in names if name not in entries]
        if unknown:
            raise DpaError(
                f"{source} names {len(unknown)} images that the table has not, "
                f"such as {unknown[0]!r}"
            )
        for name in names:
            if name in seen:
                raise DpaError(f"{name} is in {seen[name]} and in {source}")
            seen[name] = source
