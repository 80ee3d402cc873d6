"""One training step of a stage, and a chunk of them as one program.

What bounds a step: at 64 pixels VGG19's arithmetic (three passes to r42: 0.88 TFLOP at
batch 128; two with cached targets), at 8 and 16 pixels the launching of some hundred
small kernels, which a chunk turns into one dispatch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.flatten_util import ravel_pytree

from dpa_jax import adversarial, losses, models, optim
from dpa_jax.backbones import base as backbones
from dpa_jax.images import augment, center_crop, downsample, from_tiles, mix, normalize
from dpa_jax.ops.compute import Compute
from dpa_jax.stages import Stage
from dpa_jax.state import TrainState


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What a step reads and never changes: arguments of the compiled program.

    Attributes:
      backbone: its weights up to the deepest layer in use, in the format of the
        computation.
      statistics: of the layers in use.
      key: of `jax.random`, for what is drawn at random in a step.
      learning_rate: float32 `[P]`, one for each member. An argument, so that runs of
        other rates share a compiled program.
    """

    backbone: backbones.Weights
    statistics: Mapping[str, Mapping[str, jax.Array]]
    key: jax.Array
    learning_rate: jax.Array


jax.tree_util.register_dataclass(Frozen)


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What is static in a step; hashable, one executable for each value.

    Attributes:
      stage: of growth.
      architecture: of the networks.
      loss: of the stage.
      optimizer: of the stage.
      compute: precision, and the backend that the program is arranged for.
      horizontal_flip: see `images.augment`.
      vertical_flip: likewise.
      adversarial: weight of the critic's term; 0 for no critic.
      discriminator_steps: of the critic before each of the autoencoder.
      members: autoencoders trained at once on the same batches, each with its own
        parameters and rate, along a leading axis.
      batch_parts: equal parts of a batch whose gradients are computed one after the
        other and averaged, so that a step fits into less memory.
      mapped_by: how members are computed, `vmap`, `scan` or `unrolled`; empty for what
        is usual on the backend, see `_over_members`.
    """

    stage: Stage
    architecture: models.Architecture
    loss: losses.StageLoss
    optimizer: optim.Optimizer = optim.Optimizer()
    compute: Compute = Compute()
    horizontal_flip: bool = False
    vertical_flip: bool = False
    adversarial: float = 0.0
    discriminator_steps: int = 2
    members: int = 1
    batch_parts: int = 1
    mapped_by: str = ""

    @classmethod
    def from_config(
        cls,
        config: ml_collections.ConfigDict,
        stage: Stage,
        compute: Compute,
        members: int = 1,
    ) -> "StepSpec":
        """Takes what it needs from a validated configuration."""
        return cls(
            stage=stage,
            architecture=models.Architecture.from_config(config),
            loss=losses.StageLoss.from_config(config, stage),
            optimizer=optim.Optimizer.from_config(config, stage.steps),
            horizontal_flip=config.data.horizontal_flip,
            vertical_flip=config.data.vertical_flip,
            compute=compute,
            adversarial=config.loss.adversarial,
            discriminator_steps=config.adversarial.discriminator_steps,
            members=members,
        )

    @property
    def batches(self) -> int:
        """How many batches a step takes: the critic's steps have one each."""
        return 1 + self.discriminator_steps if self.adversarial else 1

    def augments(self, stored_size: int) -> bool:
        """Returns whether an image looks different each time it is drawn."""
        return (
            self.horizontal_flip
            or self.vertical_flip
            or stored_size != self.architecture.resolution
        )


def prepare(
    spec: StepSpec, images: jax.Array, keys: jax.Array | None, alpha
) -> jax.Array:
    """Turns stored images into what the stage sees.

    Args:
      spec: static.
      images: uint8 `[B, S, S, C]`.
      keys: `[B]`, see `images.augment`; None takes the centre instead.
      alpha: of the stage.

    Returns:
      `[B, R, R, C]` in [-1, 1], float32 or wider.
    """
    size, stage = spec.architecture.resolution, spec.stage
    if keys is None or not spec.augments(images.shape[1]):
        images = center_crop(images, size)
    else:
        images = augment(
            keys,
            images,
            size=size,
            horizontal_flip=spec.horizontal_flip,
            vertical_flip=spec.vertical_flip,
        )
    x = normalize(images, spec.compute.wide)
    if stage.transition:
        return mix(x, stage.resolution, alpha)
    return downsample(x, stage.resolution)


def targets(spec: StepSpec, frozen: Frozen, x: jax.Array):
    """Computes the features of the images that a step compares with."""
    return losses.stage_targets(spec.loss, frozen.backbone, x, spec.compute.backend)


def train_step(
    spec: StepSpec,
    state: TrainState,
    frozen: Frozen,
    images: jax.Array,
    cached: Any = None,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one step of the optimizer on the mean loss of a batch.

    With a critic this first takes its own steps, each on a batch of its own (method,
    section 4).

    Args:
      spec: static.
      state: see `TrainState`; members along the leading axis of all but `step`.
      frozen: see `Frozen`.
      images: uint8 `[B, S, S, C]`, this device's part of the batch; with a critic
        `[1 + discriminator_steps, B, S, S, C]`, the last the autoencoder's.
      cached: what `targets` gives for the autoencoder's, if it was computed before.
      axis_name: of the devices to average gradients over.

    Returns:
      The next state, and scalars `[P]` each: `loss`, that of the autoencoder on the
      whole batch before the step, and those of a critic.
    """
    stage = spec.stage
    key = jax.random.fold_in(frozen.key, stage.start + state.step)
    alpha = jnp.asarray(stage.alpha(state.step), spec.compute.wide)
    *others, last = images if spec.adversarial else images[None]
    batch = len(last)
    place, devices = 0, 1
    if axis_name:
        place, devices = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)

    def see(images, row):
        # a key for each image of a step, wherever in the step and on which device
        number = (row * devices + place) * batch + jnp.arange(batch)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, number)
        return prepare(spec, images, keys, alpha), keys

    for_critic = [see(images, row) for row, images in enumerate(others, start=1)]
    x, _ = see(last, 0)
    real = targets(spec, frozen, x) if cached is None else cached

    def update(member, learning_rate):
        optimizer = spec.optimizer.transformation(learning_rate)
        scalars = {}
        for seen, keys in for_critic:
            t = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 3)))(
                keys
            )
            member, scalars = _critic_step(
                spec, member, optimizer, seen, t, alpha, axis_name
            )
        member, loss = _autoencoder_step(
            spec, member, optimizer, frozen, x, real, alpha, axis_name
        )
        return member, {**loss, **scalars}

    member = state.replace(step=None)  # shared by all members, so not mapped over
    update = _over_members(update, spec)
    member, scalars = update(member, frozen.learning_rate)
    return member.replace(step=state.step + 1), scalars


def _over_members(function, spec: StepSpec):
    """Maps a function over the leading axis of its arguments.

    By vmap, but for CPUs one member after the other: a convolution whose kernels differ
    from member to member becomes a grouped one, which XLA's CPU backend does two to
    four times slower than as many plain ones, and 20 to 90 times slower in a loop of
    the program (16 channels, 8 to 32 pixels, two cores, JAX 0.10.2).
    """
    usual = "unrolled" if spec.compute.backend == "cpu" else "vmap"
    by = spec.mapped_by or usual
    if spec.members > 1 and by == "vmap":
        return jax.vmap(function)
    if spec.members > 1 and by == "scan":
        return lambda *arguments: jax.lax.map(lambda one: function(*one), arguments)

    def unrolled(*arguments):
        results = [
            function(*jax.tree.map(lambda leaf, i=i: leaf[i], arguments))
            for i in range(spec.members)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    return unrolled


def _autoencoder_step(spec, member, optimizer, frozen, x, real, alpha, axis_name):
    """Updates the autoencoder once on the images `x`, whose targets are `real`."""

    def mean_loss(parameters, x, real):
        z, y = reconstruct(spec, parameters, x, alpha)
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
        term = adversarial.generator_loss(_critic(spec, member.critic, alpha), y)
        total = value + spec.adversarial * term
        return total, {"loss": total, "reconstruction_loss": value}

    slope = functools.partial(jax.grad(mean_loss, has_aux=True), member.parameters)
    gradient, scalars = _mean_over_parts(slope, spec.batch_parts, (x, real))
    if axis_name:
        scalars, gradient = _mean_over_devices((scalars, gradient), axis_name)
    updates, after = optimizer.update(gradient, member.optimizer, member.parameters)
    parameters = optax.apply_updates(member.parameters, updates)
    return member.replace(parameters=parameters, optimizer=after), scalars


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


def _critic_step(spec, member, optimizer, x, t, alpha, axis_name):
    """Updates the critic once on the images `x` and their reconstructions."""
    _, y = reconstruct(spec, member.parameters, x, alpha)

    def loss(critic):
        rate = _critic(spec, critic, alpha)
        value, scalars = adversarial.critic_loss(rate, x, y, t)
        return value, {"critic_loss": value, **scalars}

    gradient, scalars = jax.grad(loss, has_aux=True)(member.critic)
    if axis_name:
        scalars, gradient = _mean_over_devices((scalars, gradient), axis_name)
    updates, after = optimizer.update(gradient, member.critic_optimizer, member.critic)
    critic = optax.apply_updates(member.critic, updates)
    return member.replace(critic=critic, critic_optimizer=after), scalars


def reconstruct(
    spec: StepSpec, parameters, x: jax.Array, alpha
) -> tuple[jax.Array, jax.Array]:
    """Returns the latents and what the stage's autoencoder makes of images."""
    return models.reconstruct(
        parameters,
        x,
        alpha,
        architecture=spec.architecture,
        stage=spec.stage,
        compute=spec.compute,
    )


def _critic(spec, parameters, alpha):
    return functools.partial(
        adversarial.critique,
        parameters,
        alpha=alpha,
        architecture=adversarial.critic_architecture(spec.architecture),
        stage=spec.stage,
        compute=spec.compute,
    )


def gathering_step(
    spec: StepSpec, axis_name: str | None = None
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns a step that gathers its own batch: `(state, frozen, data, index)`.

    Its `data` are `{"images": uint8}`, N images as `images.tiles` reshapes them, and,
    with cached targets, `{"targets": features of each image, [N, ...]}`; its `index`
    int32 `[B]`, or with a critic `[1 + discriminator_steps, B]`.
    """
    channels = spec.architecture.image_channels

    def run(state, frozen, data, index):
        with spec.compute.matmul_precision():
            images = from_tiles(data["images"][index], channels)
            last = index[-1] if spec.adversarial else index
            cached = jax.tree.map(lambda values: values[last], data.get("targets"))
            return train_step(spec, state, frozen, images, cached, axis_name)

    return run


def chunk(
    spec: StepSpec, axis_name: str | None = None
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns several steps as one program: `(state, frozen, data, indices, valid)`.

    It takes `indices` `[K, ...]` of K steps, and leaves the state alone after the first
    `valid` of them, int32 from 0 to K: one executable serves chunks of any number of
    steps up to K. Scalars come back with a leading `[K]`.
    """
    step = gathering_step(spec, axis_name)

    def run(state, frozen, data, indices, valid):
        # parameters are carried as one vector: to update each of some 90 arrays, and to
        # choose it or the one before, is as many kernel launches (benchmarks/results)
        _, unravel = ravel_pytree((state.parameters, state.critic))

        def pack(state):
            flat, _ = ravel_pytree((state.parameters, state.critic))
            return flat, state.replace(parameters=None, critic=None)

        def unpack(flat, rest):
            parameters, critic = unravel(flat)
            return rest.replace(parameters=parameters, critic=critic)

        def body(carry, index):
            number, packed = carry
            after, scalars = step(unpack(*packed), frozen, data, index)
            choose = functools.partial(jnp.where, number < valid)
            return (number + 1, jax.tree.map(choose, pack(after), packed)), scalars

        (_, packed), scalars = jax.lax.scan(body, (jnp.int32(0), pack(state)), indices)
        return unpack(*packed), scalars

    return run
