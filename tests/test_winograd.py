"""Winograd's convolution is the plain one, and so are its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpa_jax.ops import winograd

# of the largest result; float32 loses this much by the transforms
TOLERANCE = 1e-5


def draw(rng, height=8, width=8, channels=5, features=7):
    x = rng.standard_normal((2, height, width, channels))
    kernel = rng.standard_normal((3, 3, channels, features))
    return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)


def plain(x, kernel):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


def by_numpy(x, kernel):
    """Convolves in float64, neighbour by neighbour."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    _, height, width, _ = x.shape
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        x[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )


def assert_near(found, expected):
    assert found.shape == expected.shape
    limit = TOLERANCE * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (5, 7), (2, 2), (1, 9)])
def test_equals_numpy_at_any_size(rng, size):
    x, kernel = draw(rng, *size)
    found = jax.jit(winograd.convolve)(x, winograd.transform(kernel))
    assert_near(found, by_numpy(x, kernel))


def test_errors_at_the_width_of_vgg(rng):
    x, kernel = draw(rng, channels=256, features=256)
    x = jnp.maximum(x, 0)
    found = jax.jit(winograd.convolve)(x, winograd.transform(kernel))
    assert_near(found, by_numpy(x, kernel))


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_the_gradient_is_that_of_the_plain_one(rng, size):
    x, kernel = draw(rng, *size)
    weight = jnp.asarray(rng.standard_normal((2, *size, 7)), jnp.float32)
    prepared = winograd.transform(kernel)

    def pulled(convolve):
        return jax.jit(lambda x: jax.vjp(convolve, x)[1](weight)[0])(x)

    found = pulled(lambda x: winograd.convolve(x, prepared))
    expected = pulled(lambda x: plain(x, kernel))
    assert_near(found, expected)


def test_a_gradient_has_a_gradient(rng):
    x, kernel = draw(rng)
    prepared = winograd.transform(kernel)

    def steepness(convolve, x):
        slope = jax.grad(lambda x: jnp.sin(convolve(x)).sum())(x)
        return jnp.square(slope).sum()

    def bent(convolve):
        return jax.jit(jax.grad(functools.partial(steepness, convolve)))(x)

    found = bent(lambda x: winograd.convolve(x, prepared))
    expected = bent(lambda x: plain(x, kernel))
    # sin bends by as much as its argument is off
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )


def test_a_prepared_kernel_is_constant(rng):
    x, kernel = draw(rng)

    def total(kernel):
        return winograd.convolve(x, winograd.transform(kernel)).sum()

    assert not jax.jit(jax.grad(total))(kernel).any()


@pytest.mark.parametrize("most", [1, 64, 128, 200])
def test_blocks_of_images_are_the_same(rng, monkeypatch, most):
    x, kernel = draw(rng)
    x, prepared = jnp.concatenate([x, 2 * x, -x]), winograd.transform(kernel)

    def pulled(x):
        return jax.vjp(lambda x: winograd.convolve(x, prepared), x)

    (whole, pull), expected = pulled(x), by_numpy(x, kernel)
    assert_near(whole, expected)
    monkeypatch.setattr(winograd, "_BLOCK", most)  # 6 images of 64 pixels
    found, pull_blocks = pulled(x)
    assert_near(found, expected)
    np.testing.assert_allclose(pull_blocks(found)[0], pull(found)[0], rtol=1e-5)


def test_images_may_be_mapped_over(rng):
    x, kernel = draw(rng)
    prepared = winograd.transform(kernel)
    one = jax.vmap(lambda x: winograd.convolve(x[None], prepared)[0])
    found = jax.jit(one)(x)
    assert_near(found, by_numpy(x, kernel))


def test_a_tile_takes_a_quarter_of_the_products(rng):
    x, kernel = draw(rng)
    prepared = winograd.transform(kernel)
    assert prepared[0].shape == (36, 5, 7)  # for 16 results, each of 9 direct ones
    assert prepared[1].shape == (36, 7, 5)
    program = jax.make_jaxpr(lambda x: winograd.convolve(x, prepared))(x)
    assert "dot_general" in str(program)
    assert "conv_general_dilated" not in str(program)
