"""Encoder and decoder: sizes, initial values, and what growing keeps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpa_jax import models, stages, state
from dpa_jax.config import completed, default_config
from dpa_jax.models import Architecture
from dpa_jax.ops import convolution
from dpa_jax.ops.compute import Compute
from dpa_jax.stages import Stage


def architecture(**changes):
    values = {
        "kind": "residual18",
        "resolution": 16,
        "image_channels": 1,
        "latent_resolution": 1,
        "latent_channels": 4,
        "encoder_channels": (2, 3, 4),
        "decoder_channels": (4, 3, 2),
    }
    return Architecture(**{**values, **changes})


def parameters_of(a, *plan):
    return state.initialize(jax.random.key(0), a, plan)


def count(a, stage):
    shapes = jax.eval_shape(lambda: parameters_of(a, stage))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


reconstruct = jax.jit(
    models.reconstruct, static_argnames=("architecture", "stage", "compute")
)


# --- sizes


def test_nih_subset_has_its_published_size():
    config = completed(default_config())
    a, last = Architecture.from_config(config), stages.schedule(config)[-1]
    assert count(a, last) == 92_049


def test_camelyon16_has_its_published_size():
    a = Architecture("residual18", 64, 3, 8, 4, (4,) * 4, (4,) * 4)
    assert count(a, Stage(64, False, 1)) == 4_959


def test_nih_ap_has_the_size_counted_by_hand():
    # 64 to 64 channels: a 3x3 convolution has 9*64*64+64 = 36,928 parameters and a
    # PreAct two of them, 73,856. Encoder: 9*64+64 and 2 PreActs from the image, four
    # blocks of 2, a 4x4 convolution: 640 + 147,712 + 590,848 + 65,600 = 804,800.
    # Decoder: 65,600 + 590,848 and 9*64+1 to the image = 657,025.
    a = Architecture("residual18", 64, 1, 1, 64, (64,) * 5, (64,) * 5)
    assert count(a, Stage(64, False, 1)) == 804_800 + 657_025  # 1.46 M


def test_residual9_has_the_size_counted_by_hand():
    # widths 2 at 8 px and 4 at 4 px. Encoder: 9*2+2 and one PreAct of 2*(36+2) from
    # the image; down 2 to 4: 72+4, 144+4, skip 8+4; latent 16*4*5+5.
    # Decoder: latent 16*5*4+4; up 4 to 2: 72+2, 36+2, skip 8+2; to the image 18+1.
    a = architecture(
        kind="residual9",
        resolution=8,
        latent_channels=5,
        encoder_channels=(2, 4),
        decoder_channels=(4, 2),
    )
    encoder = 20 + 76 + (76 + 148 + 12) + 325
    decoder = 324 + (74 + 38 + 10) + 19
    assert count(a, Stage(8, False, 1)) == encoder + decoder


@pytest.mark.parametrize(
    ("latent_resolution", "channels", "widths"), [(1, 1, (2, 3, 4)), (8, 3, (2, 4))]
)
def test_shapes_of_latents_and_reconstructions(latent_resolution, channels, widths):
    a = architecture(
        latent_resolution=latent_resolution,
        image_channels=channels,
        encoder_channels=widths,
        decoder_channels=widths[::-1],
    )
    stage, x = Stage(16, False, 1), jnp.zeros((2, 16, 16, channels))
    z, y = jax.eval_shape(
        lambda: models.reconstruct(
            parameters_of(a, stage),
            x,
            1.0,
            architecture=a,
            stage=stage,
            compute=Compute(),
        )
    )
    assert z.shape == (2, latent_resolution, latent_resolution, 4)
    assert y.shape == x.shape


def test_bfloat16_computes_in_half_and_returns_float32():
    a, stage = architecture(), Stage(8, False, 1)
    z, y = jax.eval_shape(
        lambda: models.reconstruct(
            parameters_of(a, stage),
            jnp.zeros((2, 8, 8, 1)),
            1.0,
            architecture=a,
            stage=stage,
            compute=Compute("bfloat16"),
        )
    )
    assert (z.dtype, y.dtype) == (jnp.bfloat16, jnp.float32)


# --- initial values


def test_a_block_begins_the_same_in_every_stage():
    # all of one width, since every new shape of a draw is compiled
    widths = {"encoder_channels": (4, 4, 4), "decoder_channels": (4, 4, 4)}
    a = architecture(kind="residual9", **widths)
    plan = [Stage(8, False, 1), Stage(16, True, 1), Stage(16, False, 1)]
    union = parameters_of(a, *plan)
    for stage in plan:
        alone = parameters_of(a, stage)
        jax.tree.map(
            np.testing.assert_array_equal,
            alone,
            state.select(union, {part: tuple(alone[part]) for part in alone}),
        )
    assert union["encoder"].keys() == {
        *("from_image_8", "from_image_16", "block_8", "block_16", "latent")
    }
    assert union["decoder"].keys() == {
        *("to_image_8", "to_image_16", "block_8", "block_16", "latent")
    }


def test_blocks_and_seeds_differ():
    a = architecture(
        kind="residual9", encoder_channels=(4, 4, 4), decoder_channels=(4, 4, 4)
    )
    stage = Stage(16, False, 1)
    first = parameters_of(a, stage)["encoder"]
    second = state.initialize(jax.random.key(1), a, [stage])["encoder"]
    kernels = [
        first["block_8"]["down"]["conv_0"]["kernel"],
        first["block_16"]["down"]["conv_0"]["kernel"],
        first["block_8"]["down"]["conv_1"]["kernel"],
        second["block_8"]["down"]["conv_0"]["kernel"],
    ]
    assert len({np.asarray(kernel).tobytes() for kernel in kernels}) == 4


def test_kernels_are_kaiming_normal_and_biases_uniform():
    conv = convolution.Conv(200, 3)
    drawn = conv.init(jax.random.key(0), jnp.zeros((1, 4, 4, 50)))["params"]
    kernel, bias = np.asarray(drawn["kernel"]), np.asarray(drawn["bias"])
    # PyTorch's fan_out is 9 * 200, its gain sqrt(2 / (1 + 0.2^2)); 90,000 draws
    std = math.sqrt(2 / 1.04) / math.sqrt(9 * 200)
    assert abs(kernel.std() / std - 1) < 0.01
    assert abs(kernel.mean()) < 0.02 * std
    assert 3.5 * std < np.abs(kernel).max() < 6 * std  # not truncated
    bound = 1 / math.sqrt(9 * 50)
    assert 0.95 * bound < np.abs(bias).max() <= bound
    assert abs(bias.std() / (bound / math.sqrt(3)) - 1) < 0.1
    assert abs(bias.mean()) < 0.15 * bound


# --- growing


@pytest.fixture(scope="module")
def grown():
    """Latents and reconstructions of a transition at both ends, and its neighbours."""
    # of one width: see above
    a = architecture(encoder_channels=(4, 4, 4), decoder_channels=(4, 4, 4))
    old, growing, new = Stage(8, False, 1), Stage(16, True, 1), Stage(16, False, 1)
    parameters = parameters_of(a, old, growing, new)
    x = jax.random.uniform(jax.random.key(1), (2, 16, 16, 1), minval=-1)
    halved = x.reshape(2, 8, 2, 8, 2, 1).mean((2, 4))

    def run(stage, x, alpha):
        return reconstruct(
            parameters, x, alpha, architecture=a, stage=stage, compute=Compute()
        )

    return {
        "begin": run(growing, x, 0.0),
        "half": run(growing, x, 0.5),
        "end": run(growing, x, 1.0),
        "old": run(old, halved, 1.0),
        "new": run(new, x, 1.0),
    }


def test_a_transition_ends_as_the_stabilization_of_its_resolution(grown):
    for ours, expected in zip(grown["end"], grown["new"], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_a_transition_begins_as_the_previous_resolution_upsampled(grown):
    (latent, y), (old_latent, old_y) = grown["begin"], grown["old"]
    np.testing.assert_allclose(latent, old_latent, rtol=0, atol=1e-6)
    repeated = np.asarray(old_y).repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(y, repeated, rtol=0, atol=1e-6)


def test_a_transition_moves_between_its_ends(grown):
    for begin, half, end in zip(
        grown["begin"], grown["half"], grown["end"], strict=True
    ):
        assert np.abs(half - begin).max() > 1e-3
        assert np.abs(half - end).max() > 1e-3
