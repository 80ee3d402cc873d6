r"""The published runs on Camelyon16.

Prepare the patches once, then train, then evaluate:

    dpa-jax prepare camelyon16 --source=DIR --data_dir=DATA
    dpa-jax train --config=configs/camelyon16.py:pg --workdir=RUN \
        --config.data.data_dir=DATA
    dpa-jax evaluate --workdir=RUN

The argument is EXPERIMENT[,seedN]:

    EXPERIMENT  pg                    grown from 16 to 64 pixels
                wo_pg                 at 64 pixels throughout
                unsupervised          wo_pg, tuned without anomalies
                l1_unsupervised       the same with plain L1 in place of VGG features
                with_l1_W             wo_pg plus W times L1; W is 0.1 or 1
                with_adversarial_W    wo_pg plus W times the adversarial term (WGAN-GP)
                with_adversarial_l1_W both, each times W
    seedN       N is 0, 1 or 2: the three seeds of each run; 0 if left out

Training takes a random 64 pixel crop and flips of each 192 pixel patch, anew in each
epoch (the published pg run kept the first crop of each patch, by a slip); evaluation
takes the centre.

Published ROC AUC, mean of three seeds: 0.934 with pg.
Expected time: wo_pg is 4.4 M images at 64 pixels, about two and a half hours at the
480 images/s of the PyTorch code on a T4; pg is 11.3 M, most of them smaller.
"""

from dpa_jax.config import default_config
from dpa_jax.errors import UsageError

WEIGHTED = ("with_l1", "with_adversarial_l1", "with_adversarial")
EXPERIMENTS = (
    *("pg", "wo_pg", "unsupervised", "l1_unsupervised"),
    *(f"{kind}_{weight}" for kind in WEIGHTED for weight in ("0.1", "1")),
)

# (final steps, seeds); every run not named here is wo_pg's
PG = 8_666, (9722, 7602, 1941)
WO_PG = 34_666, (3139, 3851, 3528)
UNSUPERVISED = 77_000, (2888, 5596, 5174)
L1_UNSUPERVISED = 46_000, (6012, 345, 3972)


def get_config(argument: str = "pg"):
    """Returns the configuration of one published run.

    Args:
      argument: `EXPERIMENT[,seedN]`.

    Raises:
      UsageError: there is no such run.
    """
    experiment, number = _parse(argument)
    config = default_config()
    steps, seeds = {
        "pg": PG,
        "unsupervised": UNSUPERVISED,
        "l1_unsupervised": L1_UNSUPERVISED,
    }.get(experiment, WO_PG)

    data = config.data
    data.train, data.test = "tfds:camelyon16/x10:train", "tfds:camelyon16/x10:test"
    data.channels, data.resolution = 3, 64
    data.crop = data.size = 192  # larger images are cut, not resized
    data.random_crop = data.horizontal_flip = data.vertical_flip = True

    config.model.latent_resolution = 8
    config.model.latent_channels = 4
    config.model.encoder_channels = (4,) * 4
    config.model.decoder_channels = (4,) * 4
    config.optimizer.learning_rate = 1e-3
    config.batch_size = 128

    config.stages.initial_resolution = 64
    config.stages.transition_steps = 0
    config.stages.stabilization_steps = 0
    config.stages.final_steps = steps
    config.perceptual.layers = "64:r42"
    config.loss.smooth_transition = False
    if experiment == "pg":
        config.stages.initial_resolution = 16
        config.stages.transition_steps = 20_000
        config.stages.stabilization_steps = 20_000
        config.perceptual.layers = "16:r32 32:r32 64:r42"
        config.loss.smooth_transition = True
    elif experiment.endswith("unsupervised"):
        width = 64 if experiment == "unsupervised" else 32
        config.model.latent_resolution = 16
        config.model.latent_channels = width
        config.model.encoder_channels = (width,) * 3
        config.model.decoder_channels = (width,) * 3
        config.optimizer.learning_rate = 1e-4
        if experiment == "l1_unsupervised":
            config.optimizer.learning_rate = 2e-4
            config.loss.relative_perceptual, config.loss.l1 = 0.0, 1.0
    elif experiment.startswith("with_"):
        kind, _, weight = experiment.rpartition("_")
        if kind.endswith("l1"):
            config.loss.l1 = float(weight)
        if "adversarial" in kind:
            config.loss.adversarial = float(weight)
            config.optimizer.learning_rate = 2e-4  # of the critic too
    config.seed = seeds[number]
    return config


def _parse(argument: str) -> tuple[str, int]:
    experiment, _, seed = argument.partition(",")
    seed = seed or "seed0"
    if experiment not in EXPERIMENTS or seed not in ("seed0", "seed1", "seed2"):
        raise UsageError(
            f"configs/camelyon16.py:{argument}: write EXPERIMENT[,seedN] with "
            f"EXPERIMENT one of {', '.join(EXPERIMENTS)}, N one of 0, 1, 2"
        )
    return experiment, int(seed[-1])
