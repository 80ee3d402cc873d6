"""One update of the autoencoder, or of its critic, of one member of a packed state."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from dpa_jax import adversarial, extensions, losses
from dpa_jax.packing import Packing, Vector
from dpa_jax.state import TrainState
from dpa_jax.step_spec import Frozen, StepSpec

# What both return: the member after the update, and scalars.
Updated = tuple[TrainState, dict[str, jax.Array]]


def autoencoder_step(
    spec: StepSpec,
    packing: Packing,
    member: TrainState,
    optimizer: optax.GradientTransformation,
    frozen: Frozen,
    x: jax.Array,
    real: Any,
    alpha: jax.Array,
    axis_name: str | None,
) -> Updated:
    """Takes a step of the optimizer on the autoencoder's mean loss.

    Args:
      spec: static.
      packing: of the state.
      member: one member of it.
      optimizer: of the stage.
      frozen: see `Frozen`.
      x: images as the stage sees them, `[B, R, R, C]`.
      real: their targets.
      alpha: of the stage.
      axis_name: of the devices to average gradients over; None for one.
    """

    def mean_loss(flat, x, real):
        z, y = _reconstruct(spec, packing.parameters, flat, x, alpha)
        value = losses.stage_per_image(
            spec.loss,
            frozen.backbone,
            frozen.statistics,
            real,
            x,
            y,
            z,
            alpha,
            spec.compute.backend,
        ).mean()
        if not spec.adversarial:
            return value, {"loss": value}
        critic = _critic(spec, packing.critic, member.critic, alpha)
        term = adversarial.generator_loss(critic, y)
        total = value + spec.adversarial * term
        return total, {"loss": total, "reconstruction_loss": value}

    slope = functools.partial(jax.grad(mean_loss, has_aux=True), member.parameters)
    gradient, scalars = _mean_over_parts(slope, spec.batch_parts, (x, real))
    before = member.parameters, member.optimizer
    (flat, after), scalars = _updated(
        packing, packing.parameters, optimizer, before, gradient, scalars, axis_name
    )
    return member.replace(parameters=flat, optimizer=after), scalars


def critic_step(
    spec: StepSpec,
    packing: Packing,
    member: TrainState,
    optimizer: optax.GradientTransformation,
    x: jax.Array,
    t: jax.Array,
    alpha: jax.Array,
    axis_name: str | None,
) -> Updated:
    """Takes a step on the critic's loss of images and their reconstructions.

    What it takes is what `autoencoder_step` takes, and `t`, `[B]`: where between an
    image and its reconstruction the slope is penalised.
    """
    assert packing.critic is not None
    _, y = _reconstruct(spec, packing.parameters, member.parameters, x, alpha)

    def loss(flat):
        rate = _critic(spec, packing.critic, flat, alpha)
        value, scalars = adversarial.critic_loss(rate, x, y, t)
        return value, {"critic_loss": value, **scalars}

    gradient, scalars = jax.grad(loss, has_aux=True)(member.critic)
    before = member.critic, member.critic_optimizer
    (flat, after), scalars = _updated(
        packing, packing.critic, optimizer, before, gradient, scalars, axis_name
    )
    return member.replace(critic=flat, critic_optimizer=after), scalars


def _reconstruct(spec: StepSpec, vector: Vector, flat, x: jax.Array, alpha):
    """Returns latents and reconstructions by parameters that lie in a vector.

    Our own networks compute with their parameters in the format of the computation, and
    have as many images as they are given: cast all at once, the kernels of a shape are
    cut out of the vector by one launch, and biases may be of each image. Networks of
    the user's may do otherwise.
    """
    if extensions.is_extension(spec.architecture.kind):
        return spec.reconstruct(vector.unflatten(flat), x, alpha)
    dtype = spec.compute.dtype
    rows = vector.rows(flat, len(x), dtype) if vector.is_cudnns else None
    return spec.reconstruct(vector.unflatten(flat.astype(dtype)), x, alpha, rows)


def _critic(spec: StepSpec, vector, flat, alpha):
    """Returns what rates images; the critic is always our own network."""
    return spec.critic(vector.unflatten(flat.astype(spec.compute.dtype)), alpha)


def _updated(
    packing: Packing, vector: Vector, optimizer, before, gradient, scalars, axis_name
):
    """Returns parameters and the optimizer's state after an update, and the scalars.

    Gradient and scalars are averaged over the devices, as one vector: else each is
    copied apart.
    """
    if axis_name:
        one, unravel = ravel_pytree((scalars, gradient))
        scalars, gradient = unravel(jax.lax.pmean(one, axis_name))
    flat, state = before
    if packing.is_elementwise:
        updates, state = optimizer.update(gradient, state, flat)
    else:
        trees = vector.unflatten(gradient), state, vector.unflatten(flat)
        updates, state = optimizer.update(*trees)
        updates = vector.flatten(updates)
    return (optax.apply_updates(flat, updates), state), scalars


def _mean_over_parts(function, parts: int, batch):
    """Averages what a function makes of equal parts of a batch, one after the other."""
    if parts == 1:
        return function(*batch)
    split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)
    first = jax.tree.map(lambda a: a[0], split)
    nothing = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(function, *first)
    )

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(*part)), None

    total, _ = jax.lax.scan(add, nothing, split)
    return jax.tree.map(lambda a: a / parts, total)
