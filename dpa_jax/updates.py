"""One update of the autoencoder, or of its critic, of one member of a packed state."""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from dpa_jax import adversarial, extensions, losses
from dpa_jax.packing import Vector
from dpa_jax.step_spec import StepSpec


def autoencoder_step(
    spec, packing, member, optimizer, frozen, x, real, alpha, axis_name
):
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

    Returns:
      The member after it, and its scalars.
    """

    def mean_loss(flat, x, real):
        parameters, per_image = _read(spec, packing.parameters, flat), None
        if spec.compute.backend == "gpu":
            per_image = packing.parameters.rows(flat, len(x), spec.compute.dtype)
        z, y = spec.reconstruct(parameters, x, alpha, per_image)
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
        critic = _read(spec, packing.critic, member.critic)
        term = adversarial.generator_loss(spec.critic(critic, alpha), y)
        total = value + spec.adversarial * term
        return total, {"loss": total, "reconstruction_loss": value}

    slope = functools.partial(jax.grad(mean_loss, has_aux=True), member.parameters)
    gradient, scalars = _mean_over_parts(slope, spec.batch_parts, (x, real))
    if axis_name:
        scalars, gradient = _mean_over_devices((scalars, gradient), axis_name)
    flat, after = _updated(
        spec,
        packing.parameters,
        optimizer,
        member.optimizer,
        member.parameters,
        gradient,
    )
    return member.replace(parameters=flat, optimizer=after), scalars


def critic_step(spec, packing, member, optimizer, x, t, alpha, axis_name):
    """Takes a step on the critic's loss of images and their reconstructions.

    Args:
      spec: see `autoencoder_step`; so are the others.
      packing: likewise.
      member: likewise.
      optimizer: likewise.
      x: likewise.
      t: where between an image and its reconstruction the slope is penalised, `[B]`.
      alpha: likewise.
      axis_name: likewise.

    Returns:
      The member after it, and its scalars.
    """
    parameters = _read(spec, packing.parameters, member.parameters)
    _, y = spec.reconstruct(parameters, x, alpha)

    def loss(flat):
        rate = spec.critic(_read(spec, packing.critic, flat), alpha)
        value, scalars = adversarial.critic_loss(rate, x, y, t)
        return value, {"critic_loss": value, **scalars}

    gradient, scalars = jax.grad(loss, has_aux=True)(member.critic)
    if axis_name:
        scalars, gradient = _mean_over_devices((scalars, gradient), axis_name)
    flat, after = _updated(
        spec,
        packing.critic,
        optimizer,
        member.critic_optimizer,
        member.critic,
        gradient,
    )
    return member.replace(critic=flat, critic_optimizer=after), scalars


def _read(spec: StepSpec, vector: Vector, flat: jax.Array):
    """Returns a network's parameters as it takes them.

    Our own networks compute with them in the format of the computation. To cast them
    all at once lets XLA cut the kernels out in one launch for each shape; networks of
    the user's may do otherwise.
    """
    if not extensions.is_extension(spec.architecture.kind):
        flat = flat.astype(spec.compute.dtype)
    return vector.unflatten(flat)


def _updated(spec: StepSpec, vector: Vector, optimizer, state, flat, gradient):
    """Returns parameters and the optimizer's state after an update, all as vectors."""
    if spec.optimizer.is_elementwise:
        updates, state = optimizer.update(gradient, state, flat)
    else:
        trees = vector.unflatten(gradient), state, vector.unflatten(flat)
        updates, state = optimizer.update(*trees)
        updates = vector.flatten(updates)
    return optax.apply_updates(flat, updates), state


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


def _mean_over_devices(values, axis_name: str):
    """Averages arrays over the devices, as one vector: else each is copied apart."""
    flat, unravel = ravel_pytree(values)
    return unravel(jax.lax.pmean(flat, axis_name))
