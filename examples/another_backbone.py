"""# Another backbone

What compares images is a frozen network: VGG19 as published, ResNet-50 with weights of
torchvision, timm or RadImageNet, or one of your own. Here it is a bank of gratings,
with two layers and no weights to fetch; see `gratings` in `mine.py`.
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
config.perceptual.backbone = "mine:gratings"
config.perceptual.layers = "8:fine*1+coarse*0.5"

dpa_jax.train(config, "gratings_run", images=images, visible=False)

# %% Each layer's part of the score, of two images.

found = dpa_jax.score("gratings_run", images[:2], ["loss", "layers"], trust=True)
for name, values in found.items():
    print(f"{name:14s}", np.round(values, 3))

# %% ResNet-50 works alike; its features need statistics of the training images.

config.stages.final_steps = 10
config.perceptual.backbone = "resnet50"
config.perceptual.layers = "8:layer1.0"
dpa_jax.train(config, "resnet_run", images=images, visible=False)
print(dpa_jax.score("resnet_run", images[:2])["loss"])
