"""The adversarial losses against PyTorch's in float64, at fixed interpolation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpa_jax import adversarial, models
from dpa_jax.ops.compute import Compute
from dpa_jax.stages import Stage

TOLERANCE = 1e-5
ARCHITECTURE = models.Architecture(
    "residual9", 16, 1, 1, 6, (3, 4, 5), decoder_channels=(5, 4, 3)
)
SPATIAL = models.Architecture(
    "residual18", 16, 3, 8, 4, (3, 5), decoder_channels=(4, 3)
)
# of run, stage, alpha
CASES = {
    "stabilization": (ARCHITECTURE, Stage(8, False, 1), 1.0),
    "transition": (ARCHITECTURE, Stage(16, True, 4), 0.25),
    "spatial latent": (SPATIAL, Stage(16, False, 1), 1.0),
}


def critic_parameters(architecture, stage, seed=1):
    """Of the critic's blocks, drawn by NumPy."""
    rng = np.random.default_rng(seed)
    side, channels = stage.resolution, architecture.image_channels
    shapes = jax.eval_shape(
        lambda: models.Encoder(architecture, stage).init(
            jax.random.key(0), jnp.zeros((1, side, side, channels))
        )["params"]
    )

    def draw(leaf):
        scale = 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, shapes)


@dataclasses.dataclass(frozen=True)
class Problem:
    parameters: dict
    real: np.ndarray
    fake: np.ndarray
    t: np.ndarray
    architecture: models.Architecture
    stage: Stage
    alpha: float

    def critique(self, parameters, precision="float32"):
        return functools.partial(
            adversarial.critique,
            parameters,
            alpha=self.alpha,
            architecture=self.architecture,
            stage=self.stage,
            compute=Compute(precision),
        )

    def critic_loss(self, precision="float32"):
        """The loss, its scalars, and its gradient by the critic's parameters."""

        @jax.jit
        def compute(parameters, *batch):
            return jax.value_and_grad(
                lambda p: adversarial.critic_loss(self.critique(p, precision), *batch),
                has_aux=True,
            )(parameters)

        arrays = (self.parameters, self.real, self.fake, self.t)
        (loss, scalars), gradient = compute(
            *jax.tree.map(lambda x: jnp.asarray(x, Compute(precision).wide), arrays)
        )
        return {"loss": loss, **scalars}, gradient


@pytest.fixture(params=list(CASES))
def problem(request):
    return make(request.param)


def make(case):
    run, stage, alpha = CASES[case]
    architecture = adversarial.critic_architecture(run)
    rng = np.random.default_rng(0)
    shape = (4, stage.resolution, stage.resolution, run.image_channels)
    return Problem(
        critic_parameters(architecture, stage),
        rng.uniform(-1, 1, shape).astype("f"),
        rng.uniform(-2, 2, shape).astype("f"),
        rng.uniform(0, 1, 4).astype("f"),
        *(architecture, stage, alpha),
    )


def torch_critic(problem):
    """The same critic in PyTorch, and a function that takes images to it."""
    torch = pytest.importorskip("torch", reason="torch, an extra, is not installed")
    from benchmarks.pytorch import networks

    critic = networks.Encoder(
        problem.parameters, problem.stage.resolution, problem.stage.transition
    ).double()

    def nchw(x):
        return torch.tensor(x.transpose(0, 3, 1, 2)).double()

    return torch, critic, nchw


def torch_critic_loss(problem):
    """As `Problem.critic_loss`, in float64."""
    torch, critic, nchw = torch_critic(problem)
    from benchmarks.pytorch import networks

    real, fake = nchw(problem.real), nchw(problem.fake)
    share = torch.tensor(problem.t).double().reshape(-1, 1, 1, 1)
    mixed = (fake + share * (real - fake)).requires_grad_()
    on_real, on_fake = critic(real, problem.alpha), critic(fake, problem.alpha)
    (slope,) = torch.autograd.grad(
        critic(mixed, problem.alpha).sum(), mixed, create_graph=True
    )
    length = slope.flatten(1).norm(dim=1)
    loss = on_fake.mean() - on_real.mean()
    loss = loss + 0.001 * (on_real.square().mean() + on_fake.square().mean())
    loss = loss + 10 * (length - 1).square().mean()
    loss.backward()
    scalars = {
        "loss": loss,
        "critic_real": on_real.mean(),
        "critic_fake": on_fake.mean(),
        "critic_gradient": length.mean(),
    }
    values = {name: value.item() for name, value in scalars.items()}
    return values, networks.export(critic, lambda p: p.grad)


def test_critic_loss_and_its_gradient(problem):
    theirs, expected = torch_critic_loss(problem)
    ours, gradient = problem.critic_loss()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=TOLERANCE, err_msg=name)
    # as one vector: a bias's gradient alone is a small difference of real and fake
    vectors = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (gradient, expected)
    ]
    assert np.linalg.norm(vectors[0] - vectors[1]) < (
        TOLERANCE * np.linalg.norm(vectors[1])
    )


def test_gradient_of_every_parameter_in_float64():
    problem = make("transition")
    _, expected = torch_critic_loss(problem)
    with jax.enable_x64(True):
        _, gradient = problem.critic_loss("float64")
    assert jax.tree.structure(gradient) == jax.tree.structure(expected)
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: np.testing.assert_allclose(
            a, b, rtol=1e-9, atol=1e-10 * np.abs(b).max(), err_msg=str(path)
        ),
        gradient,
        expected,
    )


def test_generator_loss_and_its_gradient(problem):
    _, critic, nchw = torch_critic(problem)

    def loss(fake):
        return adversarial.generator_loss(problem.critique(problem.parameters), fake)

    ours, gradient = jax.jit(jax.value_and_grad(loss))(problem.fake)
    fake = nchw(problem.fake).requires_grad_()
    theirs = -critic(fake, problem.alpha).mean()
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=TOLERANCE)
    expected = fake.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(
        gradient, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max()
    )


def test_no_gradient_flows_into_the_reconstructions_of_the_critics_loss():
    real, fake = np.random.default_rng(0).random((2, 3, 4, 4, 1), "f")
    gradient = jax.grad(
        lambda fake: adversarial.critic_loss(
            lambda x: (x**2).sum(axis=(1, 2, 3)), real, fake, np.full(3, 0.5, "f")
        )[0]
    )(fake)
    assert not np.any(gradient)


def test_gradient_is_finite_where_the_critic_is_flat():
    # of w * x at w = 0: loss 10, and the slope of the norm is taken to be 0
    x = np.ones((2, 4, 4, 1), "f")

    def loss(w):
        return adversarial.critic_loss(
            lambda x: w * x.sum(axis=(1, 2, 3)), x, x, np.full(2, 0.5, "f")
        )[0]

    assert loss(0.0) == 10
    assert jax.grad(loss)(0.0) == 0


def test_loss_of_a_linear_critic_by_hand():
    # D(x) = 0.5 * sum(x) over 16 pixels: slope sqrt(16) / 2 = 2; D(real) = 8, 0 and
    # D(fake) = -8, -8: -(4 + 8) + 0.001 * (32 + 64) + 10 * (2 - 1)^2
    real = np.stack([np.ones((4, 4, 1), "f"), np.zeros((4, 4, 1), "f")])
    fake = -np.ones((2, 4, 4, 1), "f")
    loss, scalars = adversarial.critic_loss(
        lambda x: 0.5 * x.sum(axis=(1, 2, 3)), real, fake, np.zeros(2, "f")
    )
    np.testing.assert_allclose(loss, -12 + 0.096 + 10, rtol=1e-6)
    assert scalars == {"critic_real": 4, "critic_fake": -8, "critic_gradient": 2}


@pytest.mark.parametrize(
    ("latent_resolution", "channels", "expected"),
    [
        (1, (32, 16, 8), (32, 16, 8)),
        (4, (32, 16, 8), (32, 16, 8)),
        (8, (32, 16), (32, 16, 16)),
        (16, (32,), (32, 32, 32)),
    ],
)
def test_critic_ends_at_4_pixels(latent_resolution, channels, expected):
    run = models.Architecture(
        *("residual9", 16, 3, latent_resolution, 6, channels, channels[::-1])
    )
    critic = adversarial.critic_architecture(run)
    assert critic.encoder_channels == expected
    assert (critic.kind, critic.base) == ("residual18", 4)
    assert (critic.resolution, critic.image_channels) == (16, 3)


def test_ratings_in_bfloat16_are_one_float32_for_each_image():
    problem = make("transition")
    shape = jax.eval_shape(
        problem.critique(problem.parameters, "bfloat16"), problem.real
    )
    assert shape == jax.ShapeDtypeStruct((4,), jnp.float32)
