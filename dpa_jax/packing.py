"""A training state with one vector for each network, as a compiled program carries it.

To update each of some 60 to 90 arrays by itself, and to choose it or the one before, is
as many kernel launches, which bound a step at low resolutions (benchmarks/results).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpa_jax.state import TrainState


@dataclasses.dataclass(frozen=True)
class Vector:
    """The order of a network's parameters in a vector of n numbers.

    As in their tree; but for GPUs kernels come first, and lie as `[f, k, k, c]`: so
    cuDNN reads and writes them, and in any other order each of them, and each of their
    gradients, is transposed by a launch of its own.

    Attributes:
      shapes: a tree of the parameters' shapes; of four axes are the kernels of
        convolutions, `[k, k, c, f]`.
      backend: see `Compute`.
    """

    shapes: Any
    backend: str

    def flatten(self, tree: Any) -> jax.Array:
        """Returns the numbers of such a tree, `[n]`, all of one dtype."""
        leaves = [self._outwards(leaf).ravel() for leaf in jax.tree.leaves(tree)]
        return jnp.concatenate([leaves[i] for i in self._places])

    def unflatten(self, vector: jax.Array) -> Any:
        """Returns the tree of the numbers `[n]`."""
        return self._tree(self._places, vector, self._inwards)

    def rows(self, vector: jax.Array, count: int, dtype: jnp.dtype) -> Any:
        """Returns each bias `[f]` as `count` equal rows, one for each image.

        Their gradients are those of each image: one launch sums them up for all biases,
        instead of one or two for each.

        Args:
          vector: `[n]`, of a GPU's order.
          count: of images.
          dtype: of the rows.

        Returns:
          The tree with `[count, f]` in place of biases and None in place of kernels.
        """
        biases = [i for i in self._places if not _is_kernel(self._leaves[i])]
        size = sum(math.prod(self._leaves[i].shape) for i in biases)
        rows = jnp.broadcast_to(vector[len(vector) - size :], (count, size))
        return self._tree(biases, rows.astype(dtype), lambda part, _: part)

    @property
    def order(self) -> np.ndarray:
        """Where each number of the vector lies in that of a CPU, int32 `[n]`."""
        sizes = [math.prod(leaf.shape) for leaf in self._leaves]
        numbers = np.split(np.arange(sum(sizes), dtype=np.int32), np.cumsum(sizes)[:-1])
        leaves = [
            self._outwards(part.reshape(leaf.shape)).ravel()
            for part, leaf in zip(numbers, self._leaves, strict=True)
        ]
        return np.concatenate([leaves[i] for i in self._places])

    @property
    def _leaves(self) -> list[Any]:
        return jax.tree.leaves(self.shapes)

    @property
    def _places(self) -> list[int]:
        """The leaves of the tree in the order of the vector."""
        places = list(range(len(self._leaves)))
        if self.backend == "gpu":
            places.sort(key=lambda i: not _is_kernel(self._leaves[i]))
        return places

    def _tree(
        self,
        places: Sequence[int],
        vector: jax.Array,
        shaped: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    ) -> Any:
        """Returns the tree of what lies one after the other along the last axis."""
        leaves, structure = jax.tree.flatten(self.shapes)
        sizes = [math.prod(leaves[i].shape) for i in places]
        parts = jax.lax.split(vector, sizes, axis=vector.ndim - 1)
        found = {
            i: shaped(part, leaves[i].shape)
            for i, part in zip(places, parts, strict=True)
        }
        return structure.unflatten(found.get(i) for i in range(len(leaves)))

    def _outwards(self, array):
        if self.backend == "gpu" and _is_kernel(array):
            return array.transpose(3, 0, 1, 2)
        return array

    def _inwards(self, part, shape):
        if self.backend == "gpu" and len(shape) == 4:
            *rest, filters = shape
            return part.reshape(filters, *rest).transpose(1, 2, 3, 0)
        return part.reshape(shape)


def _is_kernel(array) -> bool:
    return len(array.shape) == 4


@dataclasses.dataclass(frozen=True)
class Packing:
    """How the state of a stage is packed: each network of each member as a vector.

    Attributes:
      parameters: the order of the autoencoder's.
      critic: the order of the critic's; None if there is none.
      is_elementwise: whether the optimizer works number by number: then its state holds
        vectors of the same order.
    """

    parameters: Vector
    critic: Vector | None
    is_elementwise: bool

    @classmethod
    def of(cls, state: TrainState, backend: str, is_elementwise: bool) -> "Packing":
        """Returns that of a state, whose arrays have a leading axis of the members."""

        def vector(tree):
            shapes = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree
            )
            return Vector(shapes, backend)

        critic = None if state.critic is None else vector(state.critic)
        return cls(vector(state.parameters), critic, is_elementwise)

    def pack(self, state: TrainState) -> TrainState:
        """Returns the state with vectors `[P, n]` in place of trees."""

        def packed(vector, tree, optimizer):
            flat = jax.vmap(vector.flatten)(tree)
            return flat, self._reordered(optimizer, vector.order)

        return self._replaced(state, packed)

    def unpack(self, state: TrainState) -> TrainState:
        """Returns the state that was packed."""

        def unpacked(vector, flat, optimizer):
            tree = jax.vmap(vector.unflatten)(flat)
            return tree, self._reordered(optimizer, np.argsort(vector.order))

        return self._replaced(state, unpacked)

    def _replaced(self, state, function):
        parameters, optimizer = function(
            self.parameters, state.parameters, state.optimizer
        )
        state = state.replace(parameters=parameters, optimizer=optimizer)
        if self.critic is None:
            return state
        critic, optimizer = function(self.critic, state.critic, state.critic_optimizer)
        return state.replace(critic=critic, critic_optimizer=optimizer)

    def _reordered(self, optimizer, order):
        """Returns the optimizer's state, its vectors `[P, n]` in another order."""
        if not self.is_elementwise or np.all(order == np.arange(len(order))):
            return optimizer
        return jax.tree.map(
            lambda leaf: leaf[:, order] if leaf.shape[1:] == order.shape else leaf,
            optimizer,
        )
