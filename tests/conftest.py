"""What several tests need: the parity fixtures' place and a tiny configuration."""

import pathlib

import jax
import numpy as np
import pytest

from dpa_jax import config as config_lib
from dpa_jax import vgg

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of fixtures and real data, which is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"the parity fixtures and real images are not at {SHARED.name}/")
    return SHARED


@pytest.fixture(scope="session")
def fixture_vgg(shared):
    """The VGG19 weights that the parity fixtures were computed with."""
    import runpy

    state = runpy.run_path(str(shared / "fixtures" / "make_vgg19.py"))["state_dict"]()
    names = iter(vgg.CONVOLUTIONS)
    weights = {}
    for key in state:
        if key.endswith("weight"):
            kernel = state[key].transpose(2, 3, 1, 0)
            bias = state[key.replace("weight", "bias")]
            weights[next(names)] = {"kernel": kernel, "bias": bias}
    return jax.device_put(weights)


@pytest.fixture(scope="session")
def fixture_statistics(shared):
    """The published feature statistics."""
    from dpa_jax.weights import files

    return jax.device_put(
        files.load_statistics(str(shared / "fixtures" / "vgg19_feature_stats.npz"))
    )


@pytest.fixture
def tiny_config():
    """Two stages and a transition of a few steps each, 8 to 16 pixels."""
    config = config_lib.default_config()
    config.data.resolution = 16
    config.model.latent_channels = 4
    config.model.encoder_channels = (4, 4, 4)
    config.model.decoder_channels = (4, 4, 4)
    config.stages.transition_steps = 4
    config.stages.stabilization_steps = 4
    config.stages.final_steps = 4
    config.perceptual.layers = "8:r11 16:r12"
    config.perceptual.weights = "random:0"
    config.perceptual.statistics = "train"
    config.batch_size = 8
    return config


@pytest.fixture
def rng():
    """A generator with a fixed seed."""
    return np.random.default_rng(0)
