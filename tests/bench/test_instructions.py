"""Counting in machine code: what a listing says, and how often a warp waits."""

import pytest

from bench.instructions.listing import parse
from bench.instructions.waits import per_pass, shortest


def listing_of(*lines: str) -> str:
    """A listing as `nvdisasm` prints it; labels stand as they are."""
    return "\n".join(
        line if line.startswith(".L") else f"        /*{16 * i:04x}*/    {line} ;"
        for i, line in enumerate(lines)
    )


CHAIN = listing_of(
    "LDG.E R4, desc[UR4][R2.64]", "@P0 EXIT", "LDG.E.128 R8, desc[UR4][R4.64]",
    "LDG.E R12, desc[UR4][R2.64]", "IADD3 R9, R9, R12, RZ", "BAR.SYNC.DEFER_BLOCKING 0x0",
    "STG.E desc[UR4][R2.64], R9", "EXIT", "NOP",
)  # fmt: skip


def test_a_listing_is_counted() -> None:
    found = parse(CHAIN)
    assert len(found.code) == 8, "what fills the last line is no instruction"
    assert found.count("LDG") == 3 and found.wide("LDG") == 1 and found.count("BAR") == 1
    assert found.count("LD") == 0 and found.loops == []


def test_loads_whose_address_is_loaded_are_waited_for_in_turn() -> None:
    """The second needs the first, the third neither; all are there when the sum is made."""
    way = shortest(parse(CHAIN), works=True)
    assert way is not None and (way.waits, way.instructions, way.barriers) == (2, 8, 1)
    idle = shortest(parse(CHAIN), works=False)
    assert idle is not None and (idle.waits, idle.instructions) == (0, 2)


def loop_of(*body: str) -> str:
    """A loop around some lines."""
    return listing_of("MOV R2, R1", ".L_x_0:", *body, "@P0 BRA `(.L_x_0)", "EXIT")


@pytest.mark.parametrize(
    ("body", "waits"),
    [
        (["LDG.E R4, desc[UR4][R2.64]", "FADD R6, R6, R4"], 1),
        (["LDG.E R4, desc[UR4][R2.64]", "LDG.E R5, desc[UR4][R2.64]", "FADD R6, R4, R5"], 1),
        (["LDG.E R4, desc[UR4][R2.64]", "LDG.E R6, desc[UR4][R4.64]", "FADD R8, R8, R6"], 2),
        (["FADD R6, R6, R4", "LDG.E R4, desc[UR4][R2.64]"], 1),
        (["FADD R6, R6, R5", "MOV R5, R4", "IADD3 R2, R2, 0x4, RZ"], 0),
        (["DEPBAR.LE SB0, 0x0", "LDGSTS.E.128 [R7], desc[UR4][R2.64]", "LDGDEPBAR"], 1),
        (["DEPBAR.LE SB0, 0x1", "LDGSTS.E.128 [R7], desc[UR4][R2.64]", "LDGDEPBAR"], 0.5),
    ],
)  # fmt: skip
def test_what_one_pass_of_a_loop_waits_for(body: list[str], waits: float) -> None:
    """Copies that are left in flight are waited for in a later pass, half as often if one is."""
    found = parse(loop_of(*body))
    assert len(found.loops) == 1
    assert per_pass(found, found.loops[0]) == waits


def test_only_innermost_loops_are_listed() -> None:
    lines = (
        ".L_x_0:", "MOV R2, R1", ".L_x_1:", "MOV R3, R1", "@P0 BRA `(.L_x_1)", "@P1 BRA `(.L_x_0)",
        "EXIT",
    )  # fmt: skip
    assert parse(listing_of(*lines)).loops == [(1, 2)]
