"""TFDS builders; importing this package makes them known to TFDS."""

from dpa_jax.datasets import camelyon16 as camelyon16
from dpa_jax.datasets import nih_chest_xray14 as nih_chest_xray14
