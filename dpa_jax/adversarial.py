"""The adversarial term: a Wasserstein critic with gradient penalty (method 4).

The critic is an encoder that ends in one number, and grows and fades in with the
stages. Its loss differentiates its own gradient, so that a critic passed to it must
be twice differentiable in JAX's reverse mode; the activations here are.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpa_jax.models import Architecture, Encoder
from dpa_jax.ops.compute import Compute
from dpa_jax.stages import Stage

PENALTY = 10.0  # of the gradient's norm, where it is not 1
DRIFT = 1e-3  # keeps the outputs, known up to a constant, near 0

Critique = Callable[[jax.Array], jax.Array]


def critic_architecture(architecture: Architecture) -> Architecture:
    """Returns the shape of the critic of a run's images; it has no decoder.

    A residual18 encoder to a single number, whatever the run's own latent: where that
    is spatial, the critic goes on to 4 pixels with the channels of the run's lowest
    resolution.
    """
    own = architecture.encoder_channels
    missing = int(math.log2(architecture.base // 4))
    return dataclasses.replace(
        architecture,
        kind="residual18",
        latent_resolution=1,
        latent_channels=1,
        encoder_channels=own + own[-1:] * missing,
        decoder_channels=(),
    )


def critique(
    parameters: Mapping[str, Any],
    x: jax.Array,
    alpha,
    *,
    architecture: Architecture,
    stage: Stage,
    compute: Compute,
) -> jax.Array:
    """Rates images: the higher, the more real.

    Args:
      parameters: the critic's blocks by name, with at least the stage's.
      x: float `[B, R, R, C]` in [-1, 1].
      alpha: see `models.Encoder`.
      architecture: of the critic; static.
      stage: static.
      compute: how.

    Returns:
      float32 `[B]`, of no bounds.
    """
    if compute.backend == "cuda":  # whose kernels have no second derivatives
        compute = dataclasses.replace(compute, backend="gpu")
    encoder = Encoder(architecture, stage, compute)
    z: Any = encoder.apply({"params": parameters}, x, alpha)
    return z.astype(compute.wide).reshape(len(x))


def critic_loss(
    critique: Critique, real: jax.Array, fake: jax.Array, t: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes what the critic D minimises.

    `-(E D(real) - E D(fake)) + 1e-3 (E D(real)^2 + E D(fake)^2)
    + 10 E (|grad D(mix)| - 1)^2`, with `mix = t real + (1 - t) fake`.

    Args:
      critique: maps float32 `[B, R, R, C]` to float32 `[B]`.
      real: float32 `[B, R, R, C]`.
      fake: likewise; no gradient flows into it.
      t: float32 `[B]`, uniform in [0, 1].

    Returns:
      The loss, and float32 scalars to watch: `critic_real` and `critic_fake`, the mean
      ratings, and `critic_gradient`, the mean norm of the gradient.
    """
    fake = jax.lax.stop_gradient(fake)
    t = t[:, None, None, None]
    mix = t * real + (1 - t) * fake
    rated_real, rated_fake = critique(real), critique(fake)
    slope = _norm(jax.grad(lambda x: critique(x).sum())(mix))
    distance = rated_real.mean() - rated_fake.mean()
    drift = (rated_real**2).mean() + (rated_fake**2).mean()
    loss = -distance + DRIFT * drift + PENALTY * ((slope - 1) ** 2).mean()
    return loss, {
        "critic_real": rated_real.mean(),
        "critic_fake": rated_fake.mean(),
        "critic_gradient": slope.mean(),
    }


def generator_loss(critique: Critique, fake: jax.Array) -> jax.Array:
    """Computes what the autoencoder minimises beside its own loss: `-E D(fake)`.

    Args:
      critique: maps float32 `[B, R, R, C]` to float32 `[B]`.
      fake: its reconstructions, float32 `[B, R, R, C]`.
    """
    return -critique(fake).mean()


def _norm(x: jax.Array) -> jax.Array:
    square = (x**2).sum(axis=range(1, x.ndim))  # [B]
    # the root's slope at 0 is infinite: there 0 is taken, and not an epsilon added
    flat = square == 0
    return jnp.where(flat, 0.0, jnp.sqrt(jnp.where(flat, 1.0, square)))
