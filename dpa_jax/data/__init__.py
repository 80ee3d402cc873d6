"""Images on disk to uint8 arrays in host memory."""

from dpa_jax.data.decode import ImageError, Preprocessing
from dpa_jax.data.image_set import ImageSet, Skipped, joined
from dpa_jax.data.sources import EXTENSIONS, list_images, load, load_files

__all__ = [
    "EXTENSIONS",
    "ImageError",
    "ImageSet",
    "Preprocessing",
    "Skipped",
    "joined",
    "list_images",
    "load",
    "load_files",
]
