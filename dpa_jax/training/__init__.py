"""Training: the loop, its programs and data, checkpoints, metrics, the workdir."""

from dpa_jax.training.trainer import train, train_together, training_images

__all__ = ["train", "train_together", "training_images"]
