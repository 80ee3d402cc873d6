"""What manifests and archives say about images: names of fields, labels."""

import difflib
from collections.abc import Sequence

from dpa_jax import errors

_LABELS = {"normal": 0, "0": 0, "abnormal": 1, "1": 1}


def parse_label(value: str, place: str) -> int:
    """Returns 0 for normal or 0 and 1 for abnormal or 1; `place` is named in errors."""
    if value.lower() not in _LABELS:
        raise errors.DpaError(
            f"{place}: a label is normal or 0, or abnormal or 1, not {value!r}"
        )
    return _LABELS[value.lower()]


def check_fields(
    source: str, found: Sequence[str], required: str, optional: Sequence[str]
) -> None:
    """Refuses a source that lacks its required field or has one that is misspelt.

    A field that is neither known nor much like a missing one is no fault.
    """
    if required not in found:
        raise errors.DpaError(
            f"{source}: no {required} among {', '.join(found) or 'no fields at all'}"
        )
    unknown = [name for name in found if name not in (required, *optional)]
    for name in optional:
        close = difflib.get_close_matches(name, unknown, 1, 0.75)
        if name not in found and close:
            raise errors.DpaError(
                f"{source}: {close[0]} is not known; if {name} is meant, rename it"
            )
