"""Images on disk to uint8 arrays, in host memory or mapped from a file.

What decodes is imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dpa_jax.data.image_set import ImageSet, Skipped, joined, release

if TYPE_CHECKING:
    from dpa_jax.data.decode import ImageError, Preprocessing
    from dpa_jax.data.given import as_image_set
    from dpa_jax.data.listing import EXTENSIONS, list_images
    from dpa_jax.data.sources import load

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

_HOMES = {
    "EXTENSIONS": "listing",
    "ImageError": "decode",
    "Preprocessing": "decode",
    "as_image_set": "given",
    "list_images": "listing",
    "load": "sources",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dpa_jax.data' has no attribute {name!r}")
    home = _HOMES[name]
    return getattr(importlib.import_module(f"dpa_jax.data.{home}"), name)
