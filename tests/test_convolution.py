"""Convolutions arranged for an accelerator are the plain one, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from dpa_jax.ops import convolution


def draw(rng, width=8, channels=3, features=5):
    shapes = (2, 8, width, channels), (3, 3, channels, features), (features,)
    return [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]


def by_scipy(x, kernel, bias):
    out = np.zeros((*x.shape[:3], kernel.shape[3]))
    for image in range(x.shape[0]):
        for f in range(kernel.shape[3]):
            for c in range(x.shape[3]):
                out[image, :, :, f] += scipy.signal.correlate2d(
                    x[image, :, :, c], kernel[:, :, c, f], mode="same"
                )
    return out + bias


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("pixels", [1, 2, 4, 8])
def test_equals_scipy(rng, pixels, backend):
    x, kernel, bias = draw(rng)
    convolve = functools.partial(convolution.convolve, pixels=pixels, backend=backend)
    found = jax.jit(convolve)(x, kernel, bias)
    np.testing.assert_allclose(found, by_scipy(x, kernel, bias), atol=2e-5)


@pytest.mark.parametrize("pixels", [2, 4])
def test_gradients_are_those_of_the_plain_one(rng, pixels):
    arguments = draw(rng)
    weight = jnp.asarray(rng.standard_normal((2, 8, 8, 5)), jnp.float32)

    def total(pixels):
        def value(arguments):
            y = convolution.convolve(*arguments, pixels=pixels, backend="gpu")
            return (y * weight).sum()

        return jax.grad(value)(arguments)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        total(pixels),
        total(1),
    )


def test_widening_fills_the_channels_of_a_gpu():
    fill = convolution.fills("gpu")[0]
    assert convolution.pixels_together(64, 16, 16, fill) == 4
    assert convolution.pixels_together(64, 1, 16, fill) == 4
    assert convolution.pixels_together(2, 16, 16, fill) == 2
    assert convolution.pixels_together(64, 64, 64, fill) == 1


def test_a_cpu_convolves_pixel_by_pixel():
    assert convolution.fills("cpu") == (1,)
    assert convolution.pixels_together(64, 16, 16, 1) == 1
