r"""The published runs on CIFAR10: one class is normal, the nine others are not.

Prepare the images once, then train, then evaluate:

    dpa-jax prepare cifar10 --data_dir=DATA
    dpa-jax train --config=configs/cifar10.py:class3 --workdir=RUN \
        --config.data.data_dir=DATA
    dpa-jax evaluate --workdir=RUN

The argument is classN[,seedM]:

    classN      N from 0: airplane, automobile, bird, cat, deer, dog, frog, horse,
                ship, truck
    seedM       M is 0, 1 or 2: the three seeds of each run; 0 if left out

All at 32 pixels without growing, on the 5,000 training images of the class, evaluated
on the 10,000 test images.

Published ROC AUC, mean of ten classes and three seeds: 0.839.
Expected time: 0.5 to 1.0 M images at 32 pixels, a run; thirty runs in all.
"""

from dpa_jax.config import default_config
from dpa_jax.errors import UsageError

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
# By class: the encoder's channels from 32 down to 4 pixels, the last also of the
# latent; learning rate, steps, layer of VGG19, seeds.
RUNS = (
    ((32, 32, 32, 32), 2e-3, 5_666, "r32", (7970, 9042, 8942)),
    ((8, 8, 8, 8), 1e-2, 7_333, "r42", (2255, 7178, 3109)),
    ((16, 16, 16, 16), 5e-3, 5_000, "r42", (4930, 8728, 9511)),
    ((32, 64, 128, 256), 2e-4, 4_666, "r32", (7712, 8880, 5958)),
    ((16, 16, 16, 16), 5e-3, 6_666, "r32", (7322, 7735, 4610)),
    ((8, 8, 8, 8), 1e-2, 4_666, "r42", (9693, 3407, 4064)),
    ((32, 64, 64, 64), 1e-3, 3_666, "r32", (3231, 8188, 7677)),
    ((8, 8, 8, 8), 1e-2, 7_666, "r42", (7749, 1934, 4050)),
    ((8, 8, 8, 8), 1e-2, 8_000, "r42", (7159, 9433, 7116)),
    ((8, 8, 8, 8), 1e-2, 5_000, "r42", (2058, 9145, 5694)),
)


def get_config(argument: str = "class0"):
    """Returns the configuration of one published run.

    Args:
      argument: `classN[,seedM]`.

    Raises:
      UsageError: there is no such run.
    """
    number, seed = _parse(argument)
    channels, rate, steps, layer, seeds = RUNS[number]
    config = default_config()

    data = config.data
    data.train, data.test = "tfds:cifar10:train", "tfds:cifar10:test"
    data.normal = f"class={CLASSES[number]}"
    data.channels, data.resolution = 3, 32

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
    config.perceptual.layers = f"32:{layer}"
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
            f"configs/cifar10.py:{argument}: write classN[,seedM] with N one of 0 to "
            "9, M one of 0, 1, 2"
        )
    return classes.index(normal), seeds.index(seed)
