"""Images on disk to uint8 arrays, in host memory or mapped from a file.

What decodes is imported when first used: training from arrays does without Pillow.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dpa_jax.data.image_set import ImageSet, Skipped, joined, release

if TYPE_CHECKING:
    from dpa_jax.data.decode import ImageError, Preprocessing
    from dpa_jax.data.sources import (
        EXTENSIONS,
        from_array,
        list_images,
        load,
        load_files,
    )

__all__ = [
    "EXTENSIONS",
    "ImageError",
    "ImageSet",
    "Preprocessing",
    "Skipped",
    "from_array",
    "joined",
    "list_images",
    "load",
    "load_files",
    "release",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dpa_jax.data' has no attribute {name!r}")
    home = "decode" if name in ("ImageError", "Preprocessing") else "sources"
    return getattr(importlib.import_module(f"dpa_jax.data.{home}"), name)
