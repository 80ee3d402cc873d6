"""What an optimised program does, counted in its HLO: kernels, bytes, collectives.

XLA's own cost analysis has no version for programs that were compiled for a GPU that is
not at hand, and counts the body of a loop once. Here loops count as often as they turn.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

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

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")


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


def cost(text: str) -> Cost:
    """Counts what one run of a program costs on one device.

    Args:
      text: of an optimised module, as `jax.stages.Compiled.as_text` returns it.

    Raises:
      ValueError: it has no entry computation.
    """
    return _Module(text).cost


@dataclasses.dataclass(frozen=True)
class _Array:
    """The type of a value that is not a tuple.

    Attributes:
      bytes: it takes, its padding to whole tiles included.
      is_main: whether it lies in the device's main memory.
    """

    bytes: int
    is_main: bool


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    arrays: tuple[_Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str  # and what stands between the parentheses

    def attribute(self, name: str) -> str | None:
        """Returns the computation that an attribute names."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found and found[1]

    @property
    def bytes(self) -> int:
        """Those of all its arrays in main memory."""
        return sum(array.bytes for array in self.arrays if array.is_main)


@dataclasses.dataclass
class _Computation:
    instructions: dict[str, _Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""

    @functools.cached_property
    def users(self) -> Mapping[str, list[_Instruction]]:
        """The instructions that read each value."""
        found = collections.defaultdict(list)
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                found[operand].append(instruction)
        return found

    @functools.cached_property
    def parameters(self) -> Mapping[int, _Instruction]:
        """By number."""
        return {
            int(each.attributes.partition(")")[0]): each
            for each in self.instructions.values()
            if each.opcode == "parameter"
        }


class _Module:
    def __init__(self, text: str):
        self._computations: dict[str, _Computation] = {}
        self._costs: dict[str, Cost] = {}
        entry, current = None, _Computation()
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                current = self._computations[header[2]] = _Computation()
                entry = header[2] if header[1] else entry
            elif found := _INSTRUCTION.match(line):
                instruction = _instruction(found[2], found[3])
                current.instructions[found[2]] = instruction
                current.root = found[2] if found[1] else current.root
        if entry is None:
            raise ValueError("the text of a program has no entry computation")
        self.cost = self._of(entry)

    def _of(self, name: str) -> Cost:
        """Returns what a computation costs that runs instruction by instruction."""
        if name not in self._costs:
            computation = self._computations[name]
            total = Cost()
            for one in computation.instructions.values():
                total += self._one(one, computation)
            self._costs[name] = total
        return self._costs[name]

    def _one(self, one: _Instruction, computation: _Computation) -> Cost:
        if one.opcode in _FREE or one.opcode.endswith(("-done", "-update")):
            return Cost()
        if one.opcode == "while":
            return self._of(_named(one, "body")).times(self._turns(one))
        if one.opcode == "conditional":
            branches = [self._of(name) for name in _branches(one)]
            return max(branches, key=lambda cost: cost.kernels)
        if one.opcode == "call":
            return self._of(_named(one, "to_apply"))
        if one.opcode == "async-start":
            return self._of(_named(one, "calls"))
        target = re.search(r'custom_call_target="([^"]*)"', one.attributes)
        if target and target[1] in _FREE_TARGETS:
            return Cost()
        is_collective = one.opcode in _COLLECTIVES
        name = target[1] if target else re.sub(r"[.\d]+$", "", one.name)
        return Cost(
            kernels=1,
            convolutions=int(self._convolves(one)),
            bytes=self._traffic(one, computation),
            collectives={one.opcode: 1} if is_collective else {},
            collective_bytes=sum(array.bytes for array in one.arrays)
            if is_collective
            else 0,
            names={name: 1},
        )

    def _turns(self, loop: _Instruction) -> int:
        """Returns how often a loop turns; 1 where its text does not tell.

        Where XLA has not noted it, the condition of a `lax.scan` does: its counter,
        from 0, is below a constant.
        """
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if noted:
            return int(noted[1])
        condition = self._computations[_named(loop, "condition")]
        root = condition.instructions[condition.root]
        if root.opcode == "compare" and "direction=LT" in root.attributes:
            limit = condition.instructions[root.operands[1]]
            if limit.opcode == "constant":
                return int(limit.attributes.partition(")")[0])
        return 1

    def _convolves(self, one: _Instruction) -> bool:
        if one.opcode == "fusion":
            fused = self._computations[_named(one, "calls")].instructions
            return any(self._convolves(each) for each in fused.values())
        is_cudnn = 'custom_call_target="__cudnn$conv' in one.attributes
        return one.opcode == "convolution" or is_cudnn

    # --- bytes ---

    def _traffic(self, one: _Instruction, computation: _Computation) -> int:
        """Returns the bytes that a kernel reads and writes."""
        values = computation.instructions
        read = sum(
            self._read(one, number, values[operand])
            for number, operand in enumerate(one.operands)
        )
        return read + self._written(one, computation)

    def _read(self, one: _Instruction, number: int, operand: _Instruction) -> int:
        """Returns the bytes that an instruction reads of its operand `number`."""
        if not operand.bytes:
            return 0
        if one.opcode in _READS_PART and number == 0:
            return min(one.bytes, operand.bytes)
        if one.opcode in _WRITES_PART and number == 0:
            return 0
        if one.opcode == "fusion":
            fused = self._computations[_named(one, "calls")]
            return min(self._read_of(fused, fused.parameters[number]), operand.bytes)
        return operand.bytes

    def _read_of(self, computation: _Computation, value: _Instruction) -> int:
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

    def _written(self, one: _Instruction, computation: _Computation) -> int:
        """Returns the bytes that an instruction writes."""
        if one.opcode in _WRITES_PART:
            part = one.operands[_WRITES_PART[one.opcode]]
            return min(computation.instructions[part].bytes, one.bytes)
        if one.opcode != "fusion":
            return one.bytes
        fused = self._computations[_named(one, "calls")]
        roots = [fused.instructions[fused.root]]
        if roots[0].opcode == "tuple":
            roots = [fused.instructions[operand] for operand in roots[0].operands]
        return sum(
            min(self._written(_origin(root, fused), fused), array.bytes)
            for root, array in zip(roots, one.arrays, strict=True)
            if array.is_main
        )


def _origin(one: _Instruction, computation: _Computation) -> _Instruction:
    """Returns what a chain of bitcasts begins with."""
    while one.opcode == "bitcast":
        one = computation.instructions[one.operands[0]]
    return one


def _named(one: _Instruction, attribute: str) -> str:
    found = one.attribute(attribute)
    if found is None:
        raise ValueError(f"{one.opcode} {one.name} has no {attribute}")
    return found


def _branches(one: _Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
    if listed:
        return _NAME.findall(listed[1])
    return [_named(one, "true_computation"), _named(one, "false_computation")]


# --- text


def _instruction(name: str, text: str) -> _Instruction:
    """Reads `TYPE OPCODE(OPERANDS), ATTRIBUTES`."""
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    operands = rest[: _closing(f"({rest}") - 1]
    names = () if opcode == "constant" else tuple(_NAME.findall(operands))
    arrays = tuple(_arrays(kind))
    if opcode.endswith("-start") and opcode != "async-start":
        # its type holds what it reads and a context as well as what it writes
        opcode = opcode.removesuffix("-start")
        if opcode == "copy":
            arrays = arrays[:1]
        elif opcode != "all-reduce":
            arrays = arrays[len(names) :]
    return _Instruction(name, arrays, opcode, names, rest)


def _closing(text: str) -> int:
    """Returns where the parenthesis closes that text begins with."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return place
    raise ValueError(f"a parenthesis is not closed: {text[:80]}")


def _arrays(text: str) -> Iterator[_Array]:
    """Reads the arrays of a type, such as `(bf16[8,16]{1,0:T(8,128)}, s32[])`."""
    for element, dimensions, layout in _ARRAY.findall(text):
        sizes = [int(size) for size in dimensions.split(",") if size]
        order, _, details = layout.partition(":")
        tile = re.search(r"T\(([\d,]+)\)", details)
        if tile:
            minor = [int(axis) for axis in order.split(",") if axis]
            steps = [int(step) for step in tile[1].split(",")]
            for axis, step in zip(minor, reversed(steps), strict=False):
                sizes[axis] = -(-sizes[axis] // step) * step
        space = re.search(r"S\((\d+)\)", details)
        yield _Array(
            bytes=math.ceil(math.prod(sizes) * _bits(element) / 8),
            is_main=space is None or space[1] == "0",
        )


def _bits(element: str) -> int:
    """Returns the bits of an element: of bf16 16, of pred 8, of token 0."""
    if element == "pred":
        return 8
    found = re.search(r"\d+", element)
    return int(found[0]) if found else 0
