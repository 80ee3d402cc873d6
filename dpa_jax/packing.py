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
      is_cudnns: whether the order is that for GPUs.
    """

    shapes: Any
    is_cudnns: bool

    def flatten(self, tree: Any) -> jax.Array:
        """Returns the numbers of such a tree, `[n]`, all of one dtype.

        By a gather, since transposes would be a launch for each kernel.
        """
        flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
        return flat[self.order] if self.is_cudnns else flat

    def unflatten(self, vector: jax.Array) -> Any:
        """Returns the tree of the numbers `[n]`; in a step this moves nothing."""
        return self._tree(vector, self._sequence, self._shaped)

    def restored(self, vector: jax.Array) -> Any:
        """Returns the same where the tree is kept: by a gather, see `flatten`."""
        if not self.is_cudnns:
            return self.unflatten(vector)
        plain = Vector(self.shapes, is_cudnns=False)
        return plain.unflatten(vector[np.argsort(self.order)])

    def rows(self, vector: jax.Array, count: int, dtype: jnp.dtype) -> Any:
        """Returns each bias `[f]` as `count` equal rows, one for each image.

        Their gradients are those of each image: one launch sums them up for all biases,
        instead of one or two for each.

        Args:
          vector: `[n]`, of the order for GPUs.
          count: of images.
          dtype: of the rows.

        Returns:
          The tree with `[count, f]` in place of biases and None in place of kernels.
        """
        leaves = self._leaves
        biases = [i for i in self._sequence if not _is_kernel(leaves[i])]
        size = sum(math.prod(leaves[i].shape) for i in biases)
        rows = jnp.broadcast_to(vector[len(vector) - size :], (count, size))
        return self._tree(rows.astype(dtype), biases, lambda part, _: part)

    @property
    def order(self) -> np.ndarray:
        """Where each number of the vector lies in a tree's arrays, int32 `[n]`."""
        sizes = [math.prod(leaf.shape) for leaf in self._leaves]
        numbers = np.split(np.arange(sum(sizes), dtype=np.int32), np.cumsum(sizes)[:-1])
        for i, leaf in enumerate(self._leaves):
            if self.is_cudnns and _is_kernel(leaf):
                kernel = numbers[i].reshape(leaf.shape)
                numbers[i] = kernel.transpose(3, 0, 1, 2).ravel()
        return np.concatenate([numbers[i] for i in self._sequence])

    @property
    def _leaves(self) -> list[Any]:
        return jax.tree.leaves(self.shapes)

    @property
    def _sequence(self) -> list[int]:
        """The tree's leaves, by number, as they follow each other in the vector."""
        leaves = self._leaves
        numbers = list(range(len(leaves)))
        if self.is_cudnns:
            numbers.sort(key=lambda i: not _is_kernel(leaves[i]))
        return numbers

    def _shaped(self, part, leaf):
        if self.is_cudnns and _is_kernel(leaf):
            *rest, filters = leaf.shape
            return part.reshape(filters, *rest).transpose(1, 2, 3, 0)
        return part.reshape(leaf.shape)

    def _tree(
        self,
        vector: jax.Array,
        sequence: Sequence[int],
        shaped: Callable[[jax.Array, Any], jax.Array],
    ) -> Any:
        """Returns the tree of the leaves that follow each other along the last axis."""
        leaves, structure = jax.tree.flatten(self.shapes)
        sizes = [math.prod(leaves[i].shape) for i in sequence]
        parts = jax.lax.split(vector, sizes, axis=vector.ndim - 1)
        found = {
            i: shaped(part, leaves[i]) for i, part in zip(sequence, parts, strict=True)
        }
        return structure.unflatten(found.get(i) for i in range(len(leaves)))


def _is_kernel(leaf: Any) -> bool:
    return len(leaf.shape) == 4


@dataclasses.dataclass(frozen=True)
class Packing:
    """How the state of a stage is packed: each network of each member as a vector.

    Attributes:
      parameters: the order of the autoencoder's.
      critic: the order of the critic's; None if there is none.
      is_elementwise: whether the optimizer works on vectors: then its state holds some
        of the same order.
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
            return Vector(shapes, backend in ("gpu", "cuda"))

        critic = None if state.critic is None else vector(state.critic)
        return cls(vector(state.parameters), critic, is_elementwise)

    def pack(self, state: TrainState) -> TrainState:
        """Returns the state with vectors `[P, n]` in place of trees."""

        def packed(vector, tree, optimizer):
            flat = jax.vmap(vector.flatten)(tree)
            return flat, self._reordered(optimizer, vector, vector.order)

        return self._replaced(state, packed)

    def unpack(self, state: TrainState) -> TrainState:
        """Returns the state that was packed."""

        def unpacked(vector, flat, optimizer):
            tree = jax.vmap(vector.restored)(flat)
            return tree, self._reordered(optimizer, vector, np.argsort(vector.order))

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

    def _reordered(self, optimizer, vector, order):
        """Returns the optimizer's state, its vectors `[P, n]` in another order."""
        if not (self.is_elementwise and vector.is_cudnns):
            return optimizer
        return jax.tree.map(
            lambda leaf: leaf[:, order] if leaf.shape[1:] == order.shape else leaf,
            optimizer,
        )
