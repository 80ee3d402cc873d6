"""The published runs on Camelyon16, value by value."""

import pytest

from dpa_jax import validation
from dpa_jax.errors import UsageError
from dpa_jax.storage import config_files

# ruff: noqa: E501
# Written from the published YAML files, one line per run: initial resolution, latent
# resolution, latent channels, channels of each resolution, learning rate, steps of a
# transition and of a stabilization, final steps, relative perceptual weight, layers,
# smooth transition, L1 weight, adversarial weight, seeds.
RUNS = """
pg 16 8 4 4,4,4,4 0.001 20000 20000 8666 1 16:r32+32:r32+64:r42 1 0 0 9722,7602,1941
wo_pg 64 8 4 4,4,4,4 0.001 0 0 34666 1 64:r42 0 0 0 3139,3851,3528
l1_unsupervised 64 16 32 32,32,32 0.0002 0 0 46000 0 64:r42 0 1 0 6012,345,3972
unsupervised 64 16 64 64,64,64 0.0001 0 0 77000 1 64:r42 0 0 0 2888,5596,5174
with_l1_0.1 64 8 4 4,4,4,4 0.001 0 0 34666 1 64:r42 0 0.1 0 3139,3851,3528
with_l1_1 64 8 4 4,4,4,4 0.001 0 0 34666 1 64:r42 0 1 0 3139,3851,3528
with_adversarial_0.1 64 8 4 4,4,4,4 0.0002 0 0 34666 1 64:r42 0 0 0.1 3139,3851,3528
with_adversarial_1 64 8 4 4,4,4,4 0.0002 0 0 34666 1 64:r42 0 0 1 3139,3851,3528
with_adversarial_l1_0.1 64 8 4 4,4,4,4 0.0002 0 0 34666 1 64:r42 0 0.1 0.1 3139,3851,3528
with_adversarial_l1_1 64 8 4 4,4,4,4 0.0002 0 0 34666 1 64:r42 0 1 1 3139,3851,3528
"""
TABLE = {line.split()[0]: line.split()[1:] for line in RUNS.strip().splitlines()}


@pytest.mark.parametrize("experiment", TABLE)
@pytest.mark.parametrize("number", range(3))
def test_run_equals_the_published_table(experiment, number):
    config = config_files.load(f"configs/camelyon16.py:{experiment},seed{number}")
    validation.validate(config)
    row = TABLE[experiment]
    channels = tuple(int(c) for c in row[3].split(","))
    found = (
        config.stages.initial_resolution,
        config.model.latent_resolution,
        config.model.latent_channels,
        config.model.encoder_channels,
        config.model.decoder_channels,
        config.optimizer.learning_rate,
        config.stages.transition_steps,
        config.stages.stabilization_steps,
        config.stages.final_steps,
        config.loss.relative_perceptual,
        config.perceptual.layers,
        config.loss.smooth_transition,
        config.loss.l1,
        config.loss.adversarial,
        config.seed,
    )
    assert found == (
        *(int(v) for v in row[:3]),
        channels,
        channels,
        float(row[4]),
        *(int(v) for v in row[5:8]),
        float(row[8]),
        row[9].replace("+", " "),
        row[10] == "1",
        float(row[11]),
        float(row[12]),
        int(row[13].split(",")[number]),
    )
    assert config.batch_size == 128
    assert (config.data.channels, config.data.resolution, config.data.size) == (
        *(3, 64),
        192,
    )
    assert config.data.random_crop
    assert config.data.horizontal_flip and config.data.vertical_flip
    if "adversarial" in experiment:
        assert config.adversarial.discriminator_steps == 2


@pytest.mark.parametrize("argument", ["pgg", "pg,seed3", "pg,0", "pg,seed0,x"])
def test_unknown_argument_is_refused(argument):
    with pytest.raises(UsageError, match="EXPERIMENT"):
        config_files.load(f"configs/camelyon16.py:{argument}")
