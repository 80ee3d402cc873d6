"""A first run on a folder of your own normal images: 64 pixels, grey, growing from 8.

    dpa-jax weights fetch
    dpa-jax train --config=configs/folder.py --workdir=run \
        --config.data.train=train/normal
    dpa-jax evaluate --workdir=run --normal=test/normal --abnormal=test/abnormal

30,500 steps of 64 images. RGB images: --config.data.channels=3. Without ImageNet
weights at hand, to try the path: --config.perceptual.weights=random:0
--config.perceptual.statistics=train. `configs/folder.py:32` stops at 32 pixels, which a
CPU can train.
"""

from dpa_jax import errors
from dpa_jax.config import default_config


def get_config(resolution: str = "64"):
    """Returns the configuration.

    Args:
      resolution: `64` or `32`, in pixels.
    """
    config = default_config()
    if resolution == "64":
        config.stages.transition_steps = 4_000
        config.stages.stabilization_steps = 4_000
        config.stages.final_steps = 6_500
    elif resolution == "32":
        config.data.resolution = 32
        config.stages.transition_steps = 600
        config.stages.stabilization_steps = 600
        config.stages.final_steps = 1_200
    else:
        raise errors.UsageError(f"configs/folder.py takes 64 or 32, not {resolution!r}")
    config.batch_size = 64
    config.checkpoint_every = 1_000
    config.sample_every = 1_000
    return config
