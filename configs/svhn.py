r"""The published runs on SVHN: one digit is normal, the nine others are not.

Prepare the images once, then train, then evaluate:

    dpa-jax prepare svhn --data_dir=DATA
    dpa-jax train --config=configs/svhn.py:class3 --workdir=RUN \
        --config.data.data_dir=DATA
    dpa-jax evaluate --workdir=RUN

The argument is classN[,seedM]:

    classN      N is the digit, 0 to 9
    seedM       M is 0, 1 or 2: the three seeds of each run; 0 if left out

All at 32 pixels without growing, in grey, on the training images of the digit,
evaluated on the 26,032 test images.

Expected time: 0.9 to 3.2 M images at 32 pixels, a run; thirty runs in all.
"""

from dpa_jax.config import default_config
from dpa_jax.errors import UsageError

# By digit: the encoder's channels from 32 down to 4 pixels, the last also of the
# latent; learning rate, steps, layers of VGG19, seeds.
RUNS = (
    ((32, 64, 128, 256), 2e-4, 25_333, "r42", (2420, 6274, 6109)),
    ((16, 16, 16, 16), 5e-3, 16_666, "r32+r42", (2237, 9434, 362)),
    ((16, 16, 16, 16), 5e-3, 15_333, "r32+r42", (3874, 673, 2780)),
    ((32, 32, 32, 32), 2e-3, 9_666, "r42", (7706, 5710, 3340)),
    ((16, 16, 16, 16), 5e-3, 10_333, "r32+r42", (5384, 2530, 901)),
    ((32, 32, 32, 32), 2e-3, 8_333, "r32+r42", (6373, 7318, 9479)),
    ((32, 32, 32, 32), 2e-3, 7_333, "r32+r42", (8415, 8881, 8227)),
    ((16, 16, 16, 16), 5e-3, 12_000, "r32+r42", (2451, 1190, 606)),
    ((16, 16, 16, 16), 5e-3, 6_666, "r42", (8176, 1770, 8599)),
    ((32, 64, 64, 64), 1e-3, 18_000, "r42", (9918, 826, 4465)),
)


def get_config(argument: str = "class0"):
    """Returns the configuration of one published run.

    Args:
      argument: `classN[,seedM]`.

    Raises:
      UsageError: there is no such run.
    """
    number, seed = _parse(argument)
    channels, rate, steps, layers, seeds = RUNS[number]
    config = default_config()

    data = config.data
    data.train, data.test = "tfds:svhn_cropped:train", "tfds:svhn_cropped:test"
    data.normal = f"class={number}"
    data.channels, data.resolution = 1, 32

    config.model.latent_resolution = 1
    config.model.latent_channels = channels[-1]
    config.model.encoder_channels = channels
    config.model.decoder_channels = channels[::-1]
    config.optimizer.learning_rate = rate
    config.batch_size = 128

    config.stages.initial_resolution = 32
    config.stages.transition_steps = 0
    config.stages.stabilization_steps = 0
    config.stages.final_steps = steps
    config.perceptual.layers = f"32:{layers}"
    config.loss.smooth_transition = False
    config.seed = seeds[seed]
    return config


def _parse(argument: str) -> tuple[int, int]:
    normal, _, seed = argument.partition(",")
    seed = seed or "seed0"
    classes = [f"class{i}" for i in range(10)]
    seeds = ["seed0", "seed1", "seed2"]
    if normal not in classes or seed not in seeds:
        raise UsageError(
            f"configs/svhn.py:{argument}: write classN[,seedM] with N one of 0 to "
            "9, M one of 0, 1, 2"
        )
    return classes.index(normal), seeds.index(seed)
