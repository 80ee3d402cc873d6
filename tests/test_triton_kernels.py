"""Our kernels for GPUs, run by JAX's interpreter, compute what NumPy and SciPy do.

On an H200 they agreed with JAX's own convolutions to 3e-3 of the largest value in
bfloat16 and 2e-6 in float32 (benchmarks/results).
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from dpa_jax.ops import convolution, first_convolution, fused_convolution, pooling
from dpa_jax.ops.compute import Compute, arranged_for

SLOPE = 0.2


def draw(rng, *shapes):
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def activated(x, slope=SLOPE):
    return np.where(x > 0, x, slope * x)


def correlated(x, kernel):
    """The convolution of images padded with zeros, by SciPy."""
    out = np.zeros((*x.shape[:3], kernel.shape[3]))
    for b, f, c in np.ndindex(x.shape[0], kernel.shape[3], x.shape[3]):
        plane = scipy.signal.correlate2d(x[b, :, :, c], kernel[:, :, c, f], "same")
        out[b, :, :, f] += plane
    return out


def turned(kernel):
    return kernel[::-1, ::-1].swapaxes(2, 3)


def by_kernel(x, g):
    """The gradient of the kernel: what of `x` each place of it meets, times `g`."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    _, h, w, _ = x.shape
    seen = [[padded[:, i : i + h, j : j + w] for j in range(3)] for i in range(3)]
    return np.einsum("ijbhwc,bhwf->ijcf", np.array(seen), np.array(g))


def close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * scale)


# channels in and out, size of the images: two pixels or four are one wide one, tiles
# end within an image or hold several, the last is not full
SHAPES = [(16, 16, 8), (8, 16, 4), (16, 8, 6), (4, 4, 8), (4, 16, 4), (32, 32, 2)]


@pytest.mark.parametrize(("c", "f", "side"), SHAPES)
def test_the_forward_kernel_activates_convolves_and_adds(rng, c, f, side):
    shape = 3, side, side
    x, kernel, bias, skip = draw(rng, (*shape, c), (3, 3, c, f), (f,), (*shape, f))
    found = fused_convolution.forward_kernel(
        x, kernel, bias, skip, slope=SLOPE, interpret=True
    )
    close(found, correlated(activated(x), kernel) + bias + skip)


def test_the_forward_kernel_may_do_without_and_rectify(rng):
    x, kernel, bias = draw(rng, (2, 4, 4, 4), (3, 3, 4, 64), (64,))
    found = fused_convolution.forward_kernel(
        x, kernel, bias, None, slope=1.0, rectifies=True, interpret=True
    )
    close(found, np.maximum(correlated(x, kernel) + bias, 0))


@pytest.mark.parametrize("slope", [SLOPE, 1.0])
@pytest.mark.parametrize(("c", "f", "side"), SHAPES)
def test_the_gradients_kernel_has_all_three(rng, c, f, side, slope):
    shape = 3, side, side
    x, kernel, bias = draw(rng, (*shape, c), (3, 3, c, f), (f,))
    g, beside = draw(rng, (*shape, f), (*shape, c))
    by_x, of_kernel, by_bias = fused_convolution.gradients_kernel(
        x, kernel, bias, g, beside, slope=slope, interpret=True
    )
    masked = correlated(g, turned(kernel)) * np.where(x > 0, 1, slope)
    close(by_x, masked + beside)
    close(of_kernel, by_kernel(activated(x, slope), g))
    close(by_bias, np.asarray(g, np.float64).sum((0, 1, 2)))


def test_sums_of_many_programs_are_added_up(rng, monkeypatch):
    # 32 tiles of 16 wide pixels for three programs, the last of which has fewer
    changed = {**fused_convolution._GRADIENTS, "tile": 16, "programs": 3}
    monkeypatch.setattr(fused_convolution, "_GRADIENTS", changed)
    x, kernel, bias, g = draw(rng, (4, 16, 16, 8), (3, 3, 8, 8), (8,), (4, 16, 16, 8))
    _, of_kernel, by_bias = fused_convolution.gradients_kernel(
        x, kernel, bias, g, None, slope=1.0, interpret=True
    )
    close(of_kernel, by_kernel(x, g))
    close(by_bias, np.asarray(g, np.float64).sum((0, 1, 2)))


@pytest.mark.parametrize(
    ("shape", "features", "fits"),
    [
        ((2, 8, 8, 16), 16, True),
        ((2, 8, 8, 1), 16, True),  # filled up to 4
        ((2, 8, 8, 16), 3, True),
        ((2, 8, 8, 12), 16, False),
        ((2, 8, 8, 64), 16, False),
        ((2, 8, 7, 16), 16, False),
        ((2, 8, 6, 4), 4, False),  # four pixels are one wide one
    ],
)
def test_where_there_is_a_kernel(shape, features, fits):
    assert fused_convolution.fits(shape, features) == fits


def test_the_pooling_kernel_hands_the_gradient_to_the_first_of_the_largest(rng):
    x = rng.integers(-2, 3, (3, 4, 6, 8)).astype(np.float32)
    (g,) = draw(rng, (3, 2, 3, 8))
    expected = np.zeros_like(x)
    for b, i, j, c in np.ndindex(*g.shape):
        window = x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        if window.max() > 0:
            row, column = divmod(int(window.argmax()), 2)
            expected[b, 2 * i + row, 2 * j + column, c] = g[b, i, j, c]
    found = pooling.gradient_kernel(x, g, interpret=True)
    np.testing.assert_array_equal(found, expected)


def test_the_first_convolution_has_a_forward_and_a_gradient_kernel(rng):
    x, kernel, bias, g = draw(rng, (2, 8, 8, 3), (3, 3, 3, 16), (16,), (2, 8, 8, 16))
    y = first_convolution.forward_kernel(x, kernel, bias, interpret=True)
    close(y, np.maximum(correlated(x, kernel) + bias, 0))
    by_x = first_convolution.gradient_kernel(g, y, kernel, interpret=True)
    close(by_x, correlated(np.where(y > 0, g, 0), turned(kernel)))


# --- who chooses them


@pytest.mark.parametrize(
    ("backend", "precision", "capability", "expected"),
    [
        ("gpu", "bfloat16", "9.0", "cuda"),
        ("gpu", "bfloat16", "12.0", "cuda"),
        ("gpu", "bfloat16", "7.5", "gpu"),  # Turing, which has no bfloat16
        ("gpu", "bfloat16", "gfx942", "gpu"),  # AMD's
        ("gpu", "float32", "9.0", "gpu"),
        ("tpu", "bfloat16", None, "tpu"),
    ],
)
def test_gpus_that_know_bfloat16_have_them_in_it(
    backend, precision, capability, expected
):
    known = {} if capability is None else {"compute_capability": capability}
    device = types.SimpleNamespace(**known)
    assert arranged_for(backend, precision, device) == expected


@pytest.mark.parametrize(("channels", "features"), [(16, 16), (1, 16), (16, 1)])
def test_a_convolution_elsewhere_computes_the_same_without_them(
    rng, channels, features
):
    """Values and gradients, of the skip connection as well, by either arrangement."""
    shape = 2, 8, 8
    x, skip, weight = draw(rng, (*shape, channels), *[(*shape, features)] * 2)

    def run(backend):
        conv = convolution.Conv(
            features, 3, compute=Compute(backend=backend), is_activated=True
        )
        parameters = conv.init(jax.random.key(0), x)

        def value(parameters, x, skip):
            y, same = conv.apply(parameters, x, skip, passes=True)
            return (y * weight).sum() + (same**2).sum()

        return jax.value_and_grad(value, (0, 1, 2))(parameters, x, skip)

    for a, b in zip(*map(jax.tree.leaves, map(run, ("cuda", "gpu"))), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 11), reason="JAX lowers them for a GPU it knows alone"
)
def test_a_program_for_nvidia_gpus_has_them(rng):
    x, kernel, bias, g = draw(rng, (2, 8, 8, 16), (3, 3, 16, 16), (16,), (2, 8, 8, 16))
    convolve = functools.partial(fused_convolution.convolve, slope=SLOPE)

    def run(x, kernel, bias):
        y, back = jax.vjp(convolve, x, kernel, bias)
        return y, back(g)

    traced = jax.jit(run).trace(x, kernel, bias)
    lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("__gpu$xla.gpu.triton") == 2
    assert "stablehlo.convolution" not in lowered
    lowered = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "triton" not in lowered and "stablehlo.convolution" in lowered
