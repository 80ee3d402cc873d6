"""Losses and maps of each image, against the paper's equations in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_factory as tiny

from dpa_jax import losses, stages
from dpa_jax.config import completed, default_config
from dpa_jax.losses import Loss, StageLoss

AXES = (1, 2, 3)


def compared(real, fake, x, y):
    """What a loss sees; those here do not look at the latent."""
    return losses.Comparison(x, y, None, real, fake)


@pytest.fixture
def drawn(rng):
    """Images, features of two layers of both, and statistics: of our own making."""
    x, y = rng.uniform(-1, 1, (2, 3, 8, 8, 1)).astype(np.float32)
    shapes = {"r11": (3, 8, 8, 4), "r22": (3, 4, 4, 5), "image": (3, 8, 8, 3)}
    real, fake = (
        {name: rng.random(shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(2)
    )
    statistics = {
        name: {
            "mean": rng.random(shapes[name][3]).astype(np.float32),
            "std": 0.5 + rng.random(shapes[name][3]).astype(np.float32),
        }
        for name in ("r11", "r22")
    }
    return statistics, real, fake, x, y


def normalized(features, statistics):
    return {
        name: (f - statistics[name]["mean"]) / statistics[name]["std"]
        if name in statistics
        else f
        for name, f in features.items()
    }


def test_relative_perceptual_is_equation_3(drawn):
    statistics, real, fake, x, y = drawn
    loss = Loss(layers=(("r11", 1.0), ("r22", 0.5)), image_weight=0.25)
    g, h = normalized(real, statistics), normalized(fake, statistics)
    terms = {n: abs(g[n] - h[n]).mean(AXES) / abs(g[n]).mean(AXES) for n in g}
    expected = (terms["r11"] + 0.5 * terms["r22"] + 0.25 * terms["image"]) / 1.75
    found = losses.per_image(loss, statistics, compared(real, fake, x, y))
    assert found.shape == (3,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_plain_perceptual_is_a_mean_square(drawn, normalize):
    statistics, real, fake, x, y = drawn
    layers = (("r11", 1.0), ("r22", 3.0))
    loss = Loss(layers, relative_perceptual=0, perceptual=2.0, normalize=normalize)
    used = statistics if normalize else {}
    g, h = normalized(real, used), normalized(fake, used)
    terms = {n: np.square(g[n] - h[n]).mean(AXES) for n in g}
    expected = 2 * (terms["r11"] + 3 * terms["r22"]) / 4
    found = losses.per_image(loss, statistics, compared(real, fake, x, y))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_shares_of_a_loss_are_its_weighted_terms_by_their_sum(drawn):
    statistics, real, fake, x, y = drawn
    loss = Loss((("r11", 1.0), ("r22", 0.5)), 0.25, 2.0, l1=0.3, extra=darkness)
    loss = dataclasses.replace(loss, extra_weight=0.1)
    g, h = normalized(real, statistics), normalized(fake, statistics)
    terms = {n: abs(g[n] - h[n]).mean(AXES) / abs(g[n]).mean(AXES) for n in g}
    weights = {"r11": 1.0, "r22": 0.5, "image": 0.25}
    expected = {n: 2 * weights[n] / 1.75 * term for n, term in terms.items()}
    expected |= {"l1": 0.3 * abs(x - y).mean(AXES), "extra": 0.1 * (1 - x.mean(AXES))}
    total = sum(expected.values())
    found = losses.shares(loss, statistics, compared(real, fake, x, y))
    assert found.keys() == expected.keys()
    for name, part in expected.items():
        np.testing.assert_allclose(found[name], part / total, rtol=1e-5)


def test_a_term_of_the_users_own_may_be_the_only_one(drawn):
    statistics, real, fake, x, y = drawn
    loss = Loss((), relative_perceptual=0, extra=darkness, extra_weight=0.5)
    comparison = compared(real, fake, x, y)
    found = losses.per_image(loss, statistics, comparison)
    np.testing.assert_allclose(found, 0.5 * (1 - x.mean(AXES)), rtol=1e-5)
    found = losses.anomaly_map(loss, statistics, comparison)  # where it has no place
    np.testing.assert_array_equal(found, np.zeros((3, 8, 8)))


def darkness(comparison):
    return 1 - comparison.image.mean(AXES)


def test_shares_of_the_squared_terms(drawn):
    statistics, real, fake, x, y = drawn
    layers = (("r11", 1.0), ("r22", 3.0))
    loss = Loss(layers, relative_perceptual=0, perceptual=2.0, l2=0.5)
    found = losses.shares(loss, statistics, compared(real, fake, x, y))
    total = losses.per_image(loss, statistics, compared(real, fake, x, y))
    expected = 0.5 * np.square(x - y).mean(AXES)
    np.testing.assert_allclose(found["l2"], expected / total, rtol=1e-5)
    np.testing.assert_allclose(sum(found.values()), 1, rtol=1e-5)
    assert found.keys() == {"r11", "r22", "image", "l2"} & found.keys()


def test_a_loss_of_nothing_has_no_shares(drawn):
    *_, x, _ = drawn
    found = losses.shares(Loss((), 0, 0, l1=1.0), {}, compared({}, {}, x, x))
    assert found.keys() == {"l1"} and not found["l1"].any()


def test_terms_add_up_by_their_weights(drawn):
    statistics, real, fake, x, y = drawn
    layers = (("r11", 1.0),)
    perceptual = losses.per_image(Loss(layers), statistics, compared(real, fake, x, y))
    loss = Loss(layers, relative_perceptual=0.5, l1=0.1, l2=3.0)
    found = losses.per_image(loss, statistics, compared(real, fake, x, y))
    expected = 0.5 * np.asarray(perceptual)
    expected += 0.1 * abs(x - y).mean(AXES) + 3 * np.square(x - y).mean(AXES)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_image_is_scored_by_itself(drawn):
    statistics, real, fake, x, y = drawn
    loss = Loss((("r11", 1.0),), l1=1.0)
    together = losses.per_image(loss, statistics, compared(real, fake, x, y))
    for i in range(3):
        one = [{n: f[i : i + 1] for n, f in side.items()} for side in (real, fake)]
        pair = x[i : i + 1], y[i : i + 1]
        alone = losses.per_image(loss, statistics, compared(*one, *pair))
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-6)


def test_half_precision_features_are_compared_in_float32(drawn):
    statistics, real, fake, x, y = drawn
    half = [
        {n: jnp.asarray(f, jnp.bfloat16) for n, f in side.items()}
        for side in (real, fake)
    ]
    rounded = [
        {n: np.asarray(f).astype(np.float32) for n, f in side.items()} for side in half
    ]
    loss = Loss((("r22", 1.0),))
    found = losses.per_image(loss, statistics, compared(*half, x, y))
    expected = losses.per_image(loss, statistics, compared(*rounded, x, y))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("perceptual", [0.0, 1.0])
def test_real_images_carry_no_gradient(drawn, perceptual):
    statistics, real, fake, x, y = drawn
    loss = Loss((("r11", 1.0),), perceptual=perceptual, image_weight=1.0)

    def total(real, fake):
        return losses.per_image(loss, statistics, compared(real, fake, x, y)).sum()

    of_real, of_fake = jax.grad(total, argnums=(0, 1))(real, fake)
    assert not any(leaf.any() for leaf in jax.tree.leaves(of_real))
    assert of_fake["r11"].any() and of_fake["image"].any()


def test_without_perceptual_terms_nothing_is_extracted(drawn):
    *_, x, _ = drawn
    loss = Loss(relative_perceptual=0, l1=1.0)
    assert losses.extract({}, x, loss) == {}


def test_the_image_alone_can_be_compared(drawn):
    *_, x, y = drawn
    loss = Loss(layers=(), image_weight=1.0)
    real, fake = losses.extract({}, x, loss), losses.extract({}, y, loss)
    found = losses.per_image(loss, {}, compared(real, fake, x, y))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    a, b = ((v * 0.5 + 0.5 - mean) / std for v in (x, y))
    expected = abs(a - b).mean(AXES) / abs(a).mean(AXES)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- stages


def test_the_smooth_loss_fades_between_resolutions(rng, drawn):
    statistics, *_, x, y = drawn
    weights = tiny.vgg_weights("c11", 6)
    half = Loss(relative_perceptual=0, l2=1.0)  # the half has its own
    loss = StageLoss(full=Loss((("r11", 1.0),)), half=half)
    statistics = {"r11": {"mean": np.float32(0.1), "std": np.float32(2.0)}}
    targets = losses.stage_targets(loss, weights, x)
    found = losses.stage_per_image(loss, weights, statistics, targets, x, y, None, 0.3)

    f, g = (
        np.asarray(losses.extract(weights, v, loss.full)["r11"], np.float64)
        for v in (x, y)
    )
    full = abs((f - g) / 2).mean(AXES) / abs((f - 0.1) / 2).mean(AXES)
    small = (x - y).reshape(3, 4, 2, 4, 2, 1).mean((2, 4))
    expected = 0.3 * full + 0.7 * np.square(small).mean(AXES)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_stages_take_their_losses_from_the_config():
    config = completed(default_config())
    config.loss.l1 = 0.5
    plan = {s.name: s for s in stages.schedule(config)}
    growing = StageLoss.from_config(config, plan["32_transition"])
    assert growing.full == Loss((("r32", 1.0),), l1=0.5)
    assert growing.half == Loss((("r22", 1.0),), l1=0.5)
    assert StageLoss.from_config(config, plan["32_stabilization"]).half is None
    config.loss.smooth_transition = False
    assert StageLoss.from_config(config, plan["32_transition"]).half is None


# --- maps


@pytest.mark.parametrize("layer", ["r11", "r22", "r32"])
def test_the_mean_of_a_map_is_the_score(rng, layer):
    # of a layer as large as the image, and of layers whose map is enlarged by 2 and 4:
    # bilinear interpolation by an even factor gives every position the same weight
    weights = tiny.vgg_weights("c32", 6)
    x, y = rng.uniform(-1, 1, (2, 3, 16, 16, 1)).astype(np.float32)
    statistics = {layer: {"mean": np.full(6, 0.2, "f"), "std": np.full(6, 0.7, "f")}}
    loss = Loss(((layer, 1.0),), image_weight=0.5, perceptual=0.3, l1=0.1, l2=0.2)
    real, fake = losses.extract(weights, x, loss), losses.extract(weights, y, loss)
    maps = losses.anomaly_map(loss, statistics, compared(real, fake, x, y))
    assert maps.shape == (3, 16, 16) and maps.min() >= 0
    scores = losses.per_image(loss, statistics, compared(real, fake, x, y))
    np.testing.assert_allclose(maps.mean((1, 2)), scores, rtol=1e-5)


def test_a_map_is_high_where_features_differ(drawn):
    statistics, real, _, x, y = drawn
    fake = {name: f.copy() for name, f in real.items()}
    fake["r11"][0, 2, 5] += 1.0
    loss = Loss((("r11", 1.0),))
    found = np.asarray(losses.anomaly_map(loss, statistics, compared(real, fake, x, y)))
    g = (real["r11"][0] - statistics["r11"]["mean"]) / statistics["r11"]["std"]
    expected = np.zeros((3, 8, 8))
    expected[0, 2, 5] = (1 / statistics["r11"]["std"]).mean() / abs(g).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
