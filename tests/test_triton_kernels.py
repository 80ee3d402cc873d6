"""Our kernels for GPUs, run by JAX's interpreter, compute what NumPy and SciPy do.

On an H200 they agreed with JAX's own convolutions to 3e-3 of the largest value in
bfloat16 and 2e-6 in float32 (benchmarks/results).
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from dpa_jax import models
from dpa_jax.images import average_pool2, upsample2
from dpa_jax.ops import (
    convolution,
    first_convolution,
    fused_block,
    fused_convolution,
    kernel_check,
    pooling,
    triton,
)
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
SHAPES = [(16, 16, 8), (8, 16, 4), (16, 8, 6), (4, 4, 8), (4, 16, 4), (16, 4, 4)]


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


def test_in_bfloat16_results_are_rounded_once(rng):
    x, kernel, bias, g = (
        a.astype(jnp.bfloat16)
        for a in draw(rng, (2, 8, 8, 16), (3, 3, 16, 16), (16,), (2, 8, 8, 16))
    )
    given = [np.asarray(a, np.float32) for a in (x, kernel, bias, g)]
    y = fused_convolution.forward_kernel(
        x, kernel, bias, None, slope=1.0, interpret=True
    )
    found = (
        y,
        *fused_convolution.gradients_kernel(
            x, kernel, bias, g, None, slope=1.0, interpret=True
        ),
    )
    expected = (
        correlated(given[0], given[1]) + given[2],
        correlated(given[3], turned(given[1])),
        by_kernel(given[0], given[3]),
        given[3].sum((0, 1, 2)),
    )
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == jnp.bfloat16
        one = np.asarray(one, np.float32)
        np.testing.assert_allclose(one, other, rtol=2**-8, atol=1e-4)


# Images of which a tile holds two, one, a half and a quarter, in turns of programs of
# which the last has fewer; channels, side, tile, programs
BLOCKS = [(16, 4, 16, 3), (8, 8, 32, 1), (16, 16, 64, 2), (4, 16, 16, 5)]


def gradients_of_block(x, first, second, g, skip):
    """The block and its gradients, one convolution after the other, in NumPy."""
    entry = activated(x) if skip is None else x
    h = correlated(entry, first[0]) + first[1]
    y = (x if skip is None else skip) + correlated(activated(h), second[0]) + second[1]
    by_h = correlated(g, turned(second[0])) * np.where(h > 0, 1, SLOPE)
    by_x = correlated(by_h, turned(first[0]))
    if skip is None:
        by_x = g + by_x * np.where(x > 0, 1, SLOPE)
    ofs = (entry, by_h), (activated(h), np.asarray(g, np.float64))
    return y, by_x, *((by_kernel(a, b), b.sum((0, 1, 2))) for a, b in ofs)


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize(("c", "side", "tile", "programs"), BLOCKS)
def test_the_kernels_of_a_block(rng, monkeypatch, c, side, tile, programs, is_plain):
    for name in ("_FORWARD", "_GRADIENTS"):
        changed = {**getattr(fused_block, name), "tile": tile, "programs": programs}
        monkeypatch.setattr(fused_block, name, changed)
    shape = 3, side, side, c
    assert fused_block.fits(shape, c)
    x, g, *skip = draw(rng, shape, shape, *[shape] * (not is_plain))
    first, second = (tuple(draw(rng, (3, 3, c, c), (c,))) for _ in range(2))
    skip = None if is_plain else skip[0]
    y = fused_block.forward_kernel(x, first, second, skip, slope=SLOPE, interpret=True)
    found = fused_block.gradients_kernel(
        x, first, second, g, slope=SLOPE, skips=is_plain, interpret=True
    )
    expected = gradients_of_block(x, first, second, g, skip)
    for one, other in zip(*map(jax.tree.leaves, ((y, *found), expected)), strict=True):
        close(one, other)


def test_what_lies_within_a_block_is_rounded_as_between_convolutions(rng):
    """By either arrangement a convolution's result and its gradient are bfloat16."""
    shape = 2, 8, 8, 16
    x, g, *parameters = (
        a.astype(jnp.bfloat16)
        for a in draw(rng, shape, shape, *[(3, 3, 16, 16), (16,)] * 2)
    )
    first, second = tuple(parameters[:2]), tuple(parameters[2:])
    how = {"slope": SLOPE, "interpret": True}
    h = fused_convolution.forward_kernel(x, *first, None, **how)
    expected = [fused_convolution.forward_kernel(h, *second, x, **how)]
    by_h, *by_second = fused_convolution.gradients_kernel(h, *second, g, None, **how)
    expected += fused_convolution.gradients_kernel(x, *first, by_h, g, **how)
    found = (
        fused_block.forward_kernel(x, first, second, None, **how),
        fused_block.gradients_kernel(x, first, second, g, skips=True, **how),
    )
    for one, other in zip(jax.tree.leaves(found), [*expected, *by_second], strict=True):
        np.testing.assert_array_equal(
            np.asarray(one, np.float32), np.asarray(other, np.float32)
        )


def test_threads_of_a_program_wait_for_one_another(rng):
    """What a GPU needs and the interpreter does not.

    In each turn until all is kept and until all is read, and before a pixel's sums are
    added to those of the one before, of two convolutions.
    """
    x, kernel, bias = draw(rng, (1, 8, 8, 16), (3, 3, 16, 16), (16,))
    given = x, (kernel, bias), (kernel, bias)

    def waits(run, *arguments, **how):
        run = functools.partial(run, slope=SLOPE, **how)
        return str(jax.make_jaxpr(run)(*arguments)).count("debug_barrier")

    assert waits(fused_block.forward_kernel, *given, None) == 2
    assert waits(fused_block.gradients_kernel, *given, x, skips=True) == 2 + 2
    single = x, kernel, bias, x, None
    assert waits(fused_convolution.gradients_kernel, *single) == 1


def test_members_are_computed_side_by_side(rng):
    shapes = (2, 2, 4, 4, 8), (2, 3, 3, 8, 8), (2, 8), (2, 2, 4, 4, 8)
    x, kernel, bias, g = draw(rng, *shapes)

    def run(x, kernel, bias, g):
        return fused_convolution.gradients_kernel(
            x, kernel, bias, g, None, slope=SLOPE, interpret=True
        )

    both = jax.vmap(run)(x, kernel, bias, g)
    for i in (0, 1):
        for one, other in zip(run(x[i], kernel[i], bias[i], g[i]), both, strict=True):
            close(other[i], one)


def test_so_are_their_blocks(rng):
    x, kernels, biases = draw(rng, (2, 1, 8, 8, 8), (2, 2, 3, 3, 8, 8), (2, 2, 8))

    def run(x, kernels, biases):
        first, second = zip(kernels, biases, strict=True)
        return fused_block.forward_kernel(
            x, first, second, None, slope=SLOPE, interpret=True
        )

    both = jax.vmap(run)(x, kernels, biases)
    for i in (0, 1):
        close(both[i], run(x[i], kernels[i], biases[i]))


def test_elsewhere_the_slope_at_zero_is_the_kernels_too(rng):
    x = jnp.asarray(rng.integers(-1, 2, (2, 4, 4, 8)), jnp.float32)
    kernel, bias, g = draw(rng, (3, 3, 8, 8), (8,), (2, 4, 4, 8))
    slope = functools.partial(fused_convolution.convolve, slope=SLOPE)
    _, back = jax.vjp(slope, x, kernel, bias)
    by_x, *_ = fused_convolution.gradients_kernel(
        x, kernel, bias, g, None, slope=SLOPE, interpret=True
    )
    close(back(g)[0], by_x)


@pytest.mark.parametrize(
    ("shape", "features", "fits"),
    [
        ((2, 8, 8, 16), 16, True),
        ((2, 8, 8, 1), 16, True),  # filled up to 4
        ((2, 8, 8, 16), 3, True),
        ((2, 8, 8, 12), 16, False),
        ((2, 8, 8, 32), 16, False),
        ((2, 8, 7, 16), 16, False),
        ((2, 8, 6, 4), 4, False),  # four pixels are one wide one
        ((2**11, 256, 256, 4), 16, False),  # places beyond 32 bits
    ],
)
def test_where_there_is_a_kernel(shape, features, fits):
    assert fused_convolution.fits(shape, features) == fits


def test_the_pooling_kernels_hand_the_gradient_to_the_first_of_the_largest(rng):
    x = rng.integers(-2, 3, (3, 4, 6, 8)).astype(np.float32)
    (g,) = draw(rng, (3, 2, 3, 8))
    maxima, by_x = np.zeros(g.shape), np.zeros_like(x)
    for b, i, j, c in np.ndindex(*g.shape):
        window = x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        if window.max() > 0:
            row, column = divmod(int(window.argmax()), 2)
            maxima[b, i, j, c] = window.max()
            by_x[b, 2 * i + row, 2 * j + column, c] = g[b, i, j, c]
    y, taken = pooling.forward_kernel(x, interpret=True)
    np.testing.assert_array_equal(y, maxima)
    np.testing.assert_array_equal(
        pooling.gradient_kernel(taken, g, interpret=True), by_x
    )
    y, back = jax.vjp(lambda x: pooling.rectified_max_pool2(x, "cuda"), x)  # elsewhere
    np.testing.assert_array_equal(y, maxima)
    np.testing.assert_array_equal(back(g)[0], by_x)


def test_the_first_convolution_has_a_forward_and_a_gradient_kernel(rng):
    x, kernel, bias, g = draw(rng, (2, 8, 8, 3), (3, 3, 3, 16), (16,), (2, 8, 8, 16))
    y = first_convolution.forward_kernel(x, kernel, bias, interpret=True)
    close(y, np.maximum(correlated(x, kernel) + bias, 0))
    by_x = first_convolution.gradient_kernel(g, y, kernel, interpret=True)
    close(by_x, correlated(np.where(y > 0, g, 0), turned(kernel)))


@pytest.mark.parametrize(
    ("shape", "features", "fits"),
    [
        ((2, 64, 64, 16), 16, True),
        ((2, 8, 8, 4), 4, True),
        ((2, 8, 8, 8), 16, False),
        ((2, 8, 8, 1), 1, False),
        ((2, 128, 128, 16), 16, False),  # two rows are more than a tile
        ((2, 24, 24, 16), 16, False),  # a row does not end where a tile does
    ],
)
def test_where_there_is_one_for_blocks(shape, features, fits):
    assert fused_block.fits(shape, features) == fits


# --- who chooses them


class Device(types.SimpleNamespace):
    __hash__ = object.__hash__


def test_where_they_compile_they_are_used_in_bfloat16():
    assert arranged_for("gpu", "bfloat16", True) == "cuda"
    assert arranged_for("gpu", "bfloat16", False) == "gpu"
    assert arranged_for("gpu", "float32", True) == "gpu"
    assert arranged_for("tpu", "bfloat16", False) == "tpu"


@pytest.mark.parametrize("capability", [None, "7.5", "gfx942"])
def test_devices_that_they_are_not_for(capability):
    """CPUs and TPUs, Turing, which has no bfloat16, and AMD's."""
    device = Device(compute_capability=capability)
    assert not kernel_check.compiles_for(device)
    assert not kernel_check.run_on(device)


def test_where_they_do_not_compile_somebody_is_told(monkeypatch):
    monkeypatch.setattr(triton, "is_available", False)
    device = Device(compute_capability="9.0", device_kind="a GPU")
    with pytest.warns(UserWarning, match="do not compile for a GPU, cuDNN.*no Triton"):
        assert not kernel_check.compiles_for(device)


def in_float32(arrays):
    arrays = jax.tree.map(lambda a: a.astype(jnp.float32), arrays)
    return kernel_check._results(kernel_check._KERNELS, arrays)


def test_what_is_right_on_a_device_is_used(monkeypatch):
    """The kernels themselves, interpreted, of fewer images."""
    monkeypatch.setattr(kernel_check, "_SHAPE", (2, 16, 16))
    monkeypatch.setattr(
        triton, "choose", lambda run, _, *arrays: run(*arrays, interpret=True)
    )
    run = functools.partial(kernel_check._results, kernel_check._KERNELS)
    assert kernel_check.agree(jax.jit(run), "a CPU")


@pytest.mark.parametrize("wrong", [0.5, np.nan])
def test_what_is_wrong_in_a_row_of_one_result_is_not_and_somebody_is_told(
    monkeypatch, wrong
):
    monkeypatch.setattr(kernel_check, "_SHAPE", (4, 32, 32))

    def run(arrays):
        *others, last = in_float32(arrays)
        return *others, last.at[3, 8].add(wrong)

    with pytest.warns(UserWarning, match="are wrong on a CPU, cuDNN convolves"):
        assert not kernel_check.agree(run, "a CPU")


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


@pytest.mark.parametrize("resample", [None, average_pool2, upsample2])
@pytest.mark.parametrize("features", [16, 8])
def test_a_block_elsewhere_computes_the_same_by_any_arrangement(
    rng, features, resample
):
    (x,) = draw(rng, (2, 8, 8, 16))
    exact, narrow = Compute("float32", "cuda"), Compute("bfloat16", "cuda")
    pairs = [
        (Compute(), exact, 2e-5),
        (dataclasses.replace(narrow, blocks=False), narrow, 1e-2),
    ]
    parameters = models.PreAct(features).init(jax.random.key(0), x)

    def run(compute):
        block = models.PreAct(features, resample, compute)

        def value(*given):
            return jnp.square(block.apply(*given).astype(jnp.float32)).sum()

        return jax.value_and_grad(value, (0, 1))(parameters, x)

    for one, other, apart in pairs:
        for a, b in zip(*map(jax.tree.leaves, (run(one), run(other))), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=apart * np.abs(b).max())


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_block_brings_images_to_the_format_too(rng, precision, blocks):
    (x,) = draw(rng, (1, 8, 8, 16))
    block = models.PreAct(16, compute=Compute(precision, "cuda", blocks=blocks))
    assert block.apply(block.init(jax.random.key(0), x), x).dtype == precision


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu", "cuda"])
def test_images_are_brought_to_the_format_of_the_computation(rng, backend):
    (x,) = draw(rng, (1, 8, 8, 16))
    compute = Compute("bfloat16", backend)
    conv = convolution.Conv(16, 3, compute=compute, is_activated=True)
    y, passed = conv.apply(conv.init(jax.random.key(0), x), x, passes=True)
    assert y.dtype == passed.dtype == jnp.bfloat16


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 11), reason="JAX lowers them for a GPU it knows alone"
)
@pytest.mark.parametrize(("blocks", "kernels"), [(True, 2), (False, 4)])
def test_a_program_for_nvidia_gpus_has_them(rng, blocks, kernels):
    (x,) = draw(rng, (2, 8, 8, 16))
    compute = Compute("bfloat16", "cuda", blocks=blocks)
    block = models.PreAct(16, compute=compute)
    parameters = block.init(jax.random.key(0), x)

    def run(parameters, x):
        y, back = jax.vjp(block.apply, parameters, x)
        return y, back(y)

    traced = jax.jit(run).trace(parameters, x)
    lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("__gpu$xla.gpu.triton") == kernels
    assert "stablehlo.convolution" not in lowered
    lowered = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "triton" not in lowered and "stablehlo.convolution" in lowered
