"""Lists of Camelyon16's patches by name, as the published experiments have them."""

import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable

from dpa_jax.datasets import camelyon16_layout, published_splits
from dpa_jax.errors import DpaError

NORMAL, TUMOUR = 0, 1
PUBLISHED, NO_LISTS = "published", "none"  # values of --lists besides folders

# list -> split and label; validation tunes hyper-parameters
LISTS = {
    "normal/train": ("train", NORMAL),
    "anomaly/train": ("validation", TUMOUR),
    "normal/test": ("test", NORMAL),
    "anomaly/test": ("test", TUMOUR),
}
_LISTED = re.compile(
    r"(normal|tumor|test)_(\d{3})_(normal|tumor)_x_(\d+)_y_(\d+)_w_768_h_768(\.\w+)?",
    re.IGNORECASE,
)

# by (split, slide, label): x and y of patches in level-0 pixels
Corners = Mapping[tuple[str, str, int], Sequence[tuple[int, int]]]


def find(lists: str | os.PathLike) -> Traversable | None:
    """Returns the folder of the lists that `--lists` names, or None for none."""
    if lists == NO_LISTS:
        return None
    if lists == PUBLISHED:
        return published_splits.lists("camelyon16")
    return pathlib.Path(lists)


def read(folder: Traversable) -> Corners:
    """Reads lists of patches in the form of the published ones.

    Args:
      folder: holds `normal/train`, `normal/test`, `anomaly/test`, `anomaly/train`.

    Returns:
      The corners of the patches, in the order of the lists.

    Raises:
      DpaError: there is no list, or a name in one cannot be read.
    """
    patches: dict[tuple[str, str, int], dict[tuple[int, int], None]] = {}
    found = [name for name in LISTS if (folder / name).is_file()]
    if not found:
        raise DpaError(
            f"no list of patches in {folder}; there should be {', '.join(LISTS)}"
        )
    for name in found:
        split, label = LISTS[name]
        path = folder / name
        for number, line in enumerate(path.read_text().split(), 1):
            match = _LISTED.fullmatch(line)
            if not match or (match[3].lower() == "tumor") != (label == TUMOUR):
                raise DpaError(
                    f"{path}, entry {number}: {line!r} is not like "
                    "normal_001_normal_x_768_y_1536_w_768_h_768.jpg"
                )
            slide = camelyon16_layout.canonical(match[1].lower(), match[2])
            corners = patches.setdefault((split, slide, label), {})
            corner = (int(match[4]), int(match[5]))
            if corner in corners:
                raise DpaError(f"{path}, entry {number}: {line!r} is there twice")
            corners[corner] = None
    return {key: tuple(corners) for key, corners in patches.items()}


def digest(folder: Traversable) -> str:
    """Returns what identifies the content of lists."""
    content = hashlib.sha256()
    for name in LISTS:
        if (folder / name).is_file():
            content.update(name.encode() + b"\0" + (folder / name).read_bytes() + b"\0")
    return content.hexdigest()[:16]
