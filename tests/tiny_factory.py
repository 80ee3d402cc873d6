"""Makes the parts of a training run so small that compiling is all they cost."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from dpa_jax import losses, models, optim, state, step
from dpa_jax.backbones import vgg19
from dpa_jax.images import tiles
from dpa_jax.stages import Stage

ARCHITECTURE = models.Architecture("residual9", 16, 1, 1, 4, (4, 4, 4), (4, 4, 4))
WIDTH = 8  # of all layers of VGG19, which makes running them cheap
STATISTICS = {
    layer: {
        "mean": np.full(WIDTH, 0.3, "f"),
        "std": np.linspace(0.5, 1, WIDTH, dtype="f"),
    }
    for layer in ("r11", "r21")
}
LOSS = losses.StageLoss(losses.Loss((("r21", 1.0),)))
SMOOTH_LOSS = losses.StageLoss(LOSS.full, losses.Loss((("r11", 1.0),)))
# what VGG19 does not matter for is compiled without it
L2 = losses.StageLoss(losses.Loss(relative_perceptual=0, l2=1.0))

# Adam divides a gradient by its own size, so that of one near zero the rounding alone
# moves a parameter by a share of the learning rate: a small one keeps that small
RATE = 1e-4

GROWING = Stage(16, True, 4, 3)
GROWN = Stage(16, False, 5, 7)
FIRST = Stage(8, False, 5, 7)  # of half the layers, for what does not depend on growth


def vgg_weights(deepest, width=None):
    """VGG19 to a convolution, all layers of `width` channels or of their own."""
    rng = np.random.default_rng(1)
    weights, channels = {}, 3
    for name in vgg19.CONVOLUTIONS[: vgg19.CONVOLUTIONS.index(deepest) + 1]:
        features = width or vgg19.LAYERS[name]
        kernel = rng.normal(0, np.sqrt(2 / (9 * channels)), (3, 3, channels, features))
        bias = rng.normal(0, 0.1, features)
        weights[name] = {
            "kernel": jnp.asarray(kernel, jnp.float32),
            "bias": jnp.asarray(bias, jnp.float32),
        }
        channels = features
    return weights


def spec(stage, **changes):
    """What one step of a stage computes."""
    loss = SMOOTH_LOSS if stage.transition else LOSS
    return step.StepSpec(
        **{
            "stage": stage,
            "architecture": ARCHITECTURE,
            "loss": loss,
            **changes,
        }
    )


def frozen(dtype=jnp.float32, rates=(RATE,)):
    """A narrow VGG19 to c21, statistics, the key of augmentation, learning rates."""
    weights = jax.tree.map(lambda w: w.astype(dtype), vgg_weights("c21", WIDTH))
    return step.Frozen(
        weights, jax.device_put(STATISTICS), jax.random.key(5), jnp.float32(rates)
    )


def parameters(architecture, *plan, critic=False, seed=2):
    """Those of all stages of a plan, drawn by NumPy, which compiles nothing."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(
        lambda: state.initialize(jax.random.key(0), architecture, plan, critic)
    )

    def draw(leaf):
        scale = 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, shapes)


def begin(stage, critic=False, members=1, optimizer=optim.PUBLISHED):
    """The first state of a stage."""
    each = [
        parameters(ARCHITECTURE, stage, critic=critic, seed=2 + i)
        for i in range(members)
    ]
    return state.begin(each, ARCHITECTURE, stage, critic, optimizer=optimizer)


def images(count=20, size=16):
    """Noise, which reconstructs badly: uint8 `[count, size, size, 1]`."""
    shape = (count, size, size, 1)
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


def in_tiles(count=20, size=16):
    """The same as a program takes them."""
    return jnp.asarray(tiles(images(count, size)))


@contextlib.contextmanager
def compilations():
    """Lists the programs that are compiled within the block."""
    found = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
