"""The configurations of NIH ChestX-ray14: a protocol at a size."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib.resources.abc import Traversable

from tensorflow_datasets.core import dataset_builder

from dpa_jax.data.decode import Preprocessing
from dpa_jax.datasets import nih_metadata, nih_protocols, nih_source, published_splits
from dpa_jax.errors import DpaError, UsageError

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
VIEWS = {"pa": "PA", "ap": "AP", "all": None, "native": None}


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
    entries: Mapping[str, nih_metadata.Entry],
    lists: Traversable | None,
) -> dict[str, nih_protocols.Split]:
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
    if config.protocol in VIEWS:
        train_val, test = (
            nih_metadata.read_names(source.table(name))
            for name in ("train_val", "test")
        )
        return nih_protocols.by_rule(entries, train_val, test, VIEWS[config.protocol])
    if config.protocol == "subset":
        lists = lists or published_splits.lists("nih_chest_xray14")
        return nih_protocols.subset(entries, lists)
    if lists is None:
        raise DpaError(f"{config.name} is split by lists; give the folder they are in")
    return nih_protocols.by_lists(entries, lists)


def read_entries(source: nih_source.Source) -> dict[str, nih_metadata.Entry]:
    """Reads the metadata of all images; of boxes, if their table is there."""
    return nih_metadata.read_entries(
        source.table("entries"), source.tables.get("boxes")
    )


def fingerprint(splits: Mapping[str, nih_protocols.Split]) -> str:
    """Returns what identifies the images and labels of some splits."""
    return hashlib.sha256(json.dumps(splits).encode()).hexdigest()
