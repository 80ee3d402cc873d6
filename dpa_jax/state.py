"""Parameters by name, the part of them a stage trains, and the training state."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dpa_jax.models import Architecture, Decoder, Encoder
from dpa_jax.stages import Stage

# {"encoder": {"block_64": {...}, ...}, "decoder": {...}}
Parameters = Mapping[str, Mapping[str, Any]]


class TrainState(flax.struct.PyTreeNode):
    """What changes from step to step.

    Attributes:
      step: int32, within the stage.
      parameters: float32, those of the stage alone.
      optimizer: Adam's moments over them.
    """

    step: jax.Array
    parameters: Parameters
    optimizer: optax.OptState


def optimizer(learning_rate: float) -> optax.GradientTransformation:
    """Returns Adam as published: 0.9, 0.999, 1e-8, no schedule.

    Over one flat vector, since an update of each of the 60 to 90 tensors by itself is
    as many kernel launches, which bound the step at low resolutions.
    """
    return optax.flatten(optax.adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8))


def _init_stage(key: jax.Array, architecture: Architecture, stage: Stage) -> Parameters:
    encoder, decoder = Encoder(architecture, stage), Decoder(architecture, stage)
    encoder_key, decoder_key = jax.random.split(key)
    side, latent = stage.resolution, architecture.latent_resolution
    x = jax.ShapeDtypeStruct((1, side, side, architecture.image_channels), jnp.float32)
    z = jax.ShapeDtypeStruct(
        (1, latent, latent, architecture.latent_channels), jnp.float32
    )
    # lazily: drawn without running the networks, each of whose operations would have
    # to be compiled
    encoder_variables = encoder.lazy_init(encoder_key, x)
    decoder_variables = decoder.lazy_init(decoder_key, z)
    return {
        "encoder": encoder_variables["params"],
        "decoder": decoder_variables["params"],
    }


def initialize(
    key: jax.Array, architecture: Architecture, plan: Iterable[Stage]
) -> Parameters:
    """Draws the initial value of every block that any stage uses.

    A block's value depends on `key` and its name alone: stages agree about it. Drawn
    on the CPU, so that a run begins with the same parameters on any accelerator.
    """
    parameters: Parameters = {"encoder": {}, "decoder": {}}
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        # the highest transitions hold most blocks; not jitted, since to compile some
        # sixty random draws takes ten times as long as to make them
        for stage in reversed(tuple(plan)):
            names = block_names(architecture, stage)
            if any(set(names[part]) - set(parameters[part]) for part in names):
                drawn = _init_stage(key, architecture, stage)
                parameters = merge(parameters, drawn)
    return parameters


def block_names(architecture: Architecture, stage: Stage) -> dict[str, tuple[str, ...]]:
    """Returns the names of the blocks that a stage uses, of encoder and decoder."""
    shapes = jax.eval_shape(
        lambda key: _init_stage(key, architecture, stage), jax.random.key(0)
    )
    return {part: tuple(sorted(blocks)) for part, blocks in shapes.items()}


def select(parameters: Parameters, names: Mapping[str, Iterable[str]]) -> Parameters:
    """Returns the blocks of `names`."""
    return {
        part: {name: parameters[part][name] for name in wanted}
        for part, wanted in names.items()
    }


def merge(parameters: Parameters, trained: Parameters) -> Parameters:
    """Returns all parameters, those in `trained` replaced."""
    return {part: {**parameters[part], **trained[part]} for part in parameters}


def count(parameters: Parameters) -> int:
    """Counts the numbers in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))


def begin(
    parameters: Parameters,
    architecture: Architecture,
    stage: Stage,
    learning_rate: float,
) -> TrainState:
    """Returns a stage's first state: its blocks and a fresh Adam over them."""
    # copied, because the state is donated and `parameters` must outlive it
    active = jax.tree.map(
        jnp.copy, select(parameters, block_names(architecture, stage))
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=active,
        optimizer=optimizer(learning_rate).init(active),
    )
