"""# Another loss, another score

A loss compares images with reconstructions and returns one value for each. One of your
own is added to the published terms; any function of the same kind scores a finished
run. They are in `mine.py`, beside this file.
"""

import numpy as np

import dpa_jax

images = np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8)

config = dpa_jax.default_config()
config.data.resolution = 8
config.perceptual.weights = "random:0"  # "imagenet" once it is fetched
config.perceptual.statistics = "train"
config.stages.final_steps = 100
config.batch_size = 16
config.loss.extra = "mine:edges"
config.loss.extra_weight = 0.5

dpa_jax.train(config, "edges_run", images=images, visible=False)

# %% The function is part of the run: the workdir notes it, and loading asks for trust.

try:
    dpa_jax.load("edges_run")
except Exception as error:
    print(error)

# %% Scores beside the training loss, and a map: a score that returns an image.

found = dpa_jax.score(
    "edges_run",
    images[:4],
    ["loss", "layers", "latent_norm", "mine:edges", "mine:brightness"],
    trust=True,
)
for name, values in found.items():
    print(f"{name:16s}", values.shape, np.round(values.ravel()[:2], 2))
