"""What an optimised program does, counted in its HLO: kernels, bytes, collectives.

XLA's own cost analysis has no version for programs that were compiled for a GPU that is
not at hand, and counts the body of a loop once. Here loops count as often as they turn.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dpa_jax import errors
from dpa_jax.compiling import hlo

# what launches nothing: names for values that are there
_FREE = frozenset(
    (
        *("add-dependency", "after-all", "bitcast", "constant", "domain"),
        *("get-tuple-element", "opt-barrier", "parameter", "partition-id"),
        *("replica-id", "tuple"),
    )
)
_FREE_TARGETS = frozenset(("AllocateBuffer", "AssumeGatherIndicesInBound", "Sharding"))
_COLLECTIVES = (
    *("all-gather", "all-reduce", "all-to-all", "collective-broadcast"),
    *("collective-permute", "ragged-all-to-all", "reduce-scatter"),
)
_READS_PART = ("dynamic-slice", "gather", "slice")
# what writes a part of its first operand in place: which operand that part is
_WRITES_PART = {"dynamic-update-slice": 1, "scatter": 2}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What running something costs on one device.

    Attributes:
      kernels: that are launched; on TPU and CPU operations that run one by one.
      convolutions: how many of the kernels convolve.
      bytes: that kernels read from and write to the device's main memory; of operands
        that a kernel reads or writes a part of, that part.
      collectives: how many of each kind.
      collective_bytes: that they exchange: the sizes of their results.
      names: how many kernels of each name, as XLA names them after what they do.
    """

    kernels: float = 0
    convolutions: float = 0
    bytes: float = 0
    collectives: Mapping[str, float] = dataclasses.field(default_factory=dict)
    collective_bytes: float = 0
    names: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __add__(self, other: "Cost") -> "Cost":
        """Returns the cost of both, one after the other."""
        return Cost(
            self.kernels + other.kernels,
            self.convolutions + other.convolutions,
            self.bytes + other.bytes,
            _sum(self.collectives, other.collectives),
            self.collective_bytes + other.collective_bytes,
            _sum(self.names, other.names),
        )

    def times(self, factor: float) -> "Cost":
        """Returns the cost of so many times the same."""
        return Cost(
            self.kernels * factor,
            self.convolutions * factor,
            self.bytes * factor,
            {name: count * factor for name, count in self.collectives.items()},
            self.collective_bytes * factor,
            {name: count * factor for name, count in self.names.items()},
        )


def _sum(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}


def count(text: str) -> Cost:
    """Counts what one run of a program costs on one device.

    Args:
      text: of an optimised module, as `jax.stages.Compiled.as_text` returns it.

    Raises:
      ValueError: it has no entry computation.
    """
    entry, computations = hlo.read(text)
    return _Counter(computations).of(entry)


def operations(function: Callable[..., Any], *arguments: Any) -> float:
    """Counts the floating point operations of a function as it is traced.

    By XLA for the CPU, whatever device computes: for others JAX has no such analysis,
    and what a device's own compiler makes of the function does not matter.

    Args:
      function: of arrays.
      arguments: arrays or their shapes.

    Raises:
      DpaError: JAX was told to do without the CPU.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise errors.DpaError(
            "operations are counted by XLA for the CPU, which JAX_PLATFORMS leaves "
            "out: add ,cpu to it"
        ) from None
    with jax.default_device(cpu):
        found = jax.jit(function).lower(*arguments).cost_analysis()
    assert found is not None  # CPUs have it
    return found["flops"]


class _Counter:
    def __init__(self, computations: Mapping[str, hlo.Computation]):
        self._computations = computations
        self._costs: dict[str, Cost] = {}

    def of(self, name: str) -> Cost:
        """Returns what a computation costs that runs instruction by instruction."""
        if name not in self._costs:
            computation = self._computations[name]
            total = Cost()
            for one in computation.instructions.values():
                total += self._one(one, computation)
            self._costs[name] = total
        return self._costs[name]

    def _one(self, one: hlo.Instruction, computation: hlo.Computation) -> Cost:
        if one.opcode in _FREE or one.opcode.endswith(("-done", "-update")):
            return Cost()
        if one.opcode == "while":
            return self.of(one.called("body")).times(self._turns(one))
        if one.opcode == "conditional":
            branches = [self.of(name) for name in one.branches]
            return max(branches, key=lambda cost: cost.kernels)
        if one.opcode == "call":
            return self.of(one.called("to_apply"))
        if one.opcode == "async-start":
            return self.of(one.called("calls"))
        if one.target in _FREE_TARGETS:
            return Cost()
        is_collective = one.opcode in _COLLECTIVES
        name = one.target or re.sub(r"[.\d]+$", "", one.name)
        return Cost(
            kernels=1,
            convolutions=int(self._convolves(one)),
            bytes=self._traffic(one, computation),
            collectives={one.opcode: 1} if is_collective else {},
            collective_bytes=one.size if is_collective else 0,
            names={name: 1},
        )

    def _turns(self, loop: hlo.Instruction) -> int:
        """Returns how often a loop turns; 1 where its text does not tell.

        Where XLA has not noted it, the condition of a `lax.scan` does: its counter,
        from 0, is below a constant.
        """
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if noted:
            return int(noted[1])
        condition = self._computations[loop.called("condition")]
        root = condition.instructions[condition.root]
        if root.opcode == "compare" and "direction=LT" in root.attributes:
            limit = condition.instructions[root.operands[1]]
            if limit.opcode == "constant":
                return int(limit.attributes.partition(")")[0])
        return 1

    def _convolves(self, one: hlo.Instruction) -> bool:
        if one.opcode == "fusion":
            fused = self._computations[one.called("calls")].instructions
            return any(self._convolves(each) for each in fused.values())
        is_cudnn = (one.target or "").startswith("__cudnn$conv")
        return one.opcode == "convolution" or is_cudnn

    # --- bytes ---

    def _traffic(self, one: hlo.Instruction, computation: hlo.Computation) -> int:
        """Returns the bytes that a kernel reads and writes."""
        values = computation.instructions
        read = sum(
            self._read(one, number, values[operand])
            for number, operand in enumerate(one.operands)
        )
        return read + self._written(one, computation)

    def _read(self, one: hlo.Instruction, number: int, operand: hlo.Instruction) -> int:
        """Returns the bytes that an instruction reads of its operand `number`."""
        if not operand.bytes:
            return 0
        if one.opcode in _READS_PART and number == 0:
            return min(one.size, operand.bytes)
        if one.opcode in _WRITES_PART and number == 0:
            return 0
        if one.opcode == "fusion":
            fused = self._computations[one.called("calls")]
            return min(self._read_of(fused, fused.parameters[number]), operand.bytes)
        return operand.bytes

    def _read_of(self, computation: hlo.Computation, value: hlo.Instruction) -> int:
        """Returns the bytes of a value that the users within a fusion read."""
        total = 0
        for user in computation.users[value.name]:
            if user.opcode == "bitcast":
                total += self._read_of(computation, user)
                continue
            if user.name == computation.root and user.opcode == "tuple":
                return value.bytes
            for number, operand in enumerate(user.operands):
                if operand == value.name:
                    total += self._read(user, number, value)
        return total

    def _written(self, one: hlo.Instruction, computation: hlo.Computation) -> int:
        """Returns the bytes that an instruction writes."""
        if one.opcode in _WRITES_PART:
            part = one.operands[_WRITES_PART[one.opcode]]
            return min(computation.instructions[part].size, one.bytes)
        if one.opcode != "fusion":
            return one.bytes
        fused = self._computations[one.called("calls")]
        roots = [fused.instructions[fused.root]]
        if roots[0].opcode == "tuple":
            roots = [fused.instructions[operand] for operand in roots[0].operands]
        return sum(
            min(self._written(fused.origin(root), fused), array.bytes)
            for root, array in zip(roots, one.arrays, strict=True)
            if array.is_main
        )
