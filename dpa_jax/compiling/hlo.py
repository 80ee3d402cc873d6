"""The text of an optimised program: its computations and their instructions."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of a value that is not a tuple.

    Attributes:
      bytes: it takes, its padding to whole tiles included.
      is_main: whether it lies in the device's main memory.
    """

    bytes: int
    is_main: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    Attributes:
      name: of its value.
      arrays: its type; several of a tuple.
      opcode: such as `fusion`; of what starts and ends apart that of the whole.
      operands: names of the values that it reads.
      attributes: what stands after the opening parenthesis.
    """

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def called(self, attribute: str) -> str:
        """Returns the computation that an attribute names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        if found is None:
            raise ValueError(f"{self.opcode} {self.name} has no {attribute}")
        return found[1]

    @property
    def branches(self) -> list[str]:
        """The computations of a conditional."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if listed:
            return _NAME.findall(listed[1])
        return [self.called(f"{value}_computation") for value in ("true", "false")]

    @property
    def target(self) -> str | None:
        """What a custom call calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found and found[1]

    @property
    def size(self) -> int:
        """The bytes of all its arrays, wherever they lie."""
        return sum(array.bytes for array in self.arrays)

    @property
    def bytes(self) -> int:
        """Those of its arrays in main memory."""
        return sum(array.bytes for array in self.arrays if array.is_main)


@dataclasses.dataclass
class Computation:
    """Instructions in the order in which they run.

    Attributes:
      instructions: by name.
      root: the name of the one whose value it returns.
    """

    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""

    @functools.cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """The instructions that read each value."""
        found = collections.defaultdict(list)
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                found[operand].append(instruction)
        return found

    def origin(self, value: Instruction) -> Instruction:
        """Returns what a chain of bitcasts begins with."""
        while value.opcode == "bitcast":
            value = self.instructions[value.operands[0]]
        return value

    @functools.cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        """By number."""
        return {
            int(each.attributes.partition(")")[0]): each
            for each in self.instructions.values()
            if each.opcode == "parameter"
        }


def read(text: str) -> tuple[str, dict[str, Computation]]:
    """Reads a module.

    Args:
      text: as `jax.stages.Compiled.as_text` returns it.

    Returns:
      The name of the entry computation, and all computations by name.

    Raises:
      ValueError: there is no entry computation.
    """
    entry, current, found = None, Computation(), {}
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = found[header[2]] = Computation()
            entry = header[2] if header[1] else entry
        elif parts := _INSTRUCTION.match(line):
            current.instructions[parts[2]] = _instruction(parts[2], parts[3])
            current.root = parts[2] if parts[1] else current.root
    if entry is None:
        raise ValueError("the text of a program has no entry computation")
    return entry, found


def _instruction(name: str, text: str) -> Instruction:
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
    return Instruction(name, arrays, opcode, names, rest)


def _closing(text: str) -> int:
    """Returns where the parenthesis closes that text begins with."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return place
    raise ValueError(f"a parenthesis is not closed: {text[:80]}")


def _arrays(text: str) -> Iterator[Array]:
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
        yield Array(
            bytes=math.ceil(math.prod(sizes) * _bits(element) / 8),
            is_main=space is None or space[1] == "0",
        )


def _bits(element: str) -> int:
    """Returns the bits of an element: of bf16 16, of pred 8, of token 0."""
    if element == "pred":
        return 8
    found = re.search(r"\d+", element)
    return int(found[0]) if found else 0
