"""configs/camelyon16.py against the published table."""

import csv

import pytest

from dpa_jax import config as config_lib
from dpa_jax.errors import UsageError

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
NAMES = {  # of the published experiments, where they differ
    "pg": "pg",
    "wo_pg": "wo_pg",
    "unsupervised": "wo_pg_unsupervised",
    "l1_unsupervised": "wo_pg_L1_unsupervised",
    "with_l1_0.1": "wo_pg_with_L1/weight_0.100",
    "with_l1_1": "wo_pg_with_L1/weight_1.000",
    "with_adversarial_0.1": "wo_pg_with_adversarial/weight_0.100",
    "with_adversarial_1": "wo_pg_with_adversarial/weight_1.000",
    "with_adversarial_l1_0.1": "wo_pg_with_adversarial_L1/weight_0.100",
    "with_adversarial_l1_1": "wo_pg_with_adversarial_L1/weight_1.000",
}


def load(argument):
    config = config_lib.default_config()
    if "adversarial" in argument and "adversarial" not in config:
        with pytest.raises(UsageError, match="adversarial loss"):
            config_lib.load(f"configs/camelyon16.py:{argument}")
        pytest.skip("this version has no adversarial loss")
    return config_lib.load(f"configs/camelyon16.py:{argument}")


@pytest.mark.parametrize("experiment", TABLE)
@pytest.mark.parametrize("number", range(3))
def test_run_equals_the_published_table(experiment, number):
    config = load(f"{experiment},seed{number}")
    config_lib.validate(config)
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
        config.loss.get("adversarial", 0.0),
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


@pytest.mark.parametrize("experiment", TABLE)
def test_table_in_this_test_is_the_published_one(experiment, shared):
    with (shared / "experiments.csv").open(newline="") as file:
        row = next(
            r
            for r in csv.DictReader(file)
            if (r["dataset"], r["experiment"]) == ("camelyon16", NAMES[experiment])
        )
    mine = TABLE[experiment]
    assert row["initial_resolution"] == mine[0]
    assert row["latent_resolution"] == mine[1]
    assert row["latent_channels"] == mine[2]
    assert row["encoder_channels_high_to_low"].split() == mine[3].split(",")
    assert row["decoder_channels_low_to_high"].split() == mine[3].split(",")
    assert row["learning_rate"] == mine[4]
    assert (row["transition_steps"] or "0") == mine[5]
    assert (row["stabilization_steps"] or "0") == mine[6]
    assert row["final_stabilization_steps"] == mine[7]
    assert row["loss"] == ("relative_perceptual_L1" if mine[8] == "1" else "l1")
    if mine[8] == "1":
        assert row["features"].replace("*1", "").split() == mine[9].split("+")
        assert row["smooth_loss"] == str(mine[10] == "1")
        assert row["l1_weight"] == mine[11]
    assert row["adversarial_weight"] == mine[12]
    assert row["discriminator_steps"] == ("0" if mine[12] == "0" else "2")
    assert row["seeds"].split() == mine[13].split(",")
    assert row["batch_size"] == "128"


def test_table_has_every_published_run_of_camelyon16(shared):
    with (shared / "experiments.csv").open(newline="") as file:
        found = {
            r["experiment"]
            for r in csv.DictReader(file)
            if r["dataset"] == "camelyon16"
        }
    assert found == set(NAMES.values())


@pytest.mark.parametrize("argument", ["pgg", "pg,seed3", "pg,0", "pg,seed0,x"])
def test_unknown_argument_is_refused(argument):
    with pytest.raises(UsageError, match="EXPERIMENT"):
        config_lib.load(f"configs/camelyon16.py:{argument}")
