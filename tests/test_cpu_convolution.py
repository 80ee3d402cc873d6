"""Convolutions as CPUs are fast with them are the plain one, gradients included."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from dpa_jax.ops import convolution, cpu_convolution

THIN = [(1, 5), (5, 1), (3, 3), (2, 5)]
PADDINGS = ["SAME", "VALID", ((3, 3), (3, 3)), ((0, 2), (1, 0))]


def draw(rng, channels, features, size=3):
    shapes = (2, 8, 6, channels), (size, size, channels, features)
    return [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]


def plain(x, kernel, padding="SAME"):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def by_scipy(x, kernel):
    out = np.zeros((*x.shape[:3], kernel.shape[3]))
    for image, f, c in np.ndindex(x.shape[0], kernel.shape[3], x.shape[3]):
        out[image, :, :, f] += scipy.signal.correlate2d(
            x[image, :, :, c], kernel[:, :, c, f], mode="same"
        )
    return out


def pulled(convolve, x, kernel):
    """Returns both gradients of a weighted sum of a convolution."""

    def total(x, kernel):
        y = convolve(x, kernel)
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

    return jax.jit(jax.grad(total, argnums=(0, 1)))(x, kernel)


def penalty(convolve, x, kernel):
    """Returns gradients of a gradient, as WGAN-GP's penalty needs them."""

    def value(x, kernel):
        slope = jax.grad(lambda x: jnp.square(convolve(x, kernel)).sum())(x)
        return jnp.square(slope).mean()

    return jax.jit(jax.grad(value, argnums=(0, 1)))(x, kernel)


def assert_near(found, expected):
    for one, other in zip(found, expected, strict=True):
        limit = 1e-5 * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=limit)


@pytest.mark.parametrize(("channels", "features"), [*THIN, (4, 6)])
def test_equals_scipy(rng, channels, features):
    x, kernel = draw(rng, channels, features)
    found = jax.jit(cpu_convolution.convolve)(x, kernel)
    np.testing.assert_allclose(found, by_scipy(x, kernel), atol=2e-5)


@pytest.mark.parametrize("derive", [pulled, penalty])
@pytest.mark.parametrize(("channels", "features"), THIN)
def test_gradients_of_a_product(rng, channels, features, derive):
    x, kernel = draw(rng, channels, features)
    assert_near(derive(cpu_convolution.product, x, kernel), derive(plain, x, kernel))


@pytest.mark.parametrize("derive", [pulled, penalty])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", [1, 3, 4])
def test_gradients_of_an_arranged_one(rng, size, padding, derive):
    x, kernel = draw(rng, 4, 5, size)
    assert_near(
        derive(lambda x, k: cpu_convolution.convolve(x, k, padding), x, kernel),
        derive(lambda x, k: plain(x, k, padding), x, kernel),
    )


def test_gradients_in_a_loop_are_in_the_one_fast_arrangement(rng):
    x, kernel = draw(rng, 4, 5)

    def slopes(x, kernel):
        def total(x, kernel):
            return jnp.square(cpu_convolution.convolve(x, kernel)).sum()

        return jax.grad(total, argnums=(0, 1))(x, kernel)

    def summed(kernel, images):
        return jax.lax.map(lambda x: slopes(x, kernel), images)

    program = jax.jit(summed).lower(kernel, jnp.stack([x, x])).compile().as_text()
    found = re.findall(r" convolution\(.*dim_labels=([^,\s]+)", program)
    assert found == 3 * ["b01f_01io->b01f"]


def test_only_cpus_convolve_so():
    x, kernel, bias = jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 2)), jnp.zeros(2)

    def program(backend):
        def convolve(x):
            return convolution.convolve(x, kernel, bias, backend=backend)

        return str(jax.make_jaxpr(convolve)(x))

    assert "conv_general_dilated" not in program("cpu")
    assert "conv_general_dilated" in program("gpu")


def test_thin_ones_are_those_of_images():
    assert cpu_convolution.is_thin((3, 3, 1, 16))
    assert cpu_convolution.is_thin((3, 3, 16, 3))
    assert not cpu_convolution.is_thin((3, 3, 4, 4))
    assert not cpu_convolution.is_thin((1, 1, 1, 16))
