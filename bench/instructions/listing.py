"""A kernel's machine code as `nvdisasm` lists it: instructions, branches, loops."""

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import triton

TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
LABEL = re.compile(r"^\s*(\.L_\w+):")
LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
TARGET = re.compile(r"`\((\.L_\w+)\)")
REGISTER = re.compile(r"\b(UR|UP|R|P)(\d+)(\.64)?")
LOADS = ("LDG", "ATOMG", "RED")
STORES = ("STG", "STS", "ST", "RED", "BAR", "BRA", "EXIT", "DEPBAR", "LDGDEPBAR", "MEMBAR")
"""They name no register to be written."""


@dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
        name: with its suffixes, as `LDG.E.128`.
        writes: registers and predicates.
        reads: registers and predicates, the guard included.
        guarded: it has a guard.
        target: place of the instruction that it branches to, if it does.
        left: groups of asynchronous copies that a wait leaves in flight.
    """

    name: str
    writes: frozenset[str]
    reads: frozenset[str]
    guarded: bool = False
    target: int | None = None
    left: int = 0

    @property
    def base(self) -> str:
        """Name without suffixes."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Listing:
    """One kernel.

    Attributes:
        code: its instructions in order.
        loops: first and last place of every innermost loop.
    """

    code: list[Instruction]
    loops: list[tuple[int, int]] = field(default_factory=list)

    def count(self, *starts: str, within: tuple[int, int] | None = None) -> int:
        """Instructions whose name begins with one of `starts` and a dot, or is it."""
        first, last = within or (0, len(self.code) - 1)
        code = self.code[first : last + 1]
        return sum(any((i.name + ".").startswith(s + ".") for s in starts) for i in code)

    def wide(self, start: str) -> int:
        """Instructions of a kind that move 128 bits."""
        return sum(i.base == start and ".128" in i.name for i in self.code)


def disassemble(binary: bytes) -> Listing:
    """The one kernel of a cubin.

    Raises:
        CalledProcessError: the disassembler does not know it.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        done = subprocess.run([TOOL, "-c", file.name], capture_output=True, text=True, check=True)
    return parse(done.stdout)


def parse(text: str) -> Listing:
    """Instructions and innermost loops of a listing."""
    labels: dict[str, int] = {}
    found: list[tuple[str, str, str]] = []
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(found)
        elif match := LINE.match(line):
            found.append((match[1] or "", match[2], match[3]))
    while found and found[-1][1] == "NOP":  # what fills the last line of the instruction cache
        found.pop()
    code = [_instruction(*line, labels) for line in found]
    spans = [(i.target, at) for at, i in enumerate(code) if i.target is not None and i.target < at]
    inner = [
        one for one in spans
        if not any(other != one and one[0] <= other[0] and other[1] <= one[1] for other in spans)
    ]  # fmt: skip
    return Listing(code, sorted(inner))


def _instruction(guard: str, name: str, operands: str, labels: dict[str, int]) -> Instruction:
    target = TARGET.search(operands)
    jumps = target is not None and name.startswith("BRA")
    parts = [] if jumps else operands.split(",")
    base = name.partition(".")[0]
    stores = base in STORES
    named = 0 if stores else 1
    if not stores and len(parts) > 1 and re.fullmatch(r"\s*!?U?P[\dT]+\s*", parts[0]):
        named = 2 if re.fullmatch(r"\s*(!?U?P[\dT]+|R\w+)\s*", parts[1]) else 1
    elif not stores and len(parts) > 1 and re.fullmatch(r"\s*U?P[\dT]+\s*", parts[1]):
        named = 2  # a sum and its carry
    writes = [r for part in parts[:named] for r in _registers(part, _width(name))]
    reads = [r for part in parts[named:] for r in _registers(part, 1)]
    left = 0
    if base == "DEPBAR":
        left = int(operands.split(",")[1], 16) if "," in operands else 0
    return Instruction(
        name, frozenset(writes), frozenset([*reads, *_registers(guard, 1)]), bool(guard),
        labels[target[1]] if jumps and target else None, left,
    )  # fmt: skip


def _registers(text: str, width: int) -> list[str]:
    return [
        f"{kind}{int(number) + i}"
        for kind, number, pair in REGISTER.findall(text)
        for i in range(2 if pair and width == 1 else width if kind in ("R", "UR") else 1)
    ]


def _width(name: str) -> int:
    """Registers that an instruction writes, from its suffixes."""
    if name.startswith(("HMMA", "LDSM")) or ".128" in name:
        return 4
    return 2 if ".64" in name or ".WIDE" in name or name.startswith("CS2R") else 1
