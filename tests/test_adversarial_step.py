"""Steps with a critic: who sees which batch, and what of it a run keeps."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run_factory
import tiny_factory as tiny

import dpa_jax
from dpa_jax import adversarial, losses, models, state, step
from dpa_jax.devices.platform import Platform
from dpa_jax.ops.compute import Compute
from dpa_jax.scoring import loading
from dpa_jax.storage import checkpoints
from dpa_jax.training import feeding

PLAIN = tiny.spec(tiny.FIRST, loss=tiny.L2)
SPEC = dataclasses.replace(PLAIN, adversarial=0.5)
INDEX = np.arange(12).reshape(3, 4)
CRITIC = adversarial.critic_architecture(tiny.ARCHITECTURE)


@pytest.fixture(scope="module")
def begun():
    drawn = state.initialize(
        jax.random.key(1), tiny.ARCHITECTURE, [tiny.FIRST], critic=True
    )
    return state.begin([drawn], tiny.ARCHITECTURE, tiny.FIRST, critic=True)


@pytest.fixture(scope="module")
def taken(begun):
    data = {"images": tiny.in_tiles()}
    return jax.jit(step.gathering_step(SPEC))(begun, tiny.frozen(), data, INDEX)


def test_a_step_is_two_of_the_critic_and_then_one_of_the_autoencoder(begun, taken):
    """The same from its parts, each batch seen by whom it is for."""
    frozen, stage, begun = tiny.frozen(), tiny.FIRST, state.member(begun, 0)
    key = jax.random.fold_in(frozen.key, stage.start)
    adam = optax.adam(tiny.RATE, b1=0.9, b2=0.999, eps=1e-8)

    def rate(critic, x):
        return adversarial.critique(
            critic, x, 1.0, architecture=CRITIC, stage=stage, compute=Compute()
        )

    def reconstruct(parameters, x):
        return models.reconstruct(
            parameters,
            x,
            1.0,
            architecture=tiny.ARCHITECTURE,
            stage=stage,
            compute=Compute(),
        )[1]

    halved = tiny.images().reshape(-1, 8, 2, 8, 2, 1).mean((2, 4), np.float32)
    images = halved / 127.5 - 1
    batches = [images[row] for row in INDEX]
    critic, moments = begun.critic, adam.init(begun.critic)

    @jax.jit
    def critic_step(critic, moments, x, t):
        def loss(critic):
            fake = reconstruct(begun.parameters, x)
            return adversarial.critic_loss(
                lambda image: rate(critic, image), x, fake, t
            )[0]

        updates, moments = adam.update(jax.grad(loss)(critic), moments)
        return optax.apply_updates(critic, updates), moments, loss(critic)

    for row in (1, 2):  # of keys: the autoencoder's batch has the first ones
        keys = [jax.random.fold_in(key, row * 4 + i) for i in range(4)]
        t = jnp.stack([jax.random.uniform(jax.random.fold_in(k, 3)) for k in keys])
        critic, moments, critic_loss = critic_step(critic, moments, batches[row - 1], t)

    @jax.jit
    def autoencoder_loss(parameters):
        x = batches[2]
        y = reconstruct(parameters, x)
        real = losses.stage_targets(SPEC.loss, frozen.backbone, x)
        value = losses.stage_per_image(
            SPEC.loss, frozen.backbone, frozen.statistics, real, x, y, None, 1.0
        ).mean()
        return value - 0.5 * rate(critic, y).mean(), value

    (loss, value), gradient = jax.value_and_grad(autoencoder_loss, has_aux=True)(
        begun.parameters
    )
    updates, _ = adam.update(gradient, adam.init(begun.parameters))
    parameters = optax.apply_updates(begun.parameters, updates)

    after, scalars = state.member(taken[0], 0), taken[1]
    np.testing.assert_allclose(scalars["critic_loss"], critic_loss, rtol=1e-5)
    np.testing.assert_allclose(scalars["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(scalars["reconstruction_loss"], value, rtol=1e-5)
    for ours, theirs in (
        (after.critic, critic),
        (after.parameters, parameters),
    ):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_without_a_weight_there_is_no_critic():
    plain = tiny.begin(tiny.FIRST)
    assert plain.critic is None and PLAIN.batches == 1


def test_a_critic_leaves_the_autoencoders_first_values_alone():
    plan = [tiny.GROWING, tiny.GROWN]
    alone = state.initialize(jax.random.key(1), tiny.ARCHITECTURE, plan)
    judged = state.initialize(jax.random.key(1), tiny.ARCHITECTURE, plan, critic=True)
    judged.pop("critic")
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(judged), strict=True):
        np.testing.assert_array_equal(a, b)


def test_batches_of_a_step_are_consecutive_and_fresh():
    order = feeding.Order(3, 20, 4, batches=3)
    rows = order.indices(2, 2, Platform.here())
    assert rows.shape == (1, 2, 3, 4)  # of one device
    flat = feeding.batch_indices(3, 20, 4, first=6, steps=6)
    np.testing.assert_array_equal(rows.reshape(6, 4), flat)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = run_factory.tiny_config()
    folder = tmp_path_factory.mktemp("data")
    config.data.train = run_factory.write_npz(folder / "train.npz")
    config.loss.relative_perceptual, config.loss.l1 = 0.0, 1.0
    config.loss.adversarial = 0.1
    config.optimizer.learning_rate = 2e-4
    config.log_every = 2
    config.steps_per_chunk = config.checkpoint_every = 1
    return config


@pytest.fixture(scope="module")
def grown(config, tmp_path_factory):
    return dpa_jax.train(config, tmp_path_factory.mktemp("run"), visible=False)


def test_a_growing_run_with_a_critic_stays_finite_and_says_how_it_does(grown):
    lines = (grown / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["stage"] for row in found][::2] == [
        "8_stabilization",
        "16_transition",
        "16_stabilization",
    ]
    names = ("loss", "reconstruction_loss", "critic_loss", "critic_gradient")
    assert all(np.isfinite(row[name]) for row in found for name in names)


def test_the_critic_grows_and_is_kept(grown):
    saved = run_factory.arrays(grown, 12)
    assert sorted(saved["parameters"]["critic"]) == [
        "block_16",
        "block_8",
        "from_image_16",
        "from_image_8",
        "latent",
    ]
    assert saved["critic_optimizer"]["0.count"] == 8  # two a step, four steps


def test_scores_know_nothing_of_the_critic(grown):
    images = run_factory.images(3)
    scorer = loading.load(grown)
    x = images[..., None].astype(np.float32) / 127.5 - 1
    expected = np.abs(x - scorer.reconstruct(images)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(scorer(images), expected, rtol=1e-5)


def test_a_run_with_a_critic_resumes_as_if_uninterrupted(config, grown, tmp_path):
    workdir = shutil.copytree(grown, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "12")
    assert checkpoints.latest(workdir) == 11  # within the last stage
    dpa_jax.train(config, workdir, visible=False)
    run_factory.assert_same_run(workdir, grown)
