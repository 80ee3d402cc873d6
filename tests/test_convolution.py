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


@pytest.mark.parametrize(
    ("backend", "pixels"), [("cpu", 1), ("gpu", 1), ("gpu", 2), ("gpu", 4), ("gpu", 8)]
)
def test_equals_scipy(rng, pixels, backend):
    x, kernel, bias = draw(rng)
    convolve = functools.partial(convolution.convolve, pixels=pixels, backend=backend)
    found = jax.jit(convolve)(x, kernel, bias)
    np.testing.assert_allclose(found, by_scipy(x, kernel, bias), atol=2e-5)


def test_a_kernel_as_large_as_the_images_is_a_product(rng):
    x, bias = rng.standard_normal((2, 4, 4, 3)), rng.standard_normal(5)
    kernel = rng.standard_normal((4, 4, 3, 5))
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel, bias)]
    found = convolution.convolve(*arrays, "VALID", backend="gpu")
    expected = np.einsum("bhwc,hwcf->bf", x, kernel) + bias
    np.testing.assert_allclose(found, expected[:, None, None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "pixels"), [("cpu", 1), ("gpu", 4)])
def test_a_bias_of_each_image_has_the_gradient_of_each(rng, backend, pixels):
    x, kernel, bias = draw(rng)
    weight = jnp.asarray(rng.standard_normal((2, 8, 8, 5)), jnp.float32)

    def value(rows):
        y = convolution.convolve(x, kernel, rows, pixels=pixels, backend=backend)
        return (y * weight).sum(), y

    rows = jnp.tile(bias, (2, 1))
    found, y = jax.grad(value, has_aux=True)(rows)
    np.testing.assert_allclose(y, by_scipy(x, kernel, bias), atol=2e-5)
    np.testing.assert_allclose(found, weight.sum((1, 2)), rtol=1e-5, atol=1e-5)


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
    assert convolution.pixels_together(64, 64, 64, fill) == 1


def test_four_wide_pixels_are_left():
    assert [convolution.pixels_together(w, 16, 16, 64) for w in (4, 8, 16)] == [1, 2, 4]


def test_a_cpu_convolves_pixel_by_pixel():
    assert convolution.fills("cpu") == (1,)
    assert convolution.pixels_together(64, 16, 16, 1) == 1
