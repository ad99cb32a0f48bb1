"""Counts the kernels and bytes of a program that XLA compiled for a GPU, and models its time.

Both are read from the scheduled HLO: each instruction that computes or moves data is one kernel,
and reads and writes what its shapes say. A slice is read, and an update in place written, as large
as the slice, also within a fusion. Of a conditional the branch with most kernels counts. A call of
a library counts as one kernel, however many it launches, as for a singular value decomposition.

The time is a model and no measurement: a kernel takes the time of its launch or of its bytes,
whichever is longer, and kernels run one after another.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

LAUNCH_SECONDS = 2.0e-6  # of a kernel in a CUDA graph
BYTES_PER_SECOND = 3.0e12  # as a copy reaches on an H100, of 3.35e12

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}  # others end in it
_SHAPE = re.compile(r"\b([a-z]+[0-9a-z]*)\[([0-9,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(ROOT )?%?([\w.\-]+) = ((?:\((?:[^()]|\([^()]*\))*\)|\S+)) ([\w\-]+)\((.*)$"
)
_NO_KERNEL = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("add-dependency", "opt-barrier", "partition-id", "replica-id"),
}
_SLICES = {"dynamic-slice", "slice", "gather"}
_VIEWS = {"bitcast", "reshape", "copy", "transpose", "convert", "get-tuple-element"}


class Instruction(NamedTuple):
    """An instruction of HLO."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str  # what follows the operands
    is_root: bool


class Module(NamedTuple):
    """A program in HLO.

    Attributes:
      entry: the name of the computation that it begins with.
      computations: the instructions of each computation, in the order in which they run.
    """

    entry: str
    computations: dict[str, list[Instruction]]


class Cost(NamedTuple):
    """The kernels of a program or of a part of it, the bytes they move and the modelled time."""

    kernels: float = 0
    bytes: float = 0
    seconds: float = 0

    def plus(self, other: "Cost", times: float = 1) -> "Cost":
        """Returns the sum with `other`, repeated."""
        return Cost(*(a + times * b for a, b in zip(self, other, strict=True)))


class Loop(NamedTuple):
    """A loop, or the whole program, which is a loop of one trip.

    Attributes:
      name: its name in the HLO.
      trips: how often its body runs; None where only the device knows.
      trip: the cost of one trip, with the loops inside.
      loops: the loops inside.
    """

    name: str
    trips: int | None
    trip: Cost
    loops: tuple["Loop", ...]

    def nested(self, depth: int = 0) -> Iterator[tuple[int, "Loop"]]:
        """Yields the loops inside at any depth, each with its depth."""
        for loop in self.loops:
            yield depth, loop
            yield from loop.nested(depth + 1)


def count(hlo: str) -> Loop:
    """Counts the kernels and bytes of a program.

    A loop whose trips only the device knows counts with one trip.

    Args:
      hlo: the scheduled HLO, as `jax.stages.Compiled.as_text` returns it.
    """
    module = parse(hlo)
    return Loop("program", 1, *_cost(module.entry, module))


def parse(hlo: str) -> Module:
    """Parses the text of a module of HLO."""
    computations: dict[str, list[Instruction]] = {}
    entry = ""
    instructions: list[Instruction] = []
    for line in hlo.splitlines():
        if found := _COMPUTATION.match(line):
            instructions = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif found := _INSTRUCTION.match(line):
            operands, attributes = _split_operands(re.sub(r"/\*.*?\*/", "", found[5]))
            instructions.append(
                Instruction(found[2], found[3], found[4], operands, attributes, bool(found[1]))
            )
    return Module(entry, computations)


def _split_operands(text: str) -> tuple[tuple[str, ...], str]:
    """Returns the operands before the closing parenthesis, and what follows it."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return tuple(re.findall(r"%([\w.\-]+)", text[:i])), text[i + 1 :]
    return (), text


def _cost(name: str, module: Module) -> tuple[Cost, tuple[Loop, ...]]:
    """Returns the cost of a computation, loops inside included, and these loops."""
    body = module.computations[name]
    shapes = {instruction.name: instruction.shape for instruction in body}
    total, loops = Cost(), []
    for instruction in body:
        if instruction.opcode in _NO_KERNEL or instruction.opcode.endswith("-done"):
            continue
        if instruction.opcode == "while":
            loop, condition = _loop(instruction, module)
            loops.append(loop)
            total = total.plus(condition).plus(loop.trip, loop.trips or 1)
        elif instruction.opcode in ("conditional", "call"):
            cost, inside = max(_cost(branch, module) for branch in _called(instruction))
            loops += inside
            total = total.plus(cost)
        else:
            moved = _bytes_moved(instruction, shapes, module)
            total = total.plus(Cost(1, moved, max(LAUNCH_SECONDS, moved / BYTES_PER_SECOND)))
    return total, tuple(loops)


def _loop(instruction: Instruction, module: Module) -> tuple[Loop, Cost]:
    """Returns a loop, and the cost of its condition, which a known number of trips needs not."""
    trips = re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.attributes)
    body, condition = (_attribute(instruction, key) for key in ("body", "condition"))
    loop = Loop(instruction.name, int(trips[1]) if trips else None, *_cost(body, module))
    return loop, Cost() if trips else _cost(condition, module)[0]


def _called(instruction: Instruction) -> list[str]:
    """Returns the computations of which an instruction runs one."""
    if branches := re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes):
        return re.findall(r"%?([\w.\-]+)", branches[1])
    found = re.findall(
        r"(?:true_computation|false_computation|to_apply)=%?([\w.\-]+)", instruction.attributes
    )
    return list(found)


def _attribute(instruction: Instruction, key: str) -> str:
    found = re.search(rf"\b{key}=%?([\w.\-]+)", instruction.attributes)
    assert found is not None, f"{instruction.name} has no {key}"
    return found[1]


def _bytes_moved(instruction: Instruction, shapes: dict[str, str], module: Module) -> float:
    """Returns the bytes that an instruction reads and writes."""
    if instruction.opcode == "fusion":
        return _fusion_bytes(module.computations[_attribute(instruction, "calls")])
    if instruction.opcode in _SLICES:
        return 2 * size_of(instruction.shape)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * size_of(shapes[instruction.operands[1]])
    shape = instruction.shape
    if "gemm" in instruction.attributes or "matmul" in instruction.attributes:
        shape = re.sub(r"s8\[\d+\]", "", shape)  # cuBLAS's workspace
    return size_of(shape) + sum(size_of(shapes.get(name, "")) for name in instruction.operands)


def _fusion_bytes(body: Sequence[Instruction]) -> float:
    """Returns the bytes that a fusion reads of its parameters and writes of its results."""
    by_name = {instruction.name: instruction for instruction in body}
    users: dict[str, list[tuple[Instruction, int]]] = {name: [] for name in by_name}
    for instruction in body:
        for position, name in enumerate(instruction.operands):
            users.setdefault(name, []).append((instruction, position))

    def read(name: str) -> float:
        whole, total = size_of(by_name[name].shape), 0.0
        for user, position in users[name]:
            size = size_of(user.shape)
            if user.opcode in _SLICES and position == 0:
                total += size
            elif user.opcode in ("dynamic-update-slice", "scatter") and position == 0:
                continue  # in place
            elif user.opcode in _VIEWS and size > 0 and users[user.name]:
                total += read(user.name) * whole / size
            else:
                return whole
        return min(total, whole)

    def written(name: str) -> float:
        instruction = by_name[name]
        match instruction.opcode:
            case "tuple":
                return sum(map(written, instruction.operands))
            case "bitcast":
                return written(instruction.operands[0])
            case "dynamic-update-slice":
                return size_of(by_name[instruction.operands[1]].shape)
            case "scatter":
                return size_of(by_name[instruction.operands[-1]].shape)
        return size_of(instruction.shape)

    return sum(read(x.name) for x in body if x.opcode == "parameter") + sum(
        written(x.name) for x in body if x.is_root
    )


def size_of(shape: str) -> float:
    """Returns the bytes of a shape in HLO, such as `f32[64,256]{1,0}` or a tuple of them."""
    return sum(
        _bits(dtype) / 8 * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in _SHAPE.findall(shape)
    )


def _bits(dtype: str) -> int:
    """Returns the bits of a type of HLO: 4 of `s4`, 8 of `f8e4m3fn`."""
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 32
