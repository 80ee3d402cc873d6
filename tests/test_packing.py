"""States with a vector for each network, in the order of each kind of device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_factory as tiny
from flax import linen as nn

from dpa_jax import optim, state, step
from dpa_jax.ops.compute import Compute
from dpa_jax.ops.convolution import Conv
from dpa_jax.packing import Packing, Vector
from dpa_jax.state import TrainState

TREE = {
    "a": {"bias": np.arange(3.0), "kernel": np.arange(3.0, 27).reshape(2, 2, 2, 3)},
    "b": {"bias": np.arange(27.0, 29)},
}
FIRST = np.arange(3, 27).reshape(2, 2, 2, 3).transpose(3, 0, 1, 2).ravel()


def vector(is_cudnns):
    return Vector(jax.eval_shape(lambda: TREE), is_cudnns)


@pytest.mark.parametrize(
    ("is_cudnns", "expected"),
    [(False, np.arange(29)), (True, [*FIRST, 0, 1, 2, 27, 28])],
)
def test_gpus_have_kernels_first_and_filters_outermost(is_cudnns, expected):
    found = vector(is_cudnns).flatten(TREE)
    np.testing.assert_array_equal(found, expected)
    for tree in (vector(is_cudnns).unflatten(found), vector(is_cudnns).restored(found)):
        jax.tree.map(np.testing.assert_array_equal, tree, TREE)


def test_rows_are_the_biases_of_each_image():
    gpu = vector(True)
    rows = gpu.rows(gpu.flatten(TREE), 4, jnp.dtype("float32"))
    assert rows["a"]["kernel"] is None
    np.testing.assert_array_equal(rows["a"]["bias"], [[0, 1, 2]] * 4)
    np.testing.assert_array_equal(rows["b"]["bias"], [[27, 28]] * 4)


def test_an_optimizers_vectors_have_the_order_of_the_parameters():
    members = jax.tree.map(lambda leaf: np.stack([leaf, 100 + leaf]), TREE)
    adam = jax.vmap(optim.PUBLISHED.transformation(0.1).init)(members)
    first = adam[0]._replace(mu=np.stack([np.arange(29.0), 100 + np.arange(29.0)]))
    begun = TrainState(jnp.int32(3), members, (first, *adam[1:]))
    packing = Packing.of(begun, "gpu", is_elementwise=True)
    packed = packing.pack(begun)
    np.testing.assert_array_equal(packed.optimizer[0].mu, packed.parameters)
    assert packed.parameters.shape == (2, 29)
    jax.tree.map(np.testing.assert_array_equal, packing.unpack(packed), begun)


def steps(backend, indices, **changes):
    """Two steps of a chunk of three, as a backend arranges them."""
    spec = tiny.spec(
        tiny.FIRST, loss=tiny.L2, compute=Compute(backend=backend), **changes
    )
    begun = tiny.begin(
        tiny.FIRST, critic=spec.adversarial > 0, optimizer=spec.optimizer
    )
    data = {"images": tiny.in_tiles()}
    return jax.jit(step.chunk(spec))(begun, tiny.frozen(), data, indices, 2)


@pytest.mark.parametrize("name, adversarial", [("adam", 0.5), ("adafactor", 0.0)])
def test_a_gpus_chunk_takes_the_steps_of_a_cpus(name, adversarial):
    indices = np.arange(24).reshape(3, 2, 4) % 20
    if not adversarial:
        indices = indices[:, 0]
    changes = {
        "optimizer": optim.Optimizer(name),
        "adversarial": adversarial,
        "discriminator_steps": 1,
    }
    (ours, scalars), (theirs, others) = (
        steps(backend, indices, **changes) for backend in ("gpu", "cpu")
    )
    np.testing.assert_allclose(scalars["loss"], others["loss"], rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        ours.replace(step=None),
        theirs.replace(step=None),
    )


def strips(architecture, stage, compute):
    """Networks that see the halves of an image as images of their own."""

    class Halves(nn.Module):
        @nn.compact
        def __call__(self, x, alpha=1.0):
            b, h, *rest = x.shape
            y = Conv(1, 3, compute=compute, name="conv_8")(
                x.reshape(2 * b, h // 2, *rest)
            )
            return y.reshape(x.shape)

    return Halves(), Halves()


def test_networks_of_ones_own_may_have_other_batches_on_a_gpu():
    architecture = dataclasses.replace(
        tiny.ARCHITECTURE, kind="test_packing:strips", latent_resolution=8
    )
    spec = tiny.spec(
        tiny.FIRST,
        loss=tiny.L2,
        architecture=architecture,
        compute=Compute(backend="gpu"),
    )
    parameters = state.initialize(jax.random.key(0), architecture, [tiny.FIRST])
    begun = state.begin([parameters], architecture, tiny.FIRST)
    data = {"images": tiny.in_tiles()}
    after, _ = jax.jit(step.gathering_step(spec))(
        begun, tiny.frozen(), data, np.arange(4)
    )
    bias = after.parameters["decoder"]["conv_8"]["bias"]
    assert (bias != begun.parameters["decoder"]["conv_8"]["bias"]).all()
