"""Training: the loop, its programs and data, checkpoints, metrics, the workdir."""

from dpa_jax.data.training_images import training_images
from dpa_jax.training.trainer import train, train_together

__all__ = ["train", "train_together", "training_images"]
