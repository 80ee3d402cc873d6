"""# Another network, another optimizer

A network is an encoder and a decoder module for each stage of growth. Parameters are
handed on by the names of blocks: what the next stage calls by the same name begins with
what the stage before has learned. See `plain` in `mine.py`.
"""

import json
import pathlib

import numpy as np

import dpa_jax

images = np.random.default_rng(0).integers(0, 256, (64, 16, 16), np.uint8)

config = dpa_jax.default_config()
config.data.resolution = 16
config.perceptual.weights = "random:0"  # "imagenet" once it is fetched
config.perceptual.statistics = "train"
config.stages.transition_steps = config.stages.stabilization_steps = 10
config.stages.final_steps = 20
config.batch_size = 16
config.model.kind = "mine:plain"
config.optimizer.name = "mine:amsgrad"
config.optimizer.schedule = "cosine"
config.optimizer.warmup_steps = 5
config.log_every = 10

dpa_jax.train(config, "plain_run", images=images, visible=False)

# %% The loss of each stage's last steps.

for line in pathlib.Path("plain_run/metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    print(f"{row['step']:4d} {row['stage']:16s} {row['loss']:.3f}")

# %% What the workdir says about the functions that it needs.

needed = json.loads(pathlib.Path("plain_run/extensions.json").read_text())
for field, about in needed.items():
    print(field, about["name"])
