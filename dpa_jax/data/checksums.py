"""Checksums of what describes a prepared data set: names of classes, counts, features.

Its records carry checksums of their own.
"""

import hashlib
import json
from typing import Any

from dpa_jax import errors
from dpa_jax.storage import json_files

FILE = "checksums.json"
_RECORDS = ".array_record"


def write(folder: Any) -> None:
    """Writes the SHA-256 of each file in a folder but the records, once for all.

    Args:
      folder: a path of `pathlib` or `etils`.
    """
    if (folder / FILE).exists():
        return
    text = json.dumps(_sums(folder), indent=2) + "\n"
    (folder / FILE).write_text(text)


def check(folder: Any) -> None:
    """Compares the files in a folder with their checksums, if it has any.

    Raises:
      DpaError: one is missing or has changed; it is named.
    """
    if not (folder / FILE).exists():
        return
    found = _sums(folder)
    for name, digest in json_files.read(folder / FILE, {}, "prepare it again").items():
        if found.get(name) != digest:
            raise errors.DpaError(
                f"{folder / name} is missing or damaged, by its checksum in {FILE}: "
                "delete the folder and prepare the data set again"
            )


def _sums(folder: Any) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and _RECORDS not in path.name and path.name != FILE
    }
