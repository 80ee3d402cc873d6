"""Which images train, validate and test in each protocol."""

from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable

from dpa_jax.datasets import nih_metadata
from dpa_jax.errors import DpaError

NORMAL, ABNORMAL = 0, 1

# (image id, label) in the order in which they are stored
Split = list[tuple[str, int]]

_LISTS = {
    "normal/train": ("train", NORMAL),
    "normal/val": ("validation", NORMAL),
    "anomaly/val": ("validation", ABNORMAL),
    "normal/test": ("test", NORMAL),
    "anomaly/test": ("test", ABNORMAL),
}


def by_rule(
    entries: Mapping[str, nih_metadata.Entry],
    train_val: Sequence[str],
    test: Sequence[str],
    view: str | None,
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
    _known(train_val, entries, "the official training list")
    _known(test, entries, "the official test list")
    _disjoint({"the official training list": train_val, "the official test list": test})

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


def by_lists(
    entries: Mapping[str, nih_metadata.Entry], folder: Traversable
) -> dict[str, Split]:
    """Splits as lists of names say; their labels go before those of the table.

    Args:
      entries: the table by image id.
      folder: holds `normal/train`, `normal/test`, `anomaly/test` and, if there is a
        validation split, `normal/val` and `anomaly/val`.

    Raises:
      DpaError: a list is missing, unknown, or names an unknown image or one that
        another list has too.
    """
    if not folder.is_dir():
        raise DpaError(f"{folder} is not a folder of lists")
    found = {
        f"{kind.name}/{path.name}": path
        for kind in folder.iterdir()
        if kind.is_dir()
        for path in kind.iterdir()
        if not path.name.startswith(".")
    }
    needed = ("normal/train", "normal/test", "anomaly/test")
    absent = [name for name in needed if name not in found]
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
    return _read(entries, {name: found[name] for name in _LISTS if name in found})


def subset(
    entries: Mapping[str, nih_metadata.Entry], folder: Traversable
) -> dict[str, Split]:
    """Splits as the curated lists of the subset say.

    Args:
      entries: the table by image id.
      folder: holds the folder `subset` with the lists and, if there is a validation
        split, `subset_validation`, whose normal/val and anomaly/test are that split;
        or is itself the folder with the lists.

    Raises:
      DpaError: as `by_lists`.
    """
    if not (folder / "subset").is_dir():
        return by_lists(entries, folder)
    splits = by_lists(entries, folder / "subset")
    more = folder / "subset_validation"
    if more.is_dir():
        if "validation" in splits:
            raise DpaError(f"{folder}/subset has a validation split, and so has {more}")
        # The published lists call the abnormal images of the validation set a test.
        validation = [
            (name, label)
            for part, label in (("normal/val", NORMAL), ("anomaly/test", ABNORMAL))
            for name in nih_metadata.read_names(more / part)
        ]
        _known([name for name, _ in validation], entries, str(more))
        splits = splits | {"validation": validation}
        _disjoint({k: [name for name, _ in v] for k, v in splits.items()})
    return splits


def _read(
    entries: Mapping[str, nih_metadata.Entry], lists: Mapping[str, Traversable]
) -> dict[str, Split]:
    names = {part: nih_metadata.read_names(path) for part, path in lists.items()}
    for part, path in lists.items():
        _known(names[part], entries, str(path))
    _disjoint({str(lists[part]): value for part, value in names.items()})
    splits: dict[str, Split] = {}
    for part, (split, label) in _LISTS.items():
        if part in names:
            splits.setdefault(split, []).extend((n, label) for n in names[part])
    return splits


def _known(names: Sequence[str], entries: Mapping[str, object], source: str) -> None:
    unknown = [name for name in names if name not in entries]
    if unknown:
        raise DpaError(
            f"{source} names {len(unknown)} images that the table has not, "
            f"such as {unknown[0]!r}"
        )


def _disjoint(lists: Mapping[str, Sequence[str]]) -> None:
    seen: dict[str, str] = {}
    for source, names in lists.items():
        for name in names:
            if name in seen:
                raise DpaError(f"{name} is in {seen[name]} and in {source}")
            seen[name] = source
