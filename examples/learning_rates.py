"""# A population of learning rates

Runs that differ in seed and learning rate alone are trained at once, on the same
batches, in one program: the features of the real images are computed once for all.
"""

import numpy as np

import dpa_jax
from dpa_jax import training

images = np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8)

config = dpa_jax.default_config()
config.data.resolution = 8
config.perceptual.weights = "random:0"  # "imagenet" once it is fetched
config.perceptual.statistics = "train"
config.stages.final_steps = 30
config.batch_size = 16

rates = [1e-4, 1e-3, 1e-2]
configs = []
for rate in rates:
    one = config.copy_and_resolve_references()
    one.optimizer.learning_rate = rate
    configs.append(one)

folders = [f"rates/{rate:g}" for rate in rates]
training.train_together(configs, folders, images=images, visible=False)

# %% Each is a run like any other.

for rate, folder in zip(rates, folders, strict=True):
    found = dpa_jax.score(folder, images)["loss"]
    print(f"learning rate {rate:g}: mean loss {found.mean():.3f}")
