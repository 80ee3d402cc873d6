"""Feature statistics against NumPy in float64 over all features at once."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_factory as tiny

from dpa_jax import data
from dpa_jax.backbones import base, statistics, vgg19

# few enough sizes that one compiled program serves most tests
WEIGHTS = tiny.vgg_weights("c21", 6)
RESOLUTIONS = {"r11": 8, "r21": 16, "r12": 16}


def compute(images, weights=WEIGHTS, resolutions=RESOLUTIONS, **options):
    """The statistics of images in memory, in batches of four unless told otherwise."""
    image_set = data.ImageSet(images, [str(i) for i in range(len(images))])
    options = {"batch_size": 4, **options}
    return statistics.feature_statistics(
        vgg19.BACKBONE, weights, image_set, resolutions, **options
    )


@pytest.fixture(scope="module")
def found():
    return compute(tiny.images(11))


def whole(layer, x):
    """Mean and standard deviation of the features of images in [-1, 1]."""
    features = vgg19.apply(WEIGHTS, base.imagenet_inputs(jnp.asarray(x)), (layer,))[
        layer
    ]
    features = np.asarray(features, np.float64)
    return features.mean((0, 1, 2)), features.std((0, 1, 2))


@pytest.mark.parametrize("layer", list(RESOLUTIONS))
def test_statistics_are_those_of_all_features_together(found, layer):
    x = tiny.images(11).astype(np.float32) / 127.5 - 1
    if RESOLUTIONS[layer] == 8:
        x = x.reshape(11, 8, 2, 8, 2, 1).mean((2, 4))
    mean, std = whole(layer, x)
    np.testing.assert_allclose(found[layer]["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[layer]["std"], std, rtol=1e-5)
    assert found[layer]["mean"].dtype == found[layer]["std"].dtype == np.float32


def test_statistics_do_not_depend_on_the_batch(found):
    shown = []
    other = compute(
        tiny.images(11), batch_size=7, progress=lambda *counts: shown.append(counts)
    )
    for layer, arrays in found.items():
        for name, value in arrays.items():
            np.testing.assert_allclose(other[layer][name], value, rtol=1e-6, atol=1e-7)
    assert shown == [(7, 11), (11, 11)]


def test_of_larger_images_the_centre_counts():
    x = tiny.images(4, size=20)
    found = compute(x, resolutions={"r11": 16})
    mean, std = whole("r11", x[:, 2:18, 2:18].astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose(found["r11"]["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["r11"]["std"], std, rtol=1e-5)


def test_a_channel_that_never_varies_gets_the_median_spread():
    kernel = WEIGHTS["c11"]["kernel"].at[..., 2].set(0.0)
    bias = WEIGHTS["c11"]["bias"].at[2].set(-1.0)
    weights = {"c11": {"kernel": kernel, "bias": bias}}
    found = compute(tiny.images(4), weights, {"r11": 16})["r11"]
    assert found["mean"][2] == 0
    others = np.delete(found["std"], 2)
    assert (others > 0.1).all()
    np.testing.assert_allclose(found["std"][2], np.median(others), rtol=1e-6)


def test_a_large_mean_costs_no_precision():
    # the spread is a ten-thousandth of the mean: a difference of means of squares in
    # float32 would be noise
    weights = {
        "c11": {
            "kernel": 0.1 * WEIGHTS["c11"]["kernel"],
            "bias": WEIGHTS["c11"]["bias"] + 1000,
        }
    }
    plain = {"c11": {**weights["c11"], "bias": WEIGHTS["c11"]["bias"]}}
    found, expected = (
        compute(tiny.images(11), w, {"c11": 16}) for w in (weights, plain)
    )
    np.testing.assert_allclose(
        found["c11"]["mean"] - 1000, expected["c11"]["mean"], rtol=0, atol=1e-3
    )
    np.testing.assert_allclose(found["c11"]["std"], expected["c11"]["std"], rtol=1e-3)
