"""Parity with arrays computed by the published code, stage by stage.

Relative error is max|ours - theirs| / max|theirs|: float32, highest precision. What is
in data/ is there in every clone; see data/README.md.
"""

import dataclasses
import pathlib

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from dpa_jax import models, stages, state, step, validation
from dpa_jax.backbones import base, vgg19
from dpa_jax.config import default_config, updated
from dpa_jax.devices.platform import Platform
from dpa_jax.interop import reference_checkpoint
from dpa_jax.losses import stage_per_image
from dpa_jax.ops.compute import Compute
from dpa_jax.weights import statistics_files

TOLERANCE = 1e-5
DATA = pathlib.Path(__file__).parent / "data"
# each file of arrays with what its networks differ in from the published NIH run
FILES = {
    "stages_nih_subset_pg": {},
    "growing_residual18": {
        "model.encoder_channels": (4, 4, 6, 6, 8),
        "model.decoder_channels": (8, 6, 6, 4, 4),
        "model.latent_channels": 8,
    },
    "growing_residual9_rgb_spatial": {
        "data.resolution": 32,
        "data.channels": 3,
        "model.kind": "residual9",
        "model.encoder_channels": (6, 6, 6, 6),
        "model.decoder_channels": (6, 6, 6, 6),
        "model.latent_channels": 6,
        "model.latent_resolution": 4,
        "perceptual.layers": "8:r12 16:r22*1+r32*0.5 32:r32",
    },
}


def configured(file):
    config = updated(default_config(), FILES[file], file)
    return validation.validate(config)


CASES = [(f, s.name) for f in FILES for s in stages.schedule(configured(f))]


def relative_error(ours, theirs):
    theirs = np.asarray(theirs)
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def nhwc(images):
    return np.asarray(images).transpose(0, 2, 3, 1)


def drawn_vgg(deepest):
    """VGG19 of random numbers as the arrays were computed with, to a convolution.

    All come from one generator: layer by layer a kernel, output channels first as
    PyTorch has them, then its bias.
    """
    rng, channels, weights = np.random.default_rng(19), 3, {}
    for name in vgg19.CONVOLUTIONS[: vgg19.CONVOLUTIONS.index(deepest) + 1]:
        features = vgg19.LAYERS[name]
        gain = np.sqrt(2 / (channels * 3 * 3)).astype("f")
        kernel = gain * rng.standard_normal((features, channels, 3, 3), "f")
        bias = np.float32(0.01) * rng.standard_normal(features, "f")
        weights[name] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
        channels = features
    return weights


@dataclasses.dataclass(frozen=True)
class HeldAlpha(stages.Stage):
    """A stage in which alpha stays what it is."""

    held: float = 1.0

    def alpha(self, step):
        return self.held


class Published:
    """One stage's arrays, in our layout and names, and what a step of it is."""

    def __init__(self, folder, file, name):
        config = configured(file)
        (stage,) = [s for s in stages.schedule(config) if s.name == name]
        with np.load(folder / f"{file}.npz") as arrays:
            self.images = nhwc(arrays["images"])
            self._arrays = {
                key.removeprefix(f"{name}/"): arrays[key]
                for key in arrays.files
                if key.startswith(f"{name}/")
            }
        compute = Compute("float32", Platform.here().backend)
        spec = step.StepSpec.from_config(config, stage, compute)
        held = HeldAlpha(
            stage.resolution, stage.transition, stage.steps, held=float(self["alpha"])
        )
        self.spec = dataclasses.replace(spec, stage=held)

    def __getitem__(self, name):
        return self._arrays[name]

    def parameters(self, kind):
        found = {"enc": {}, "dec": {}}
        for key in self._arrays:
            if key.startswith(f"{kind}/") and "_alpha" not in key:
                part, name = key.removeprefix(f"{kind}/").split(".", 1)
                found[part][name] = self[key]
        return reference_checkpoint.convert_parameters(found["enc"], found["dec"])


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def published(request):
    file, name = request.param
    folder = DATA
    if not (DATA / f"{file}.npz").exists():
        folder = request.getfixturevalue("shared") / "fixtures"
    return Published(folder, file, name)


@pytest.fixture(scope="module")
def frozen():
    statistics = statistics_files.load(str(DATA / "vgg19_feature_stats.npz"))
    return jax.device_put(
        step.Frozen(
            backbone=drawn_vgg("c42"),
            statistics=statistics,
            key=jax.random.key(0),
            learning_rate=np.full(1, 1e-3, "f"),
        )
    )


@pytest.fixture(scope="module")
def computed(published, frozen):
    """All that our code makes of a stage's images and parameters, by five steps.

    The gradient is what Adam's first moment is a tenth of after the first.
    """
    spec = published.spec

    @jax.jit
    def take(train_state, frozen, images):
        parameters = state.member(train_state, 0).parameters
        with spec.compute.matmul_precision():
            after, scalars = step.train_step(spec, train_state, frozen, images)
            alpha = spec.stage.held
            x = step.prepare(spec, images, None, alpha)
            z, y = models.reconstruct(
                parameters,
                x,
                alpha,
                architecture=spec.architecture,
                stage=spec.stage,
                compute=spec.compute,
            )
            each = stage_per_image(
                spec.loss,
                frozen.backbone,
                frozen.statistics,
                step.targets(spec, frozen, x),
                x,
                y,
                z,
                alpha,
            )
        found = {"mixed": x, "latent": z, "reconstruction": y, "loss_per_image": each}
        return after, scalars["loss"][0], found

    parameters = published.parameters("param")
    train_state = state.begin([parameters], spec.architecture, spec.stage)
    train_state, loss, found = take(train_state, frozen, published.images)
    _, unflatten = jax.flatten_util.ravel_pytree(parameters)
    moment = state.optimizer_arrays(train_state.optimizer)["0.mu"][0]
    found["gradient"] = unflatten(moment / np.float32(1 - 0.9))
    found["adam_losses"] = [loss]
    for _ in range(4):
        train_state, loss, _ = take(train_state, frozen, published.images)
        found["adam_losses"].append(loss)
    return found


def test_forward_of_every_stage(published, computed):
    for name in ("mixed", "latent", "reconstruction"):
        assert relative_error(computed[name], nhwc(published[name])) < TOLERANCE, name


def test_loss_of_every_image(published, computed):
    error = relative_error(computed["loss_per_image"], published["loss_per_image"])
    assert error < TOLERANCE


def test_gradients_of_every_parameter(published, computed):
    # The loss has kinks (ReLU, max pooling, |.|). From 32 pixels on some of the many
    # units lie within float32 rounding of one, and which side they fall on is chance:
    # computed in float64, the gradient at 32_transition is 1.6e-4 from the published
    # float32 one and 1e-5 from ours. Where no unit is that near, 1e-5 holds.
    limit = TOLERANCE if published.spec.stage.resolution < 32 else 1e-3
    ours, theirs = computed["gradient"], published.parameters("grad")
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert relative_error(a, b) < limit, b.shape


def test_five_adam_steps(published, computed):
    # Adam's first steps divide a gradient by its own size, so that one which is mere
    # rounding still moves its parameter by the learning rate: in float64 the published
    # losses are 5e-5 off at the second step and 3e-3 at the fifth; ours may be as far
    # off to the other side, and by JAX 0.12 both are 1.02e-4 apart at the second.
    limits = (TOLERANCE, 2e-4, 5e-3, 5e-3, 5e-3)
    pairs = zip(computed["adam_losses"], published["adam_losses"], limits, strict=True)
    for ours, theirs, limit in pairs:
        assert abs(ours / theirs - 1) < limit


def test_vgg_features(shared, fixture_vgg):
    with np.load(shared / "fixtures" / "vgg19_features.npz") as expected:
        images = nhwc(expected["images"])
        relu_layers = [name for name in vgg19.LAYERS if name[0] == "r"]
        with jax.default_matmul_precision("highest"):
            inputs = base.imagenet_inputs(jnp.asarray(images))
            found = jax.jit(vgg19.apply, static_argnums=2)(
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
