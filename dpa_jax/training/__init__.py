"""Training: the loop, its programs and data, checkpoints, metrics, the workdir."""

from dpa_jax.training.interruption import Interrupted
from dpa_jax.training.trainer import train, train_together, training_images

__all__ = ["Interrupted", "train", "train_together", "training_images"]
