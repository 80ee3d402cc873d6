"""States with a vector for each network, in the order of each kind of device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_factory as tiny

from dpa_jax import losses, optim, step
from dpa_jax.ops.compute import Compute
from dpa_jax.packing import Packing, Vector
from dpa_jax.state import TrainState

TREE = {
    "a": {"bias": np.arange(3.0), "kernel": np.arange(3.0, 27).reshape(2, 2, 2, 3)},
    "b": {"bias": np.arange(27.0, 29)},
}
FIRST = np.arange(3, 27).reshape(2, 2, 2, 3).transpose(3, 0, 1, 2).ravel()


def vector(backend):
    return Vector(jax.eval_shape(lambda: TREE), backend)


@pytest.mark.parametrize(
    ("backend", "expected"),
    [("cpu", np.arange(29)), ("gpu", [*FIRST, 0, 1, 2, 27, 28])],
)
def test_gpus_have_kernels_first_and_filters_outermost(backend, expected):
    found = vector(backend).flatten(TREE)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(vector(backend).order, expected)
    jax.tree.map(np.testing.assert_array_equal, vector(backend).unflatten(found), TREE)


def test_rows_are_the_biases_of_each_image():
    gpu = vector("gpu")
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


@pytest.mark.parametrize("name", ["adam", "adafactor"])
def test_a_gpus_chunk_takes_the_steps_of_a_cpus(name):
    loss = losses.StageLoss(losses.Loss(relative_perceptual=0, l1=1.0))
    data, indices = {"images": tiny.in_tiles()}, np.arange(12).reshape(3, 4)

    def run(backend):
        spec = tiny.spec(
            tiny.GROWN,
            loss=loss,
            optimizer=optim.Optimizer(name),
            compute=Compute(backend=backend),
        )
        begun = tiny.begin(tiny.GROWN, optimizer=spec.optimizer)
        chunk = jax.jit(step.chunk(spec))
        return chunk(begun, tiny.frozen(), data, indices, 2)

    (ours, scalars), (theirs, others) = run("gpu"), run("cpu")
    np.testing.assert_allclose(scalars["loss"], others["loss"], rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        (ours.parameters, ours.optimizer),
        (theirs.parameters, theirs.optimizer),
    )
