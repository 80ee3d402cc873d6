"""The demo's run on phantoms: 8, 16 and 32 pixels, random VGG19 weights.

    dpa-jax demo

About a minute on two CPU cores, compiling included. Random weights: it shows that
everything works, not how well the method does.
"""

from dpa_jax.config import default_config


def get_config():
    """Returns the configuration; `dpa_jax/cli/demo.py` adds where the images are."""
    config = default_config()
    config.data.resolution = 32
    config.model.latent_channels = 32
    config.model.encoder_channels = config.model.decoder_channels = (32,)
    config.perceptual.weights = "random:0"
    config.perceptual.statistics = "train"
    config.stages.transition_steps = 200
    config.stages.stabilization_steps = 200
    config.stages.final_steps = 500
    config.batch_size = 8
    config.log_every = 50
    config.checkpoint_every = 1_000
    config.sample_every = 1_000
    return config
