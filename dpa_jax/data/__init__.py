"""Images on disk to uint8 arrays, in host memory or mapped from a file.

What decodes is imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dpa_jax.data.image_set import ImageSet, Skipped, joined, release

if TYPE_CHECKING:
    from dpa_jax.data.decode import ImageError, Preprocessing
    from dpa_jax.data.given import as_image_set
    from dpa_jax.data.sources import EXTENSIONS, list_images, load

__all__ = [
    "EXTENSIONS",
    "ImageError",
    "ImageSet",
    "Preprocessing",
    "Skipped",
    "as_image_set",
    "joined",
    "list_images",
    "load",
    "release",
]

_HOMES = {"ImageError": "decode", "Preprocessing": "decode", "as_image_set": "given"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dpa_jax.data' has no attribute {name!r}")
    home = _HOMES.get(name, "sources")
    return getattr(importlib.import_module(f"dpa_jax.data.{home}"), name)
