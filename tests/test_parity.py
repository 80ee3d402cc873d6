"""Parity with arrays computed by the published code, stage by stage.

Relative error is max|ours - theirs| / max|theirs|: float32, highest precision.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpa_jax import config as config_lib
from dpa_jax import losses, models, stages, state, step, vgg
from dpa_jax.interop import reference_checkpoint

TOLERANCE = 1e-5
PLAN = {s.name: s for s in stages.schedule(config_lib.default_config())}


def relative_error(ours, theirs):
    theirs = np.asarray(theirs)
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def nhwc(images):
    return np.asarray(images).transpose(0, 2, 3, 1)


class Published:
    """One stage's arrays, in our layout and names."""

    def __init__(self, arrays, stage):
        self.arrays, self.stage = arrays, stage

    def __getitem__(self, name):
        return self.arrays[f"{self.stage.name}/{name}"]

    def parameters(self, kind):
        found = {"enc": {}, "dec": {}}
        prefix = f"{self.stage.name}/{kind}/"
        for key in self.arrays.files:
            if key.startswith(prefix) and "_alpha" not in key:
                part, name = key.removeprefix(prefix).split(".", 1)
                found[part][name] = self.arrays[key]
        return reference_checkpoint.convert_parameters(found["enc"], found["dec"])


@pytest.fixture(scope="module")
def arrays(shared):
    with np.load(shared / "fixtures" / "stages_nih_subset_pg.npz") as file:
        yield file


@pytest.fixture(scope="module", params=list(PLAN))
def published(request, arrays):
    return Published(arrays, PLAN[request.param])


@pytest.fixture(scope="module")
def computed(published, arrays, fixture_vgg, fixture_statistics):
    """Everything that our code makes of a stage's images and parameters."""
    stage, alpha = published.stage, jnp.float32(published["alpha"])
    spec = step.StepSpec.from_config(config_lib.default_config(), stage, "float32")

    @jax.jit
    def compute(parameters, images, weights, statistics):
        with step.exact(spec.precision):
            x = step.prepare(spec, images, None, alpha)
            real = losses.stage_targets(spec.loss, weights, x)

            def loss(parameters):
                z, y = models.reconstruct(
                    parameters,
                    x,
                    alpha,
                    architecture=spec.architecture,
                    stage=stage,
                    dtype=jnp.float32,
                )
                each = losses.stage_per_image(
                    spec.loss, weights, statistics, real, x, y, alpha
                )
                return each.mean(), (z, y, each)

            gradient, (z, y, each) = jax.grad(loss, has_aux=True)(parameters)
            return {"mixed": x, "latent": z, "reconstruction": y}, each, gradient

    return compute(
        published.parameters("param"),
        nhwc(arrays["images"]),
        fixture_vgg,
        fixture_statistics,
    )


def test_forward_of_every_stage(published, computed):
    for name, value in computed[0].items():
        assert relative_error(value, nhwc(published[name])) < TOLERANCE, name


def test_loss_of_every_image(published, computed):
    assert relative_error(computed[1], published["loss_per_image"]) < TOLERANCE


def test_gradients_of_every_parameter(published, computed):
    # The loss has kinks (ReLU, max pooling, |.|). From 32 pixels on some of the many
    # units lie within float32 rounding of one, and which side they fall on is chance:
    # computed in float64, the gradient at 32_transition is 1.6e-4 from the published
    # float32 one and 1e-5 from ours. Where no unit is that near, 1e-5 holds.
    limit = TOLERANCE if published.stage.resolution < 32 else 1e-3
    ours, theirs = computed[2], published.parameters("grad")
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(
        lambda a, b: (
            None
            if relative_error(a, b) < limit
            else pytest.fail(f"{relative_error(a, b):.1e} at shape {b.shape}")
        ),
        ours,
        theirs,
    )


def test_five_adam_steps(published, arrays, fixture_vgg, fixture_statistics):
    # a transition's alpha was held: a stage of endless steps that begins there
    alpha = float(published["alpha"])
    stage = dataclasses.replace(published.stage, steps=10**6)
    held = _HeldAlpha(stage.resolution, stage.transition, stage.steps, held=alpha)
    spec = dataclasses.replace(
        step.StepSpec.from_config(config_lib.default_config(), stage, "float32"),
        stage=held,
    )
    parameters = jax.device_put(published.parameters("param"))
    train_state = state.TrainState(
        step=jnp.int32(0),
        parameters=parameters,
        optimizer=state.optimizer(1e-3).init(parameters),
    )
    frozen = step.Frozen(
        vgg=fixture_vgg,
        statistics=fixture_statistics,
        key=jax.random.key(0),
        learning_rate=jnp.float32(1e-3),
    )
    take = jax.jit(step.single(spec))
    data = {"images": jnp.asarray(nhwc(arrays["images"]))}
    found = []
    for _ in range(5):
        train_state, scalars = take(train_state, frozen, data, jnp.arange(8))
        found.append(scalars["loss"])
    # Adam's first steps divide a gradient by its own size, so that one which is mere
    # rounding still moves its parameter by the learning rate: in float64 the published
    # losses are 5e-5 off at the second step and 3e-3 at the fifth.
    for ours, theirs, limit in zip(
        found,
        published["adam_losses"],
        (TOLERANCE, 1e-4, 5e-3, 5e-3, 5e-3),
        strict=True,
    ):
        assert abs(ours / theirs - 1) < limit


@dataclasses.dataclass(frozen=True)
class _HeldAlpha(stages.Stage):
    held: float = 1.0

    def alpha(self, step):
        return self.held


def test_vgg_features(shared, fixture_vgg):
    with np.load(shared / "fixtures" / "vgg19_features.npz") as expected:
        images = nhwc(expected["images"])
        relu_layers = [name for name in vgg.LAYERS if name[0] == "r"]
        with jax.default_matmul_precision("highest"):
            inputs = vgg.preprocess(jnp.asarray(images))
            found = jax.jit(vgg.features, static_argnums=2)(
                fixture_vgg, inputs, tuple(relu_layers)
            )
        assert relative_error(inputs, nhwc(expected["preprocessed"])) < TOLERANCE
        assert relative_error(found["r42"], nhwc(expected["r42"])) < TOLERANCE
        for layer in relu_layers:
            channel_mean = np.asarray(found[layer]).mean(axis=(0, 1, 2))
            spatial_mean = np.asarray(found[layer]).mean(axis=3)
            for value, name in (
                (channel_mean, f"{layer}_channel_mean"),
                (spatial_mean, f"{layer}_spatial_mean"),
            ):
                assert relative_error(value, expected[name]) < TOLERANCE, name
