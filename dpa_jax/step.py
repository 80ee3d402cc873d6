"""One training step of a stage, and a chunk of them as one program.

What bounds a step: at 64 pixels VGG19's arithmetic (three passes to r42: 0.88 TFLOP at
batch 128; two with cached targets), at 8 and 16 pixels the launching of some hundred
small kernels, which a chunk turns into one dispatch.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dpa_jax import losses, updates
from dpa_jax.images import augment, center_crop, downsample, from_tiles, mix, normalize
from dpa_jax.state import TrainState
from dpa_jax.step_spec import Frozen, StepSpec


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
    packing = spec.packing(state)
    packed = packing.pack(state)
    packed, scalars = _step(spec, packing, packed, frozen, images, cached, axis_name)
    return packing.unpack(packed), scalars


def _step(spec, packing, state, frozen, images, cached, axis_name):
    """Takes a `train_step` of a packed state."""
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
            member, scalars = updates.critic_step(
                spec, packing, member, optimizer, seen, t, alpha, axis_name
            )
        member, loss = updates.autoencoder_step(
            spec, packing, member, optimizer, frozen, x, real, alpha, axis_name
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


def gathering_step(
    spec: StepSpec, axis_name: str | None = None
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns a step that gathers its own batch: `(state, frozen, data, index)`.

    Its `data` are `{"images": uint8}`, N images as `images.tiles` reshapes them, and,
    with cached targets, `{"targets": features of each image, [N, ...]}`; its `index`
    int32 `[B]`, or with a critic `[1 + discriminator_steps, B]`.
    """

    def run(state, frozen, data, index):
        with spec.compute.matmul_precision():
            images, cached = _gathered(spec, data, index)
            return train_step(spec, state, frozen, images, cached, axis_name)

    return run


def _gathered(spec: StepSpec, data, index):
    images = from_tiles(data["images"][index], spec.architecture.image_channels)
    last = index[-1] if spec.adversarial else index
    return images, jax.tree.map(lambda values: values[last], data.get("targets"))


def chunk(
    spec: StepSpec, axis_name: str | None = None
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns several steps as one program: `(state, frozen, data, indices, valid)`.

    It takes `indices` `[K, ...]` of K steps, and leaves the state alone after the first
    `valid` of them, int32 from 0 to K: one executable serves chunks of any number of
    steps up to K. Scalars come back with a leading `[K]`.
    """

    def run(state, frozen, data, indices, valid):
        packing = spec.packing(state)

        def body(carry, index):
            number, packed = carry
            batch = _gathered(spec, data, index)
            after, scalars = _step(spec, packing, packed, frozen, *batch, axis_name)
            choose = functools.partial(jnp.where, number < valid)
            return (number + 1, jax.tree.map(choose, after, packed)), scalars

        with spec.compute.matmul_precision():
            begun = jnp.int32(0), packing.pack(state)
            (_, packed), scalars = jax.lax.scan(body, begun, indices)
            return packing.unpack(packed), scalars

    return run
