"""The published runs on NIH ChestX-ray14, value by value."""

import pathlib

import pytest

from dpa_jax import validation
from dpa_jax.errors import UsageError
from dpa_jax.storage import config_files

CONFIG = str(pathlib.Path(__file__).resolve().parents[1] / "configs" / "nih.py")
# first resolution, latent resolution and channels, width of the networks (0: varies),
# learning rate, batch, last steps, layers at 64 px, L1 weight, equalised, seeds
TABLE = """
ap,pg                    8 1 64  0 0.0005  56  7000 r32       0 yes 9449 6402 8696
pa,pg                    8 1 16 16  0.001 128 10000 r32       0 no  7983 5260 4011
subset,pg                8 1 16 16  0.001 128  3500 r42       0 no  5159 6472 7581
ap,wo_pg                64 1 64 64 0.0005  56 27000 r32       0 yes 8350 3255 6638
pa,wo_pg                64 1 16 16  0.002 128 33000 r32       0 no  2489 5709 9424
subset,wo_pg            64 1 16 16  0.002 128 16000 r42       0 no   813 4535 5080
ap,unsupervised         64 4 64 64 0.0005  56 57666 r32       0 no  4874 2952 4560
pa,unsupervised         64 4 64 64 0.0005  56 64333 r32       0 no  1810  748 3013
subset,unsupervised     64 4 64 64 0.0005  56 24333 r42       0 no  9066 4129 2258
ap,l1_unsupervised      64 4 64 64 0.0005  56 28333 -         1 no  1835 7514 4572
pa,l1_unsupervised      64 4 64 64 0.0005  56 31000 -         1 no  9821 5264 3338
subset,l1_unsupervised  64 4 64 64 0.0005  56 32333 -         1 no  5107 8447 6076
ap,with_l1_0.1          64 1 64 64 0.0005  56 27000 r32     0.1 yes 8350 3255 6638
pa,with_l1_0.1          64 1 16 16  0.002 128 33000 r32     0.1 no  2489 5709 9424
subset,with_l1_0.1      64 1 16 16  0.002 128 16000 r32+r42 0.1 no  8681 2355 8817
ap,with_l1_1            64 1 64 64 0.0005  56 27000 r32       1 yes 8350 3255 6638
pa,with_l1_1            64 1 16 16  0.002 128 33000 r32       1 no  2489 5709 9424
subset,with_l1_1        64 1 16 16  0.002 128 16000 r32+r42   1 no  8681 2355 8817
"""
RUNS = {line.split()[0]: line.split()[1:] for line in TABLE.strip().splitlines()}
# as above, less latent, width, learning rate (2e-4) and batch: those of wo_pg
ADVERSARIAL = {
    "ap,with_adversarial_0.1": (0.1, 0, 27000, "64:r32", (8350, 3255, 6638)),
    "pa,with_adversarial_1": (1, 0, 33000, "64:r32", (2489, 5709, 9424)),
    "subset,with_adversarial_0.1": (0.1, 0, 16000, "64:r42", (8681, 2355, 8817)),
    "subset,with_adversarial_1": (1, 0, 16000, "64:r42", (8681, 2355, 8817)),
    "ap,with_adversarial_l1_0.1": (0.1, 0.1, 27000, "64:r32", (8350, 3255, 6638)),
    "pa,with_adversarial_l1_0.1": (0.1, 0.1, 33000, "64:r32", (2489, 5709, 9424)),
    "subset,with_adversarial_l1_1": (1, 1, 16000, "64:r42", (8681, 2355, 8817)),
}


@pytest.mark.parametrize("argument", RUNS)
def test_every_value_is_the_published_one(argument):
    *numbers, layers, l1, equal = RUNS[argument][:-3]
    first, latent, channels, width, rate, batch, steps = map(float, numbers)
    seeds = [int(seed) for seed in RUNS[argument][-3:]]
    protocol = argument.partition(",")[0]
    config = config_files.load(f"{CONFIG}:{argument}")
    validation.validate(config)
    name = f"nih_chest_xray14/{protocol}_64" + "_equalized" * (equal == "yes")
    assert config.data.train == f"tfds:{name}:train"
    assert config.data.test == f"tfds:{name}:test"
    assert (config.data.channels, config.data.resolution) == (1, 64)
    assert (config.data.resize, config.data.crop, config.data.size) == (300, 224, 64)
    assert config.data.equalize == (equal == "yes")
    assert not config.data.random_crop
    assert config.model.kind == "residual18"
    assert config.model.latent_resolution == latent
    assert config.model.latent_channels == channels
    grown = argument == "ap,pg"
    assert config.model.encoder_channels == (
        (32, 32, 64, 64, 64) if grown else (int(width),) * 5
    )
    assert config.model.decoder_channels == (
        (64, 64, 64, 32, 32) if grown else (int(width),) * 5
    )
    assert config.stages.initial_resolution == first
    if first == 8:
        assert config.stages.transition_steps == 20_000
        assert config.stages.stabilization_steps == 20_000
    else:
        assert config.stages.transition_steps == 0
    assert config.stages.final_steps == steps
    assert config.loss.smooth_transition == (first == 8)
    assert config.perceptual.weights == config.perceptual.statistics == "imagenet"
    assert config.perceptual.image_weight == 0
    if layers != "-":
        lower = "8:r12 16:r22 32:r32 " if first == 8 else ""
        assert config.perceptual.layers == f"{lower}64:{layers}"
    assert config.loss.relative_perceptual == (layers != "-")
    assert config.loss.l1 == float(l1)
    assert config.loss.perceptual == config.loss.l2 == 0
    assert config.optimizer.learning_rate == rate
    assert config.batch_size == batch
    assert config.seed == seeds[0]
    for number, seed in enumerate(seeds):
        assert config_files.load(f"{CONFIG}:{argument},seed{number}").seed == seed


@pytest.mark.parametrize("argument", ADVERSARIAL)
def test_adversarial_runs(argument):
    weight, l1, steps, layers, seeds = ADVERSARIAL[argument]
    config = config_files.load(f"{CONFIG}:{argument}")
    validation.validate(config)
    assert config.loss.adversarial == weight
    assert config.adversarial.discriminator_steps == 2
    assert config.loss.l1 == l1
    assert config.loss.relative_perceptual == 1
    assert config.stages.final_steps == steps
    assert config.perceptual.layers == layers
    assert config.optimizer.learning_rate == 2e-4
    assert config.seed == seeds[0]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("lateral,pg", "PROTOCOL is 'lateral', not one of subset, pa, ap"),
        ("subset", "EXPERIMENT is '', not one of pg, wo_pg"),
        ("subset,gp", "EXPERIMENT is 'gp'"),
        ("subset,pg,seed3", "seedN is 'seed3', not one of seed0, seed1, seed2"),
        ("subset,pg,seed0,more", "'more' is one too many"),
    ],
)
def test_a_run_that_does_not_exist_is_named(argument, message):
    with pytest.raises(UsageError, match=message):
        config_files.load(f"{CONFIG}:{argument}")
