"""`sparsekv watch`: which parts of the context a server reads, live.

One strip per request. Its cells are equal parts of the context, left the beginning, and show how
much of a part was read in the newest step, on average over the KV heads and the layers that select.
"""

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..serving.trace import SelectionRecord

SHADES = " ░▒▓█"
REFRESH_SECONDS = 0.1
DENSE = "full"
FORGET_SECONDS = 30.0
"""A request that has not decoded for so long leaves the picture."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "endpoint", nargs="+", help="the server's --sparsekv-trace; several for several ranks"
    )
    parser.add_argument("--rid", help="only this request")
    parser.add_argument("--layer", type=int, help="only this layer")
    parser.add_argument("--head", type=int, help="only this KV head of its rank")
    parser.add_argument("--json", action="store_true", help="one JSON object per record and line")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="write records for sparsekv report instead"
    )


def run(args: argparse.Namespace) -> int:
    """Follow until interrupted."""
    if args.record is not None:
        return _record(args)
    import asyncio

    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_follow(args))
    except (KeyboardInterrupt, BrokenPipeError):
        pass  # how a person, or `head`, says that it was enough
    return 0


def _record(args: argparse.Namespace) -> int:
    from ..report.recording import record
    from ..tooling.environment import environment

    def wanted(one: "SelectionRecord") -> bool:
        return args.rid in (None, one.rid) and args.layer in (None, one.layer)

    if args.head is not None:
        raise ValueError("head must be left out with --record, every head is recorded")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the last line is written then too
    count, lost = record(args.endpoint, args.record, environment(), wanted)
    print(f"{count:,} records, {lost:,} lost on the way: see {args.record}", file=sys.stderr)
    return 0


async def _follow(args: argparse.Namespace) -> None:
    from ..serving.subscribe import subscribe
    from ..serving.trace import encode

    picture = Picture(head=args.head)
    screen = Screen(live=sys.stdout.isatty())
    async for record in subscribe(args.endpoint, rid=args.rid):
        if args.layer is not None and record.layer != args.layer:
            continue
        if args.json:
            print(encode(record).decode(), flush=True)
            continue
        picture.add(record, time.monotonic())
        screen.show(picture, time.monotonic())


@dataclass
class Strip:
    """The newest step of one request.

    Attributes:
        record: a record of it, of a layer that selects if there is one.
        seen: when the last record came.
        reads: how many times each unit was read, over the layers and heads in the picture. Layers
            that read everything are left out of it as soon as one selects.
        lists: how many lists of units (layers times heads) are in the picture.
        read_units: units read in all layers.
        there_were: units that dense attention would have read in all layers.
    """

    record: "SelectionRecord"
    seen: float
    reads: dict[int, int] = field(default_factory=dict)
    lists: int = 0
    read_units: int = 0
    there_were: int = 0

    def add(self, record: "SelectionRecord", units: Iterable[list[int]]) -> None:
        """Take in one layer."""
        selects, selected = record.method != DENSE, self.record.method != DENSE
        if selects and not selected:
            self.record, self.reads, self.lists = record, {}, 0
        pictured = selects or not selected
        for head in units:
            self.read_units += len(head)
            self.there_were += self.total
            if pictured:
                self.lists += 1
                for unit in head:
                    self.reads[unit] = self.reads.get(unit, 0) + 1

    @property
    def total(self) -> int:
        """Units in the context."""
        return max(1, -(-self.record.length // self.record.unit_size))

    def share(self) -> float:
        """Share of the context that was read, over all layers."""
        return self.read_units / max(1, self.there_were)

    def cells(self, width: int) -> list[float]:
        """Share read in each of `width` equal parts."""
        width = max(1, min(width, self.total))
        read, size = [0] * width, [0] * width
        for unit in range(self.total):
            cell = unit * width // self.total
            size[cell] += max(1, self.lists)
            read[cell] += self.reads.get(unit, 0)
        return [r / s for r, s in zip(read, size, strict=True)]


class Picture:
    """Strips by request; a step is shown when the next one has begun, so that it is whole."""

    def __init__(self, head: int | None = None) -> None:
        """Start empty; `head` looks at one KV head alone."""
        self.head = head
        self.strips: dict[str, Strip] = {}
        self._growing: dict[str, Strip] = {}

    def add(self, record: "SelectionRecord", now: float) -> None:
        """Take in one record."""
        units = record.units
        if self.head is not None:
            units = units[self.head : self.head + 1]
        strip = self._growing.get(record.rid)
        if strip is None or strip.record.step != record.step:
            if strip is not None:
                self.strips[record.rid] = strip
            strip = self._growing[record.rid] = Strip(record, now)
            self.strips.setdefault(record.rid, strip)
            self._forget(now)
        strip.seen = now
        strip.add(record, units)

    def _forget(self, now: float) -> None:
        for rid in [r for r, s in self._growing.items() if now - s.seen > FORGET_SECONDS]:
            del self._growing[rid], self.strips[rid]

    def lines(self, width: int) -> list[str]:
        """The picture as text, two lines per request."""
        shown = []
        for rid, strip in self.strips.items():
            record = strip.record
            shown.append(
                f"{rid[:12]:12s} {record.method:10s} step {record.step:<7d} "
                f"{record.length:>7d} tokens {100 * strip.share():5.1f}% read"[:width]
            )
            shown.append("".join(_shade(cell) for cell in strip.cells(width)))
        return shown


class Screen:
    """Draws a picture over itself on a terminal, and one below the other elsewhere."""

    def __init__(self, live: bool) -> None:
        """`live`: the output is a terminal."""
        self.live = live
        self._drawn_at = 0.0
        self._height = 0

    def show(self, picture: Picture, now: float) -> None:
        """Draw, unless that was done a moment ago."""
        if now - self._drawn_at < REFRESH_SECONDS:
            return
        self._drawn_at = now
        size = shutil.get_terminal_size()
        lines = picture.lines(size.columns - 1)
        if self.live:
            lines = lines[: max(2, size.lines - 1)]
            up = f"\x1b[{self._height}A" if self._height else ""
            sys.stdout.write(f"{up}\x1b[J" + "\n".join(lines) + "\n")
            self._height = len(lines)
        else:
            sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()


def _shade(share: float) -> str:
    """A cell's character: blank only where nothing at all was read."""
    if share <= 0:
        return SHADES[0]
    return SHADES[min(len(SHADES) - 1, 1 + int(share * (len(SHADES) - 1)))]
