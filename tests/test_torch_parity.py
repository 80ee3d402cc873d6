"""Parity with the networks and losses written in PyTorch, in float32.

Relative errors are max|ours - theirs| / max|theirs|. Where a ReLU, an L1 distance or a
max pooling is within rounding of its kink, gradients are right on either side of it,
and both versions may differ by more than rounding: the seeds are such that none is.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_factory as tiny

from dpa_jax import losses, models, state, step
from dpa_jax.ops.compute import Compute
from dpa_jax.stages import Stage

torch = pytest.importorskip("torch", reason="torch, an extra, is not installed")

from benchmarks.pytorch import losses as torch_losses  # noqa: E402
from benchmarks.pytorch import networks, steps  # noqa: E402

TOLERANCE = 1e-5
VGG = tiny.vgg_weights("c22", 8)
RNG = np.random.default_rng(4)
STATISTICS = {
    layer: {"mean": RNG.random(8, "f"), "std": 0.5 + RNG.random(8, "f")}
    for layer in ("r11", "r12", "p1", "c21", "r21", "r22")
}


@dataclasses.dataclass(frozen=True)
class Case:
    architecture: models.Architecture
    stage: Stage
    loss: losses.StageLoss
    alpha: float = 1.0


def architecture(kind, latent_resolution, channels, widths, latent_channels):
    resolution = (4 if latent_resolution == 1 else latent_resolution) * 2 ** (
        len(widths) - 1
    )
    return models.Architecture(
        kind,
        resolution,
        channels,
        latent_resolution,
        latent_channels,
        widths,
        (*widths[::-1],) if latent_resolution == 1 else (latent_channels, *widths[1:]),
    )


DEEP = architecture("residual18", 1, 1, (3, 4, 5), 6)
SHALLOW = architecture("residual9", 1, 3, (3, 4, 5), 6)
SPATIAL = architecture("residual18", 8, 3, (3, 5), 4)
SHALLOW_SPATIAL = architecture("residual9", 8, 1, (3, 4), 4)

CASES = {
    "two layers and l1 in a transition": Case(
        DEEP,
        Stage(16, True, 1),
        losses.StageLoss(
            losses.Loss((("r12", 1.0), ("r22", 0.5)), l1=0.1),
            losses.Loss((("r11", 1.0),), l1=0.1),
        ),
        alpha=0.5,
    ),
    "image weight in a transition": Case(
        SHALLOW,
        Stage(16, True, 1),
        losses.StageLoss(
            losses.Loss((("p1", 1.0),), image_weight=0.25),
            losses.Loss((("r11", 1.0),), image_weight=0.25),
        ),
        alpha=0.3,
    ),
    "convolution before its ReLU": Case(
        SPATIAL,
        Stage(16, False, 1),
        losses.StageLoss(losses.Loss((("c21", 1.0),))),
    ),
    "plain perceptual": Case(
        SHALLOW_SPATIAL,
        Stage(16, False, 1),
        losses.StageLoss(
            losses.Loss(
                (("r22", 2.0),), relative_perceptual=0, perceptual=0.7, normalize=False
            )
        ),
    ),
    "normalized, l1 and l2": Case(
        SHALLOW,
        Stage(8, False, 1),
        losses.StageLoss(
            losses.Loss(
                (("r22", 1.0),), relative_perceptual=0, perceptual=0.7, l1=0.5, l2=2.0
            )
        ),
    ),
}


def nchw(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def assert_near(ours, theirs, what):
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error < TOLERANCE, f"{what}: {error:.1e}"


def torch_loss(loss, x, y):
    """The terms of a loss, put together by their weights; `[B]`."""
    names = [name for name, _ in loss.layers]
    total = torch.zeros(len(x))
    for weight, relative in (
        (loss.relative_perceptual, True),
        (loss.perceptual, False),
    ):
        if weight:
            deepest = max(names, key=torch_losses.layers_up_to("p5").index)
            compared = torch_losses.Perceptual(
                torch_losses.VGG19(VGG, deepest),
                STATISTICS if relative or loss.normalize else None,
                dict(loss.layers),
                loss.image_weight,
                relative,
            )
            total = total + weight * compared(x, y)
    total = total + loss.l1 * torch_losses.l1(x, y)
    return total + loss.l2 * torch_losses.l2(x, y)


@pytest.fixture(scope="module", params=list(CASES))
def both(request):
    """Latents, reconstructions, losses and gradients of both versions."""
    case = CASES[request.param]
    parameters = tiny.parameters(case.architecture, case.stage)
    rng = np.random.default_rng(0)
    side, channels = case.stage.resolution, case.architecture.image_channels
    x = rng.uniform(-1, 1, (3, side, side, channels)).astype(np.float32)

    @jax.jit
    def ours(parameters, x, alpha):
        def mean_loss(parameters):
            z, y = models.reconstruct(
                parameters,
                x,
                alpha,
                architecture=case.architecture,
                stage=case.stage,
                compute=Compute(),
            )
            targets = losses.stage_targets(case.loss, VGG, x)
            each = losses.stage_per_image(
                case.loss, VGG, STATISTICS, targets, x, y, z, alpha
            )
            return each.mean(), (z, y, each)

        gradient, found = jax.grad(mean_loss, has_aux=True)(parameters)
        return *found, gradient

    model = networks.Autoencoder(parameters, side, case.stage.transition)
    real = nchw(x)
    latent = model["encoder"](real, case.alpha)
    fake = model["decoder"](latent, case.alpha)
    each = torch_loss(case.loss.full, real, fake)
    if case.loss.half is not None:
        small = [torch_losses.downsample(v, side // 2) for v in (real, fake)]
        each = networks.fade(torch_loss(case.loss.half, *small), each, case.alpha)
    each.mean().backward()
    gradient = networks.export(model, lambda p: p.grad)
    return ours(parameters, x, case.alpha), (
        nhwc(latent),
        nhwc(fake),
        each.detach().numpy(),
        gradient,
    )


def test_latents_and_reconstructions(both):
    (z, y, *_), (latent, fake, *_) = both
    assert_near(z, latent, "latent")
    assert_near(y, fake, "reconstruction")


def test_losses_of_every_image(both):
    np.testing.assert_allclose(both[0][2], both[1][2], rtol=TOLERANCE)


def test_gradients_of_every_parameter(both):
    ours, theirs = both[0][3], both[1][3]
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: assert_near(a, b, jax.tree_util.keystr(path)), ours, theirs
    )


def test_five_steps_of_adam():
    # images of twice the resolution; alpha moves from 1/5 to 1
    layers = {16: (("r12", 1.0), ("r21", 0.5)), 8: (("r11", 1.0),)}
    a = architecture("residual9", 1, 1, (3, 4, 5, 6), 4)
    stage = Stage(16, True, 5, start=7)
    spec = tiny.spec(
        stage,
        architecture=a,
        loss=losses.StageLoss(losses.Loss(layers[16]), losses.Loss(layers[8])),
    )
    parameters = tiny.parameters(a, stage)
    images = tiny.images(4, size=32)

    train_state = state.begin([parameters], a, stage)
    frozen = step.Frozen(
        VGG, jax.device_put(STATISTICS), jax.random.key(0), jnp.float32([1e-3])
    )
    take = jax.jit(functools.partial(step.train_step, spec))
    theirs = steps.published(
        steps.StageSpec(16, True, {r: dict(names) for r, names in layers.items()}),
        *(parameters, VGG, STATISTICS, 1e-3, "cpu"),
    )
    for number in range(5):
        train_state, scalars = take(train_state, frozen, images)
        real = nchw(images.astype(np.float32) / 127.5 - 1)
        expected = theirs(real, (number + 1) / 5)
        np.testing.assert_allclose(scalars["loss"], [expected], rtol=TOLERANCE)
