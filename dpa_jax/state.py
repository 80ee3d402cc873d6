"""Parameters by name, the part of them a stage trains, and the training state."""

import functools
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dpa_jax import adversarial, optim
from dpa_jax.models import Architecture, Encoder, networks
from dpa_jax.ops.compute import Compute
from dpa_jax.stages import Stage

# {"encoder": {"block_64": {...}, ...}, "decoder": {...}}, and "critic" if there is one
Parameters = Mapping[str, Mapping[str, Any]]


class TrainState(flax.struct.PyTreeNode):
    """What changes from step to step.

    Attributes:
      step: int32, within the stage.
      parameters: those of the stage's autoencoder alone, float32 or wider.
      optimizer: the optimizer's state, such as Adam's moments.
      critic: the stage's blocks of the critic; None if there is none.
      critic_optimizer: the state of its optimizer.

    In training every array but `step` has a leading axis of the members.
    """

    step: jax.Array
    parameters: Parameters
    optimizer: optax.OptState
    critic: Mapping[str, Any] | None = None
    critic_optimizer: optax.OptState | None = None


def _init_stage(
    key: jax.Array, architecture: Architecture, stage: Stage, critic: bool
) -> Parameters:
    encoder, decoder = networks(architecture, stage, Compute())
    encoder_key, decoder_key = jax.random.split(key)
    side = stage.resolution
    x = jax.ShapeDtypeStruct((1, side, side, architecture.image_channels), jnp.float32)
    z, _ = jax.eval_shape(encoder.init_with_output, encoder_key, x)
    # lazily: drawn without running the networks, each of whose operations would have
    # to be compiled
    drawn = {
        "encoder": encoder.lazy_init(encoder_key, x),
        "decoder": decoder.lazy_init(decoder_key, z),
    }
    if critic:
        network = Encoder(adversarial.critic_architecture(architecture), stage)
        drawn["critic"] = network.lazy_init(jax.random.fold_in(key, 2), x)
    return {part: variables["params"] for part, variables in drawn.items()}


def initialize(
    key: jax.Array,
    architecture: Architecture,
    plan: Iterable[Stage],
    critic: bool = False,
) -> Parameters:
    """Draws the initial value of every block that any stage uses.

    A block's value depends on `key` and its name alone: stages agree about it. Drawn
    on the CPU, so that a run begins with the same parameters on any accelerator.

    Args:
      key: of `jax.random`.
      architecture: of the networks.
      plan: the stages.
      critic: whether to draw a critic's too; the others do not depend on it.
    """
    parameters: Parameters = {}
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        # the highest transitions hold most blocks; not jitted, since to compile some
        # sixty random draws takes ten times as long as to make them
        for stage in reversed(tuple(plan)):
            names = block_names(architecture, stage, critic)
            if any(set(names[part]) - set(parameters.get(part, ())) for part in names):
                drawn = _init_stage(key, architecture, stage, critic)
                parameters = merge(parameters, drawn)
    return parameters


@functools.lru_cache(maxsize=256)  # networks are traced for it, for tenths of a second
def block_names(
    architecture: Architecture, stage: Stage, critic: bool = False
) -> Mapping[str, tuple[str, ...]]:
    """Returns the names of the blocks that a stage uses, by network."""
    shapes = jax.eval_shape(
        lambda key: _init_stage(key, architecture, stage, critic), jax.random.key(0)
    )
    names = {part: tuple(sorted(blocks)) for part, blocks in shapes.items()}
    return types.MappingProxyType(names)


def select(parameters: Parameters, names: Mapping[str, Iterable[str]]) -> Parameters:
    """Returns the blocks of `names`."""
    return {
        part: {name: parameters[part][name] for name in wanted}
        for part, wanted in names.items()
    }


def merge(parameters: Parameters, trained: Parameters) -> Parameters:
    """Returns all parameters, those in `trained` replaced."""
    return {
        part: {**parameters.get(part, {}), **trained.get(part, {})}
        for part in {**parameters, **trained}
    }


def count(parameters: Parameters) -> int:
    """Counts the numbers in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))


def begin(
    members: Sequence[Parameters],
    architecture: Architecture,
    stage: Stage,
    critic: bool = False,
    dtype: jnp.dtype = jnp.float32,
    optimizer: optim.Optimizer = optim.PUBLISHED,
) -> TrainState:
    """Returns a stage's first state: its blocks and a fresh optimizer over them.

    Args:
      members: all blocks of each autoencoder that is trained.
      architecture: of the networks.
      stage: to begin.
      critic: whether there is one.
      dtype: of the parameters in training.
      optimizer: of the stage.

    Returns:
      The state, members along the leading axis of all arrays but `step`.
    """
    names = block_names(architecture, stage, critic)
    active = jax.tree.map(
        lambda *leaves: jnp.stack([jnp.asarray(leaf, dtype) for leaf in leaves]),
        *(select(parameters, names) for parameters in members),
    )
    critics = active.pop("critic", None)
    init = jax.vmap(optimizer.transformation(0.0).init)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=active,
        optimizer=init(active),
        critic=critics,
        critic_optimizer=None if critics is None else init(critics),
    )


def member(state: TrainState, number: int) -> TrainState:
    """Returns one member's part of a state."""
    part = jax.tree.map(lambda leaf: leaf[number], state.replace(step=None))
    return part.replace(step=state.step)


def trained(state: TrainState) -> Parameters:
    """Returns the blocks of a state by network, as `merge` takes them."""
    if state.critic is None:
        return state.parameters
    return {**state.parameters, "critic": state.critic}


def optimizer_arrays(optimizer_state: optax.OptState) -> dict[str, jax.Array]:
    """Returns an optimizer's whole state as plain arrays, as a checkpoint holds it."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(optimizer_state)
    }


def with_optimizer_arrays(
    optimizer_state: optax.OptState, members: Sequence[Mapping[str, jax.Array]]
) -> optax.OptState:
    """Returns an optimizer's state with each member's `optimizer_arrays` in it."""

    def restored(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return jnp.stack([jnp.asarray(one[name], leaf.dtype) for one in members])

    members = [_renamed(one) for one in members]
    return jax.tree_util.tree_map_with_path(restored, optimizer_state)


def _renamed(arrays: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
    """Returns Adam's arrays by the names they have since version 0.2."""
    if set(arrays) != {"count", "mu", "nu"}:
        return arrays
    return {f"0.{name}": array for name, array in arrays.items()}
