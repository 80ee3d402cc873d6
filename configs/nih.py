r"""The published runs on NIH ChestX-ray14.

Prepare the images once, then train, then evaluate:

    dpa-jax prepare nih --source=DIR --data_dir=DATA --protocol=subset
    dpa-jax train --config=configs/nih.py:subset,pg --workdir=RUN \
        --config.data.data_dir=DATA
    dpa-jax evaluate --workdir=RUN

The argument is PROTOCOL,EXPERIMENT[,seedN]:

    PROTOCOL    subset, pa or ap
    EXPERIMENT  pg                    grown from 8 to 64 pixels
                wo_pg                 at 64 pixels throughout
                unsupervised          wo_pg, tuned without anomalies
                l1_unsupervised       the same with plain L1 in place of VGG features
                with_l1_W             wo_pg plus W times L1; W is 0.1 or 1
                with_adversarial_W    wo_pg plus W times the adversarial term (WGAN-GP)
                with_adversarial_l1_W both, each times W
    seedN       N is 0, 1 or 2: the three seeds of each run; 0 if left out

Published ROC AUC of the subset, mean of three seeds: 0.926 with pg, 0.920 with wo_pg.
Expected time: the subset's wo_pg is 2.0 M images, which took the PyTorch code 71
minutes on a T4 (480 images/s); its pg is 15.8 M images, most of them smaller, and
takes about three times as long.
"""

from dpa_jax.config import default_config
from dpa_jax.errors import UsageError

PROTOCOLS = ("subset", "pa", "ap")
WEIGHTED = ("with_l1", "with_adversarial_l1", "with_adversarial")
EXPERIMENTS = (
    *("pg", "wo_pg", "unsupervised", "l1_unsupervised"),
    *(f"{kind}_{weight}" for kind in WEIGHTED for weight in ("0.1", "1")),
)

# (final steps, seeds)
PG = {
    "subset": (3_500, (5159, 6472, 7581)),
    "pa": (10_000, (7983, 5260, 4011)),
    "ap": (7_000, (9449, 6402, 8696)),
}
WO_PG = {
    "subset": (16_000, (813, 4535, 5080)),
    "pa": (33_000, (2489, 5709, 9424)),
    "ap": (27_000, (8350, 3255, 6638)),
}
UNSUPERVISED = {
    "subset": (24_333, (9066, 4129, 2258)),
    "pa": (64_333, (1810, 748, 3013)),
    "ap": (57_666, (4874, 2952, 4560)),
}
L1_UNSUPERVISED = {
    "subset": (32_333, (5107, 8447, 6076)),
    "pa": (31_000, (9821, 5264, 3338)),
    "ap": (28_333, (1835, 7514, 4572)),
}
# Of every run with an added term; those of PA and AP are those without it.
SUBSET_SEEDS = (8681, 2355, 8817)


def get_config(argument: str = "subset,pg"):
    """Returns the configuration of one published run.

    Args:
      argument: `PROTOCOL,EXPERIMENT[,seedN]`.

    Raises:
      UsageError: there is no such run.
    """
    protocol, experiment, number = _parse(argument)
    config = default_config()
    tuned = not experiment.endswith("unsupervised")
    table = {
        "pg": PG,
        "unsupervised": UNSUPERVISED,
        "l1_unsupervised": L1_UNSUPERVISED,
    }.get(experiment, WO_PG)
    steps, seeds = table[protocol]

    data = config.data
    data.equalize = protocol == "ap" and tuned
    name = f"nih_chest_xray14/{protocol}_64" + "_equalized" * data.equalize
    data.train, data.test = f"tfds:{name}:train", f"tfds:{name}:test"
    data.channels, data.resolution = 1, 64
    data.resize, data.crop, data.size = 300, 224, 64

    wide = protocol == "ap" or not tuned
    width = 64 if wide else 16
    config.model.latent_resolution = 1 if tuned else 4
    config.model.latent_channels = width
    config.model.encoder_channels = (width,) * 5
    config.model.decoder_channels = (width,) * 5
    config.optimizer.learning_rate = 5e-4 if wide else 2e-3
    config.batch_size = 56 if wide else 128

    config.stages.initial_resolution = 64
    config.stages.transition_steps = 0
    config.stages.stabilization_steps = 0
    config.stages.final_steps = steps
    config.perceptual.layers = "64:r42" if protocol == "subset" else "64:r32"
    config.loss.smooth_transition = False
    if experiment == "pg":
        config.stages.initial_resolution = 8
        config.stages.transition_steps = 20_000
        config.stages.stabilization_steps = 20_000
        config.perceptual.layers = f"8:r12 16:r22 32:r32 {config.perceptual.layers}"
        config.loss.smooth_transition = True
        if protocol == "ap":
            config.model.encoder_channels = (32, 32, 64, 64, 64)
            config.model.decoder_channels = (64, 64, 64, 32, 32)
        else:
            config.optimizer.learning_rate = 1e-3
    elif experiment == "l1_unsupervised":
        config.loss.relative_perceptual, config.loss.l1 = 0.0, 1.0
    elif experiment.startswith("with_"):
        kind, _, weight = experiment.rpartition("_")
        if protocol == "subset":
            seeds = SUBSET_SEEDS
        if kind.endswith("l1"):
            config.loss.l1 = float(weight)
        if kind == "with_l1" and protocol == "subset":
            config.perceptual.layers = "64:r32+r42"
        if "adversarial" in kind:
            config.loss.adversarial = float(weight)
            config.optimizer.learning_rate = 2e-4  # of the critic too
    config.seed = seeds[number]
    return config


def _parse(argument: str) -> tuple[str, str, int]:
    protocol, experiment, seed, rest = (
        *argument.split(",", 3),
        *("", "", "seed0", "")[argument.count(",") + 1 :],
    )
    usage = "write PROTOCOL,EXPERIMENT[,seedN]"
    for name, value, options in (
        ("PROTOCOL", protocol, PROTOCOLS),
        ("EXPERIMENT", experiment, EXPERIMENTS),
        ("seedN", seed, ("seed0", "seed1", "seed2")),
    ):
        if value not in options:
            raise UsageError(
                f"configs/nih.py:{argument}: {name} is {value!r}, not one of "
                f"{', '.join(options)}; {usage}"
            )
    if rest:
        raise UsageError(
            f"configs/nih.py:{argument}: {rest!r} is one too many; {usage}"
        )
    return protocol, experiment, int(seed[-1])
