import pytest

from dpa_jax import errors, validation
from dpa_jax.config import default_config, flat, perceptual_layers, with_flags


@pytest.fixture
def config():
    return default_config()


def test_default_is_the_published_nih_subset_run(config):
    validation.validate(config)
    # method, sections 2 and 3
    assert config.data.resolution == 64 and config.stages.initial_resolution == 8
    assert config.stages.transition_steps == config.stages.stabilization_steps == 20_000
    assert config.stages.final_steps == 3_500
    assert config.batch_size == 128 and config.optimizer.learning_rate == 1e-3
    assert config.model.kind == "residual18"


@pytest.mark.parametrize(
    "flag, name, value",
    [
        ("--config.batch_size=4", "batch_size", 4),
        ("--config.data.train=a=b", "data.train", "a=b"),
        ("--config.data.equalize=true", "data.equalize", True),
        ("--config.optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("--config.model.encoder_channels=8,4", "model.encoder_channels", (8, 4)),
        ("--config.model.encoder_channels=(8,4)", "model.encoder_channels", (8, 4)),
    ],
)
def test_flags_set_fields(config, flag, name, value):
    found = flat(with_flags(config, [flag]))
    assert found[name] == value and type(found[name]) is type(value)
    assert flat(config)[name] != value  # a copy


def test_flags_do_not_depend_on_the_arguments_of_the_process(config, monkeypatch):
    # config_flags would look there for what is overridden
    argv = ["dpa-jax", "train", "--config=x.py", "--config.seed=3"]
    monkeypatch.setattr("sys.argv", argv)
    found = with_flags(config, ["--config.batch_size=4"])
    assert (found.batch_size, found.seed) == (4, 0)


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.batch_sise=4", "no config key batch_sise; did you mean batch_size"),
        ("--config.learning_rate=1", "did you mean optimizer.learning_rate"),
        ("--config.data.chanels=3", "did you mean data.channels"),
        ("--config.batch_size", "lacks a value: --config.batch_size=VALUE"),
        ("--config.batch_size=many", "batch_size takes int, such as 128"),
        ("--config.data.equalize=maybe", "data.equalize takes bool, such as False"),
        ("--config.model.encoder_channels=a,b", "takes whole numbers|takes tuple"),
        ("--config.model=3", "no config key model"),
    ],
)
def test_wrong_flags_are_named_with_what_is_right(config, flag, message):
    with pytest.raises(errors.UsageError, match=message):
        validation.validate(with_flags(config, [flag]))


def test_layers_are_read_with_their_weights():
    found = perceptual_layers("8:r12 64:r32*1+r42*0.5")
    assert found == {8: (("r12", 1.0),), 64: (("r32", 1.0), ("r42", 0.5))}
