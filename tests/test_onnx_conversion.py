"""JAX's primitives as ONNX, each compared with JAX by ONNX Runtime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dpa_jax import errors
from dpa_jax.data.decode import Preprocessing
from dpa_jax.exporting import graph, preparation
from dpa_jax.ops.activations import relu

onnx = pytest.importorskip(
    "dpa_jax.exporting.onnx", reason="needs the extra onnx", exc_type=ImportError
)
SIDE, CHANNELS = 6, 3


def exported(function, path):
    """Writes a function of float images as ONNX and reads it back."""

    def of_bytes(images):
        return {"result": function(images.astype(jnp.float32) / 128 - 1)}

    (batch,) = jax.export.symbolic_shape("batch")
    made = graph.Graph(of_bytes, SIDE, Preprocessing(CHANNELS, SIDE), False, batch)
    onnx.write(made, path)
    return of_bytes, onnx.read(path)


def arithmetic(x):
    y = jnp.maximum(jnp.abs(x), 0.3) ** 3 - x / 2 + jnp.square(x) + 2 ** (-x)
    y = jnp.floor(y) + jnp.ceil(x) - jnp.sign(x) * jnp.minimum(y, 0.5)
    return y + jnp.sqrt(jnp.abs(x)) + lax.rsqrt(jnp.abs(x) + 1) + lax.integer_pow(x, 4)


def curves(x):
    y = jnp.exp(-x) + jnp.log(2 + x) + jnp.tanh(x) + jax.nn.sigmoid(x)
    return y + lax.erf(x) + jnp.sin(x) * jnp.cos(x)


def choices(x):
    inside = (x > 0) & (x <= 0.5) | ~(x < 1) ^ (x == 0.2)
    y = jnp.where(inside, x, 2.0)
    return jnp.where((x >= 0.1) & (y != 2), y, jnp.zeros_like(x)).astype(int) + x


def places(x):
    rows = x[:, 1:5, ::2] + x[:, 5:1:-1, 1::2] * x[:, jnp.array([4, 0, 4, 1]), :3]
    corner = x[:, 2, :, 1][:, None, 1:4, None] + x[..., 0, 2][:, :1, None, None]
    whole = jnp.concatenate([rows, rows[:, :2], jnp.flip(rows, 2) * corner], 1)
    first, second = jnp.split(whole, [5], axis=1)
    padded = jnp.pad(first, ((0, 0), (1, 3), (2, 0), (0, 0)), constant_values=3)
    return padded.sum(2)[:, :5] * jnp.roll(second[:, :, 1], 1, 1).prod(2, keepdims=True)


def sums(x):
    y = x.sum((1, 3)) + x.max((2, 3)) * x.min((1, 2)).mean(-1, keepdims=True)
    return jnp.cumsum(y, 1) + lax.cumsum(y, 1, reverse=True)


def products(x):
    weights = jnp.arange(float(SIDE * 4)).reshape(SIDE, 4)
    y = jnp.einsum("bhwc,hk->bwck", x, weights)
    return jnp.einsum("bwck,bvck->bvw", y, y) + (x.mean(3) @ x.mean(3))


def shapes(x):
    size = x.shape[0]
    y = x.transpose(0, 3, 1, 2).reshape(size * CHANNELS, SIDE, SIDE)
    y = y.reshape(size, CHANNELS, 1, SIDE, SIDE).squeeze(2)
    constant = jnp.broadcast_to(jnp.arange(6.0)[:, None], (size, 1, SIDE, SIDE))
    return jnp.concatenate([y, constant, jnp.ones_like(constant)], 1) * jnp.minimum(
        size, 1
    )


def convolutions(x):
    kernel = jnp.sin(jnp.arange(3 * 3 * 3 * 6.0)).reshape(3, 3, 3, 6)
    layout = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x,
        kernel,
        (2, 1),
        ((1, 2), (2, 0)),
        rhs_dilation=(1, 2),
        dimension_numbers=layout,
    )
    grouped = kernel[:, :, :1]
    turned = lax.conv_general_dilated(
        x,
        grouped,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NCHW"),
        feature_group_count=3,
    )
    return y.sum((1, 3))[:, :, None] + turned.sum(1)


def preparation_of_images(x):
    # so many pixels that the last step of an equalisation ends above 255
    tall = jnp.concatenate([128 * (x + 1)] * 10, 1).astype(jnp.uint8)
    small = preparation.resize(tall[:, :SIDE], 4)
    equalized = preparation.equalize(tall).astype(float)
    return jnp.concatenate([equalized[:, :4, :4], small.astype(float)], 1)


def written_in_jax(x):
    @jax.custom_vjp
    def inner(x):
        return relu(jax.jit(jnp.sin)(x))

    inner.defvjp(lambda x: (inner(x), x), lambda x, g: (g,))
    return inner(x)


@pytest.mark.parametrize(
    "function",
    [
        *(arithmetic, curves, choices, places, sums, products, shapes),
        *(convolutions, preparation_of_images, written_in_jax),
    ],
)
def test_onnx_computes_what_jax_does(function, tmp_path, rng):
    of_bytes, found = exported(function, tmp_path / "file.onnx")
    images = rng.integers(0, 256, (4, SIDE, SIDE, CHANNELS), np.uint8)
    expected = jax.jit(of_bytes)(images)["result"]
    for batch in (1, 4):
        result = found(images[:batch])["result"]
        np.testing.assert_allclose(result, expected[:batch], rtol=2e-5, atol=2e-5)


def part(x, start):
    return lax.dynamic_slice_in_dim(x, start, 2, axis=1)


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda x: jnp.sort(x, 1), "JAX's sort has no counterpart in ONNX here"),
        (
            lambda x: jnp.take_along_axis(x, x.astype(int), 1),
            "gathering at computed or irregular places",
        ),
        (lambda x: jax.vmap(part, (None, 0))(x, jnp.array([0, 3])), "irregular"),
        (lambda x: x[:, jnp.array([0, 3]), jnp.array([1, 2])], "irregular"),
        (lambda x: jnp.flip(x[:-1], 0)[:, 0], "the free dimension of a batch"),
        (
            lambda x: lax.conv_transpose(x, jnp.ones((3, 3, 3, 1)), (2, 2), "SAME"),
            "transposed convolutions",
        ),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1)) * 2), "padding between"),
        (lambda x: jnp.ones((2 * x.shape[0], 2)), "a dimension of 2\\*batch"),
    ],
)
def test_what_onnx_has_no_counterpart_of_is_named(function, reason, tmp_path):
    path = tmp_path / "file.onnx"
    with pytest.raises(errors.DpaError, match=reason):
        exported(function, path)
    assert not path.exists()


def test_a_constant_that_is_used_twice_is_written_once(tmp_path):
    weights = np.random.default_rng(0).random((SIDE * SIDE * CHANNELS, 500), np.float32)
    path = tmp_path / "file.onnx"

    def twice(x):
        flat = x.reshape(-1, len(weights))
        return (flat @ weights) * (jnp.abs(flat) @ weights)

    exported(twice, path)
    assert weights.nbytes < path.stat().st_size < 1.1 * weights.nbytes


def test_a_file_that_is_no_onnx_is_refused(tmp_path):
    (tmp_path / "file.onnx").write_bytes(b"not a model")
    with pytest.raises(errors.DpaError, match="ONNX Runtime cannot run"):
        onnx.read(tmp_path / "file.onnx")
