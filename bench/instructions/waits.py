"""How often a warp waits for memory, along a listing.

A warp issues in order: whatever reads a register that a load is still to fill waits, and all behind
it with it. So the round trips that one waits for in turn can be counted, from the registers alone.
Shared memory and arithmetic count nothing; an asynchronous copy is waited for where the listing
says so.
"""

from dataclasses import dataclass, field

from bench.instructions.listing import Instruction, Listing

PASSES = (8, 16)
"""A loop is followed so often: what is waited for per pass has settled between them."""
MOST_PATHS = 200_000
PRODUCTS = "HMMA"
TURN = "ACQBULK"
"""Waits until the launches in front have ended (`griddepcontrol.wait`)."""
TOO_EARLY = ("LDG", "LD", "LDGSTS", "STG", "ST", "ATOMG", "ATOM", "RED", "PREEXIT", "EXIT")
"""What must not come before it: global memory, letting the next launch start, and the end."""


@dataclass
class Warp:
    """What a warp is waiting for, in round trips since its start."""

    now: int = 0
    ready: dict[str, int] = field(default_factory=dict)
    open: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)

    def copy(self) -> "Warp":
        """The same warp, to follow another branch."""
        return Warp(self.now, dict(self.ready), list(self.open), list(self.groups))

    def step(self, one: Instruction) -> None:
        """Issue one instruction."""
        self.now = max([self.now, *(self.ready.get(r, 0) for r in one.reads)])
        if one.base == "LDGSTS":
            self.open.append(self.now + 1)
        elif one.base == "LDGDEPBAR":
            self.groups.append(max(self.open, default=0))
            self.open.clear()
        elif one.base == "DEPBAR":
            done = self.groups[: len(self.groups) - one.left]
            self.now = max([self.now, *done])
            self.groups = self.groups[len(done) :]
        late = self.now + 1 if one.base in ("LDG", "ATOMG") else 0
        for register in one.writes:
            self.ready[register] = late


def ahead_of_the_turn(listing: Listing) -> list[str] | None:
    """What a launch does too early, before its turn; None if it never waits for that."""
    names = [one.base for one in listing.code]
    if TURN not in names:
        return None
    return [name for name in names[: names.index(TURN)] if name in TOO_EARLY]


def per_pass(listing: Listing, loop: tuple[int, int]) -> float:
    """Round trips that one pass of a loop waits for, once it runs evenly."""
    warp, seen = Warp(), []
    for _ in range(PASSES[1]):
        for one in listing.code[loop[0] : loop[1] + 1]:
            warp.step(one)
        seen.append(warp.now)
    return (seen[-1] - seen[PASSES[0] - 1]) / (PASSES[1] - PASSES[0])


@dataclass(frozen=True)
class Way:
    """One way through a kernel, every loop passed once.

    Attributes:
        waits: round trips that a warp waits for in turn.
        instructions: issued.
        barriers: of the whole program.
    """

    waits: int
    instructions: int
    barriers: int


def shortest(listing: Listing, works: bool, through: str = PRODUCTS) -> Way | None:
    """The way with fewest waits, then instructions.

    Args:
        listing: kernel.
        works: of a program that stores a result, and does its work on the way; else of one that
            finds nothing to do.
        through: what that work is, where the kernel has any.
    """
    wanted = through if listing.count(through) else "STG"
    best: Way | None = None
    stack = [(0, Warp(), 0, 0, frozenset[str]())]
    seen: dict[tuple[int, frozenset[str]], tuple[int, int]] = {}
    for _ in range(MOST_PATHS):
        if not stack:
            break
        at, warp, issued, barriers, done = stack.pop()
        while at < len(listing.code):
            one = listing.code[at]
            warp.step(one)
            issued, at = issued + 1, at + 1
            barriers += one.base == "BAR"
            done |= {one.base} & {wanted, "STG"}
            if best and (warp.now, issued) >= (best.waits, best.instructions):
                break
            if done and not works:
                break
            if one.base == "EXIT":
                if len(done) == (len({wanted, "STG"}) if works else 0):
                    best = Way(warp.now, issued, barriers)
                if not one.guarded:
                    break
            elif one.target is not None and one.target >= at:
                if one.guarded:
                    stack.append((at, warp.copy(), issued, barriers, done))
                at = one.target
                known = seen.setdefault((at, done), (warp.now, issued))
                if known < (warp.now, issued):
                    break  # another way has come here sooner
                seen[at, done] = (warp.now, issued)
            elif one.target is not None and not one.guarded:
                break
    return best
