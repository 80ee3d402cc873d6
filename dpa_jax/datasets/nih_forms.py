"""The forms in which NIH ChestX-ray14 is stored: a protocol at a size."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib.resources.abc import Traversable

from dpa_jax.data.decode import Preprocessing
from dpa_jax.datasets import (
    nih_metadata,
    nih_protocols,
    nih_source,
    published_splits,
)
from dpa_jax.errors import DpaError, UsageError

# The first step of the published preprocessing. It serves them all: the others follow
# from it byte for byte.
WHOLE = Preprocessing(channels=1, size=300, resize=300)
PUBLISHED = Preprocessing(channels=1, size=64, resize=300, crop=224)
EQUALIZED = dataclasses.replace(PUBLISHED, equalize=True)


@dataclasses.dataclass(frozen=True)
class Form:
    """A protocol in one stored form: a configuration of the data set.

    The description ends in the numbers of normal + abnormal images of each split, if
    all images are there.
    """

    name: str
    protocol: str
    preprocessing: Preprocessing
    description: str


_PA_COUNTS = "train 34,497 + 0, validation 0 + 21,717, test 4,805 + 6,291"
_AP_COUNTS = "train 16,003 + 0, validation 0 + 14,307, test 5,056 + 9,444"
_ALL_COUNTS = "train 50,500 + 0, validation 0 + 36,024, test 9,861 + 15,735"
FORMS = (
    Form(
        "subset_64",
        "subset",
        PUBLISHED,
        "The curated subset, at 64 px "
        "(train 4,261 + 0, validation 849 + 857, test 677 + 667).",
    ),
    Form(
        "pa_64", "pa", PUBLISHED, f"Postero-anterior images, at 64 px ({_PA_COUNTS})."
    ),
    Form(
        "ap_64", "ap", PUBLISHED, f"Antero-posterior images, at 64 px ({_AP_COUNTS})."
    ),
    Form(
        "ap_64_equalized",
        "ap",
        EQUALIZED,
        f"Antero-posterior images with equalised histograms, at 64 px ({_AP_COUNTS}).",
    ),
    Form("all_64", "all", PUBLISHED, f"Both views, at 64 px ({_ALL_COUNTS})."),
    Form("custom_64", "custom", PUBLISHED, "Split by lists of your own, at 64 px."),
    Form(
        "native",
        "native",
        WHOLE,
        "Both views, whole, at 300 px, for other crops and resolutions "
        f"({_ALL_COUNTS}).",
    ),
)
VIEWS = {"pa": "PA", "ap": "AP", "all": None, "native": None}


def find(name: str) -> Form:
    """Returns the form of a name."""
    return next(form for form in FORMS if form.name == name)


def forms_of(protocol: str, has_lists: bool) -> list[Form]:
    """Returns the forms to prepare for a protocol.

    Args:
      protocol: `subset`, `pa`, `ap`, `custom`, `native`, or `all` for the first three
        and both views together.
      has_lists: whether lists were given.

    Raises:
      UsageError: there is no such protocol, or it needs lists, or uses none.
    """
    known = list(dict.fromkeys(form.protocol for form in FORMS))
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
    return [form for form in FORMS if form.protocol in chosen]


def requested_splits(
    form: Form,
    source: nih_source.Source,
    entries: Mapping[str, nih_metadata.Entry],
    lists: Traversable | None,
) -> dict[str, nih_protocols.Split]:
    """Returns a form's splits, whether or not their images are there.

    Args:
      form: of which protocol.
      source: where the official lists are.
      entries: the table by image id.
      lists: the folder of the lists of the subset, None for the published ones, or of
        a custom protocol.

    Raises:
      DpaError: lists are missing or do not fit the table.
    """
    if form.protocol in VIEWS:
        train_val, test = (
            nih_metadata.read_names(source.table(name))
            for name in ("train_val", "test")
        )
        return nih_protocols.by_rule(entries, train_val, test, VIEWS[form.protocol])
    if form.protocol == "subset":
        lists = lists or published_splits.lists("nih_chest_xray14")
        return nih_protocols.subset(entries, lists)
    if lists is None:
        raise DpaError(f"{form.name} is split by lists; give the folder they are in")
    return nih_protocols.by_lists(entries, lists)


def read_entries(source: nih_source.Source) -> dict[str, nih_metadata.Entry]:
    """Reads the metadata of all images; of boxes, if their table is there."""
    return nih_metadata.read_entries(
        source.table("entries"), source.tables.get("boxes")
    )


def fingerprint(splits: Mapping[str, nih_protocols.Split]) -> str:
    """Returns what identifies the images and labels of some splits."""
    return hashlib.sha256(json.dumps(splits).encode()).hexdigest()
