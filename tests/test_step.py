"""One step and a chunk of steps: what they see, and that they agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_factory as tiny

from dpa_jax import step
from dpa_jax.images import augment
from dpa_jax.ops.compute import Compute
from dpa_jax.stages import Stage

# a transition with everything that a step can do: crops, flips, the smooth loss
SPEC = tiny.spec(tiny.GROWING, horizontal_flip=True, vertical_flip=True)
INDICES = np.arange(24).reshape(6, 4) % 20


@pytest.fixture(scope="module")
def data():
    return {"images": tiny.in_tiles(size=20)}


@pytest.fixture(scope="module")
def single():
    return jax.jit(step.gathering_step(SPEC))


@pytest.fixture(scope="module")
def looped(single, data):
    """The state after each step of the stage, and the losses."""
    states, losses = [tiny.begin(tiny.GROWING)], []
    for row in INDICES[:4]:
        after, scalars = single(states[-1], tiny.frozen(), data, row)
        states.append(after)
        losses.append(scalars["loss"][0])
    return states, losses


@pytest.fixture(scope="module")
def scanned(data):
    """The same by one program of six steps, of which four are taken."""
    chunk = jax.jit(step.chunk(SPEC))
    return chunk(tiny.begin(tiny.GROWING), tiny.frozen(), data, INDICES, 4)


def assert_close(ours, theirs, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        ours,
        theirs,
    )


def test_a_chunk_takes_the_steps_of_the_loop(looped, scanned):
    states, losses = looped
    after, scalars = scanned
    np.testing.assert_allclose(scalars["loss"][:4, 0], losses, rtol=1e-6)
    # Adam divides small gradients by their own size: rounding shows in the parameters
    assert_close(after.parameters, states[4].parameters, 1e-5)
    assert len(set(map(float, losses))) == 4


def test_steps_that_are_not_taken_leave_the_state_alone(looped, scanned):
    states, _ = looped
    after, scalars = scanned
    assert scalars["loss"].shape == (6, 1)
    assert after.step == 4
    np.testing.assert_allclose(
        after.optimizer[0].count, states[4].optimizer[0].count, rtol=0
    )


def test_every_parameter_of_the_stage_moves(looped):
    states, _ = looped
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), states[0].parameters, states[1].parameters
    )
    assert all(jax.tree.leaves(moved))


@pytest.fixture(scope="module")
def small(data):
    """Takes the first step of a stabilization at 8 pixels, some of it changed."""
    spec = tiny.spec(Stage(8, False, 5, 3), horizontal_flip=True)

    def take(dtype=jnp.float32, **changes):
        changed = dataclasses.replace(spec, **changes)
        arguments = tiny.begin(spec.stage), tiny.frozen(dtype), data, INDICES[0]
        return jax.jit(step.gathering_step(changed))(*arguments)

    return take, take()


def test_augmentation_changes_with_the_step_of_the_run(small):
    take, (_, expected) = small
    _, scalars = take(stage=Stage(8, False, 5, start=4))
    assert abs(scalars["loss"] - expected["loss"]) > 1e-5


def test_bfloat16_is_close_to_float32(small):
    take, (expected, scalars) = small
    found, half = take(jnp.bfloat16, compute=Compute("bfloat16"))
    assert 0 < abs(half["loss"] / scalars["loss"] - 1) < 0.01
    assert half["loss"].dtype == jnp.float32
    # every parameter stays float32 and moves by about the learning rate
    for ours, theirs in zip(
        jax.tree.leaves(found.parameters),
        jax.tree.leaves(expected.parameters),
        strict=True,
    ):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2.1 * tiny.RATE)


@pytest.mark.parametrize("adversarial", [0.0, 0.5])
def test_parts_of_a_batch_give_the_step_of_the_whole(data, adversarial):
    stage, loss = (tiny.FIRST, tiny.L2) if adversarial else (tiny.GROWN, tiny.LOSS)
    spec = tiny.spec(stage, loss=loss, adversarial=adversarial)
    begun = tiny.begin(stage, critic=adversarial > 0)
    index = INDICES[:3] if adversarial else INDICES[0]

    def take(**changes):
        changed = dataclasses.replace(spec, **changes)
        return jax.jit(step.gathering_step(changed))(begun, tiny.frozen(), data, index)

    (found, scalars), (expected, whole) = take(batch_parts=2), take()
    assert scalars.keys() == whole.keys()
    assert_close(scalars, whole, 1e-6)
    # the gradient, of which parameters would only show the sign after one step
    slope, other = found.optimizer[0].mu, expected.optimizer[0].mu
    limit = 1e-5 * max(float(abs(leaf).max()) for leaf in jax.tree.leaves(other))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=limit), slope, other
    )


# --- what a stage sees


def test_without_keys_the_centre_is_seen():
    x = tiny.images(3, size=20)
    spec = tiny.spec(Stage(8, False, 1), horizontal_flip=True)
    expected = x[:, 2:18, 2:18].reshape(3, 8, 2, 8, 2, 1).mean((2, 4)) / 127.5 - 1
    found = step.prepare(spec, x, None, 1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_with_keys_images_are_cropped_and_flipped():
    x = jnp.asarray(tiny.images(3, size=20))
    keys = jax.random.split(jax.random.key(0), 3)
    spec = tiny.spec(tiny.GROWN, horizontal_flip=True)
    cut = augment(keys, x, size=16, horizontal_flip=True, vertical_flip=False)
    expected = np.asarray(cut) / 127.5 - 1
    found = step.prepare(spec, x, keys, 1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_transition_sees_a_mixture():
    x = tiny.images(2)
    fine = x / 127.5 - 1
    coarse = fine.reshape(2, 8, 2, 8, 2, 1).mean((2, 4)).repeat(2, 1).repeat(2, 2)
    found = step.prepare(tiny.spec(tiny.GROWING), x, None, 0.25)
    np.testing.assert_allclose(found, 0.75 * coarse + 0.25 * fine, rtol=0, atol=1e-6)


def test_only_flips_and_crops_make_an_image_look_different():
    plain = tiny.spec(tiny.GROWN)
    assert not plain.augments(16)
    assert plain.augments(20)
    assert dataclasses.replace(plain, vertical_flip=True).augments(16)


def test_spec_of_a_config(tiny_config):
    tiny_config.data.horizontal_flip = True
    spec = step.StepSpec.from_config(tiny_config, tiny.GROWING, Compute("bfloat16"))
    assert (spec.horizontal_flip, spec.vertical_flip) == (True, False)
    assert spec.compute.dtype == jnp.bfloat16
    assert spec.loss.half.layers == (("r11", 1.0),)
    assert hash(spec) == hash(dataclasses.replace(spec))
