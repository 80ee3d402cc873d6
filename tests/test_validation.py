import ml_collections
import pytest

from dpa_jax import errors, validation
from dpa_jax.config import default_config


@pytest.fixture
def config():
    return default_config()


def changed(config, **values):
    """Sets fields, `__` for the dot in their names."""
    for name, value in values.items():
        section, _, leaf = name.rpartition("__")
        with (config[section] if section else config).unlocked() as target:
            target[leaf] = value
    return config


@pytest.mark.parametrize(
    "values, message",
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"log_every": 0}, "log_every is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"data__channels": 2}, "data.channels is 2; it may be 1 or 3"),
        ({"data__resolution": 48}, "data.resolution is 48; it must be a power of two"),
        ({"stages__initial_resolution": 12}, "initial_resolution is 12.*power of two"),
        ({"stages__initial_resolution": 128}, "is 128, above data.resolution 64"),
        ({"stages__initial_resolution": 4}, "is 4; with .*latent_resolution 1.* 8"),
        ({"stages__transition_steps": 0}, "transition_steps is 0; growing needs"),
        ({"stages__final_steps": 0}, "final_steps is 0"),
        ({"model__latent_resolution": 3}, "latent_resolution is 3.*power of two"),
        ({"model__kind": "residual"}, "'residual'.*did you mean residual9|residual18"),
        ({"model__encoder_channels": (8, 8)}, "encoder_channels has 2 entries.* 5"),
        ({"model__decoder_channels": (8, 8, 8, 8, 0)}, "each at least 1"),
        ({"model__encoder_channels": (8, 8, 8, 8, 1.5)}, "takes whole numbers"),
        ({"precision": "float16"}, "'float16'.*did you mean bfloat16|float32"),
        ({"optimizer__learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"optimizer__learning_rate": float("nan")}, "nan; it must be finite"),
        ({"loss__l1": -1.0}, "loss.l1 is -1.0; weights are not negative"),
        ({"loss__relative_perceptual": 0.0}, "that scores images is 0"),
        ({"data__size": 100}, "data.size is 100.*random_crop"),
        ({"data__size": 32, "data__random_crop": True}, "32 is below data.resolution"),
        ({"perceptual__layers": "8:r12"}, "names no layer for 16 pixels"),
        (
            {"perceptual__layers": "4:r11 8:r12 16:r22 32:r32 64:r42 128:r52"},
            "layers: no stage uses 4:r11 128:r52; the stages have 8, 16, 32, 64 pixels",
        ),
        (
            {"perceptual__backbone": "resnet50", "perceptual__statistics": "train"},
            "perceptual.layers is auto, which resnet50 has none for; name .* 64:LAYER",
        ),
        ({"perceptual__layers": "64"}, "cannot read '64'"),
        ({"perceptual__layers": "8:r12 8:r12"}, "cannot read '8:r12'"),
        (
            {"perceptual__layers": "8:r12 16:r99 32:r32 64:r42"},
            "vgg19 has no layer 'r99'",
        ),
        ({"perceptual__layers": "8:r12*0 16:r22 32:r32 64:r42"}, "r12 has weight 0"),
        # r51 has passed four poolings: of 8 pixels nothing is left
        (
            {"data__chanels": 3},
            "no config key data.chanels; did you mean data.channels",
        ),
        ({"batch_size": "8"}, "batch_size is '8'; it takes int"),
        ({"loss__relative_perceptual": 0.0, "loss__adversarial": 1.0}, "scores images"),
        ({"adversarial__discriminator_steps": 0}, "steps is 0; it must be at least 1"),
        ({"data__folds": 1}, "data.fold is 0 of data.folds 1"),
        ({"data__folds": 3, "data__fold": 3}, "data.fold is 3 of data.folds 3"),
        ({"early_stopping__every": 10}, "needs held-out images: set data.folds"),
        ({"population__seeds": 0}, "population.seeds is 0"),
        ({"batch_parts": -1}, "batch_parts is -1; it must be at least 0"),
        ({"steps_per_chunk": -1}, "steps_per_chunk is -1; it must be at least 0"),
        ({"data__seed": -2}, "data.seed is -2"),
    ],
)
def test_what_cannot_work_is_refused_by_name(config, values, message):
    config = ml_collections.ConfigDict(config.to_dict(), type_safe=False)
    with pytest.raises(errors.UsageError, match=message):
        validation.validate(changed(config, **values))


def test_a_field_that_is_missing_is_named(config):
    values = config.to_dict()
    del values["data"]["crop"]
    with pytest.raises(errors.UsageError, match="lacks data.crop"):
        validation.validate(ml_collections.ConfigDict(values))


@pytest.mark.parametrize(
    "values",
    [
        {"stages__initial_resolution": 64, "stages__transition_steps": 0},
        {"model__latent_resolution": 4, "model__latent_channels": 16},
        {"loss__relative_perceptual": 0.0, "loss__l1": 1.0, "perceptual__layers": ""},
        {"perceptual__layers": "8:r12 16:r22 32:r32 64:r32*1+r42*0.5"},
        {"data__size": 192, "data__random_crop": True},
        {"precision": "float64"},
    ],
)
def test_what_can_work_is_accepted(config, values):
    validation.validate(changed(config, **values))


@pytest.mark.parametrize(
    "first, last, channels, layers",
    [
        (8, 64, (16, 16, 16, 16, 16), "8:r12 16:r22 32:r32 64:r42"),
        (8, 16, (16, 16, 16), "8:r12 16:r22"),
        (8, 8, (16, 16), "8:r12"),
        (64, 64, (16, 16, 16, 16, 16), "64:r42"),
        (64, 256, (16,) * 7, "64:r42 128:r52 256:r52"),
    ],
)
def test_channels_and_layers_follow_from_the_resolution(
    config, first, last, channels, layers
):
    config.stages.initial_resolution, config.data.resolution = first, last
    found = validation.validate(config)
    assert found.model.encoder_channels == channels
    assert found.model.decoder_channels == channels
    assert found.perceptual.layers == layers
    # what was given stays as it is, and what is complete is not changed
    assert config.perceptual.layers == "auto"
    assert validation.validate(found).to_dict() == found.to_dict()


def test_what_is_set_does_not_follow_from_the_resolution(config):
    config.data.resolution = 16
    config.model.encoder_channels = (8,)  # at each resolution
    config.model.decoder_channels = (4, 8, 16)
    config.perceptual.layers = "8:r11 16:r12"
    found = validation.validate(config)
    assert found.model.encoder_channels == (8, 8, 8)
    assert found.model.decoder_channels == (4, 8, 16)
    assert found.perceptual.layers == "8:r11 16:r12"


def test_layers_of_a_loss_that_uses_none_may_be_anything(config):
    config.loss.relative_perceptual, config.loss.l1 = 0.0, 1.0
    config.perceptual.layers = "512:r12"
    assert validation.validate(config).perceptual.layers == "512:r12"
