"""Parameters by name, and Adam as published."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dpa_jax import optim, state
from dpa_jax.models import Architecture
from dpa_jax.stages import Stage

TINY = Architecture("residual9", 16, 1, 1, 4, (4, 4, 4), (4, 4, 4))
NAMES = {
    "8_stabilization": ({"from_image_8", "block_8"}, {"block_8", "to_image_8"}),
    "16_transition": (
        {"from_image_8", "from_image_16", "block_8", "block_16"},
        {"block_8", "block_16", "to_image_8", "to_image_16"},
    ),
    "16_stabilization": (
        {"from_image_16", "block_8", "block_16"},
        {"block_8", "block_16", "to_image_16"},
    ),
}
TREE = {
    "encoder": {"latent": {"conv": jnp.ones(3)}, "block_8": {"conv": jnp.zeros(2)}},
    "decoder": {"latent": {"conv": jnp.full(4, 2.0)}},
}


def test_a_stage_uses_its_blocks_alone():
    for stage in (Stage(8, False, 1), Stage(16, True, 1), Stage(16, False, 1)):
        found = state.block_names(TINY, stage)
        encoder, decoder = NAMES[stage.name]
        assert set(found["encoder"]) == encoder | {"latent"}
        assert set(found["decoder"]) == decoder | {"latent"}


def test_select_takes_blocks_by_name():
    found = state.select(TREE, {"encoder": ["block_8"], "decoder": []})
    assert found == {
        "encoder": {"block_8": TREE["encoder"]["block_8"]},
        "decoder": {},
    }


def test_merge_replaces_what_was_trained_and_keeps_the_rest():
    trained = {"encoder": {"block_8": {"conv": jnp.full(2, 7.0)}}, "decoder": {}}
    found = state.merge(TREE, trained)
    assert found["encoder"]["block_8"]["conv"].tolist() == [7, 7]
    assert found["encoder"]["latent"] is TREE["encoder"]["latent"]
    assert found["decoder"] == TREE["decoder"]
    assert TREE["encoder"]["block_8"]["conv"].tolist() == [0, 0]


def test_count_counts_numbers():
    assert state.count(TREE) == 3 + 2 + 4


def test_a_stage_begins_with_a_fresh_adam_over_copies():
    stage = Stage(8, False, 1)
    parameters = state.initialize(jax.random.key(0), TINY, [stage])
    begun = state.begin([parameters], TINY, stage)
    assert begun.step == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(begun.optimizer))
    jax.jit(lambda s: s, donate_argnums=0)(begun)  # a step eats the state,
    jax.tree.map(np.asarray, parameters)  # but the parameters outlive it


def test_adam_follows_its_equations(rng):
    # Kingma and Ba, 2015, algorithm 1, with 0.9, 0.999, 1e-8
    parameters = {"a": rng.standard_normal((2, 3)), "b": rng.standard_normal(4)}
    ours = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), parameters)
    adam = optim.PUBLISHED.transformation(0.01)
    moments = adam.init(ours)
    m, v = ({n: np.zeros_like(p) for n, p in parameters.items()} for _ in range(2))
    for t in range(1, 6):
        gradient = {n: rng.standard_normal(p.shape) for n, p in parameters.items()}
        for n, g in gradient.items():
            m[n] = 0.9 * m[n] + 0.1 * g
            v[n] = 0.999 * v[n] + 0.001 * g**2
            unbiased = m[n] / (1 - 0.9**t), v[n] / (1 - 0.999**t)
            parameters[n] -= 0.01 * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
        gradient = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradient)
        updates, moments = adam.update(gradient, moments)
        ours = optax.apply_updates(ours, updates)
    for n, expected in parameters.items():
        np.testing.assert_allclose(ours[n], expected, rtol=1e-4, atol=1e-6)
