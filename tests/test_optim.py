"""Optimizers and schedules, each against its equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpa_jax import optim

GRADIENT = np.array([0.3, -2.0, 0.0, 1.0], np.float32)


def rates(steps, **options):
    """How far each step moves a parameter whose gradient is 1, by plain descent."""
    made = optim.Optimizer("sgd", steps, **options).transformation(0.5)
    x = jnp.zeros(1)
    state, found, velocity = made.init(x), [], 0.0
    for _ in range(steps):
        update, state = made.update(jnp.ones(1), state, x)
        velocity = 0.9 * velocity + 1
        found.append(float(-update[0]) / velocity)
    return np.array(found)


def test_a_constant_rate_is_reached_by_a_linear_warmup():
    found = rates(8, warmup_steps=4)
    np.testing.assert_allclose(found, 0.5 * np.minimum(np.arange(8) / 4, 1), rtol=1e-6)


def test_a_linear_schedule_ends_at_zero_with_the_stage():
    found = rates(10, schedule="linear", warmup_steps=2)
    expected = [0, 0.25, *(0.5 * (1 - np.arange(8) / 8))]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_cosine_schedule_is_half_a_period():
    found = rates(10, schedule="cosine")
    expected = 0.25 * (1 + np.cos(np.pi * np.arange(10) / 10))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def one_step(options, parameters=None):
    x = jnp.ones(4) if parameters is None else parameters
    made = options.transformation(0.1)
    update, _ = made.update(jnp.asarray(GRADIENT), made.init(x), x)
    return np.asarray(update)


def test_a_gradient_is_clipped_by_its_norm():
    found = one_step(optim.Optimizer("sgd", gradient_clip=1.0))
    expected = -0.1 * GRADIENT / np.linalg.norm(GRADIENT)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_decay_of_adamw_is_decoupled():
    # the first step of Adam is the gradient's sign
    found = one_step(optim.Optimizer("adamw", weight_decay=0.5))
    np.testing.assert_allclose(found, -0.1 * (np.sign(GRADIENT) + 0.5), rtol=1e-4)


def test_lion_steps_by_the_sign():
    found = one_step(optim.Optimizer("lion"))
    np.testing.assert_allclose(found, -0.1 * np.sign(GRADIENT), rtol=1e-6)


def test_adafactor_keeps_a_matrix_as_rows_and_columns():
    parameters = {"kernel": jnp.ones((256, 128))}
    state = optim.Optimizer("adafactor").transformation(0.1).init(parameters)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 256 * 128


def test_the_default_is_adam_as_published():
    made = optim.PUBLISHED.transformation(1e-3)
    published = optax.flatten(optax.adam(1e-3, b1=0.9, b2=0.999, eps=1e-8))
    x = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    states = made.init(x), published.init(x)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for scale in (1.0, 0.3):
        gradient = jax.tree.map(lambda leaf, s=scale: s * leaf, x)
        ours, first = made.update(gradient, states[0], x)
        theirs, second = published.update(gradient, states[1], x)
        states = first, second
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("name", optim.NAMES)
def test_state_does_not_depend_on_the_rate_and_may_be_traced(name):
    made = optim.Optimizer(name, 5, "cosine", 1, 1.0)
    x = {"a": jnp.ones((2, 3))}
    begun = made.transformation(0.0).init(x)

    @jax.jit
    def take(rate, state):
        return made.transformation(rate).update(x, state, x)[1]

    after = take(0.1, begun)
    assert jax.tree.structure(after) == jax.tree.structure(begun)
