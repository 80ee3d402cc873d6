"""VGG19: its geometry by hand, its numbers by PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_factory as tiny

from dpa_jax.backbones import base, vgg19
from dpa_jax.ops import frozen_convolution

ORDER = (
    "c11 r11 c12 r12 p1 c21 r21 c22 r22 p2 "
    "c31 r31 c32 r32 c33 r33 c34 r34 p3 "
    "c41 r41 c42 r42 c43 r43 c44 r44 p4 "
    "c51 r51 c52 r52 c53 r53 c54 r54 p5"
).split()


def test_layers_are_those_of_configuration_e():
    assert list(vgg19.LAYERS) == ORDER
    assert [vgg19.LAYERS[f"r{block}1"] for block in range(1, 6)] == [
        *(64, 128, 256, 512, 512)
    ]


def test_the_deepest_layer_is_the_one_computed_last():
    assert vgg19.deepest(["r32", "r42", "p3"]) == "r42"
    assert vgg19.deepest(["c12", "r11"]) == "c12"
    assert vgg19.deepest(["p2", "r22"]) == "p2"


@pytest.mark.parametrize(
    ("layers", "convolutions"),
    [(("c11",), 1), (("p1",), 2), (("r22", "r11"), 4), (("r42",), 10), (("p5",), 16)],
)
def test_nothing_deeper_than_asked_is_computed(rng, layers, convolutions):
    weights = tiny.vgg_weights("c54", 6)
    program = jax.make_jaxpr(lambda x: vgg19.apply(weights, x, layers))(
        jnp.zeros((1, 32, 32, 3))
    )
    # on CPU the first is a matrix product
    names = "conv_general_dilated[", "dot_general["
    assert sum(str(program).count(name) for name in names) == convolutions


def test_weights_beyond_the_deepest_layer_are_not_needed(rng):
    weights = tiny.vgg_weights("c12", 6)
    found = vgg19.apply(weights, jnp.zeros((1, 4, 4, 3)), ("r12", "p1"))
    assert {name: f.shape for name, f in found.items()} == {
        "r12": (1, 4, 4, 6),
        "p1": (1, 2, 2, 6),
    }


def test_features_follow_the_dtype_of_the_weights(rng):
    weights = jax.tree.map(lambda w: w.astype(jnp.bfloat16), tiny.vgg_weights("c11", 6))
    found = vgg19.apply(weights, jnp.zeros((1, 4, 4, 3)), ("r11",))
    assert found["r11"].dtype == jnp.bfloat16


def test_preprocessing_is_torchvisions(rng):
    grey = rng.uniform(-1, 1, (2, 4, 4, 1)).astype(np.float32)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (np.repeat((grey + 1) / 2, 3, axis=3) - mean) / std
    np.testing.assert_allclose(
        base.imagenet_inputs(grey), expected, rtol=1e-5, atol=1e-6
    )
    colour = rng.uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)
    expected = ((colour + 1) / 2 - mean) / std
    np.testing.assert_allclose(
        base.imagenet_inputs(colour), expected, rtol=1e-5, atol=1e-6
    )


def test_every_layer_is_pytorchs(rng):
    torch = pytest.importorskip("torch", reason="torch, an extra, is not installed")
    weights = tiny.vgg_weights("c54", 6)
    x = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    found = jax.jit(vgg19.apply, static_argnums=2)(weights, x, tuple(ORDER))
    y = torch.tensor(x.transpose(0, 3, 1, 2))
    for name in ORDER:
        if name[0] == "c":
            kernel = torch.tensor(np.asarray(weights[name]["kernel"]))
            bias = torch.tensor(np.asarray(weights[name]["bias"]))
            y = torch.conv2d(y, kernel.permute(3, 2, 0, 1), bias, padding=1)
        elif name[0] == "r":
            y = torch.relu(y)
        else:
            y = torch.max_pool2d(y, 2)
        expected = y.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(
            found[name], expected, rtol=0, atol=1e-5 * np.abs(expected).max()
        )


@pytest.mark.parametrize("backend", ["cpu", "gpu", "cuda"])
@pytest.mark.parametrize("wanted", [("r22",), ("c11", "r12", "p2"), ("r11", "c12")])
def test_what_is_not_asked_for_changes_nothing(rng, backend, wanted):
    """ReLU may come after pooling, and with the first convolution."""
    weights = tiny.vgg_weights("c22")
    x = jnp.asarray(rng.standard_normal((2, 8, 8, 3)), jnp.float32)

    def total(layers, backend, x):
        found = vgg19.apply(weights, x, layers, backend)
        return sum((found[name] ** 2).sum() for name in wanted), found

    (_, plain), expected = jax.value_and_grad(total, 2, True)(ORDER[:10], "tpu", x)
    (_, found), slope = jax.value_and_grad(total, 2, True)(wanted, backend, x)
    assert found.keys() == set(wanted)
    for name in wanted:
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-5, atol=1e-5)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(slope, expected, rtol=0, atol=2e-5 * scale)


def test_prepared_weights_give_the_same_features_and_gradients(rng):
    weights = tiny.vgg_weights("c32")
    prepared = frozen_convolution.prepare(weights, "cpu")
    images = jnp.asarray(rng.uniform(-1, 1, (8, 32, 32, 3)), jnp.float32)
    wanted = ("r31", "r32")

    @jax.jit
    def both(weights, images):
        def total(images):
            found = vgg19.apply(weights, base.imagenet_inputs(images), wanted)
            return sum(values.mean() for values in found.values()), found

        return jax.grad(total, has_aux=True)(images)

    (slope, found), (other, expected) = both(prepared, images), both(weights, images)
    for name in wanted:
        limit = 1e-5 * np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=limit)
        means = [values[name].mean(axis=(1, 2, 3)) for values in (found, expected)]
        np.testing.assert_allclose(*means, rtol=1e-6)
    # in a few images a unit within rounding of ReLU's kink falls on its other side
    apart = np.abs(slope - other).max(axis=(1, 2, 3)) / np.abs(other).max()
    assert 0 < np.median(apart) < 1e-5
    assert np.linalg.norm(slope - other) < 0.01 * np.linalg.norm(other)


def test_only_wide_layers_on_a_cpu_in_float32_are_prepared():
    weights = tiny.vgg_weights("c32")
    found = frozen_convolution.prepare(weights, "cpu")
    tiled = [name for name in found if "tiled" in found[name]]
    assert tiled == ["c12", "c21", "c22", "c31", "c32"]
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights)
    assert frozen_convolution.prepare(halved, "cpu") == halved
    assert frozen_convolution.prepare(weights, "gpu") is weights


def test_small_images_are_convolved_directly():
    weights = frozen_convolution.prepare(tiny.vgg_weights("c31"), "cpu")

    def convolutions(side):
        program = jax.make_jaxpr(lambda x: vgg19.apply(weights, x, ["c31"]))(
            jnp.zeros((1, side, side, 3))
        )
        return str(program).count("conv_general_dilated[")

    # at 8 pixels c12 alone is 8 wide, at 16 c21 and c22 as well, at 32 c31
    assert [convolutions(side) for side in (4, 8, 16, 32)] == [4, 3, 1, 0]


def test_max_pooling_hands_a_ties_gradient_to_the_first(rng):
    torch = pytest.importorskip("torch", reason="torch, an extra, is not installed")
    # three positive values in windows of four: a tie in each, which convolutions that
    # do nothing and ReLUs pass on; 5x7 leaves a row and a column out
    x = rng.integers(1, 4, (3, 5, 7, 3)).astype(np.float32)
    weight = rng.standard_normal((3, 2, 3, 3)).astype(np.float32)
    nothing = {
        "kernel": jnp.zeros((3, 3, 3, 3)).at[1, 1].set(jnp.eye(3)),
        "bias": jnp.zeros(3),
    }
    weights = {"c11": nothing, "c12": nothing}
    value, pull = jax.vjp(lambda x: vgg19.apply(weights, x, ("p1",))["p1"], x)
    theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    pooled = torch.max_pool2d(theirs, 2)
    pooled.backward(torch.tensor(weight.transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(value, pooled.detach().permute(0, 2, 3, 1))
    np.testing.assert_array_equal(pull(weight)[0], theirs.grad.permute(0, 2, 3, 1))
