"""The picture of a sweep: one panel per question, one look per way of decoding."""

from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

from bench.serve.grid import OURS
from bench.serve.results import Result, Row
from sgl_sparsekv.tooling.charts import HEIGHT, LEFT, STYLE, WIDTH, Bars, Line, Look, Panel, draw

COLUMNS = 2
HEAD, ROW = 56, 20
PEERS = ("#8b93a1", "#b0713c", "#a3a34a", "#6d8f8f")
METHODS = ("#e08a2e", "#3f7fe8", "#9366dd", "#22a062", "#d94f70", "#14a3b8", "#b5179e", "#8a6d3b")
DASHES = ("", "7 4", "2 4", "9 3 2 3")
"""Of the budgets of a method, in the order in which they were asked for."""
Value = Callable[[Row], float | None]


def picture(result: Result) -> str:
    """A whole file; panels without points say so."""
    looks = looks_of(result.rows)
    panels = panels_of(result)
    down = -(-len(panels) // COLUMNS)
    legend, rows = _legend(looks)
    top = HEAD + rows * ROW + 6
    wide, high = COLUMNS * WIDTH, top + down * HEIGHT
    body = "".join(
        f'<g class="panel" transform="translate({i % COLUMNS * WIDTH} '
        f'{top + i // COLUMNS * HEIGHT})">{draw(panel, looks)}</g>'
        for i, panel in enumerate(panels)
    )
    return (
        f'<svg class="fig" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" '
        f'role="img" aria-label="Serving benchmarks of sparse and dense decoding">'
        f'<style>{STYLE}</style><rect class="back" width="{wide}" height="{high}"/>'
        f"{_head(result)}{legend}{body}</svg>\n"
    )


def looks_of(rows: Sequence[Row]) -> dict[str, Look]:
    """Peers are muted, methods have a colour each, budgets of a method differ in the dash."""
    peers = list(dict.fromkeys(row.variant for row in rows if row.server != OURS))
    looks = {name: Look(PEERS[i % len(PEERS)]) for i, name in enumerate(peers)}
    ours = [row for row in rows if row.server == OURS]
    methods = list(dict.fromkeys(row.method for row in ours))
    for i, method in enumerate(methods):
        names = dict.fromkeys(row.variant for row in ours if row.method == method)
        for k, name in enumerate(names):
            looks[name] = Look(METHODS[i % len(METHODS)], DASHES[k % len(DASHES)])
    return looks


def panels_of(result: Result) -> list[Panel | Bars]:
    """Every question, answered or not."""
    rows = result.rows
    single = [row for row in rows if row.workload == "hit"]
    shared = [row for row in rows if row.workload == "shared"]
    closed = [row for row in shared if row.rate is None]
    offered = [row for row in shared if row.rate is not None]
    limits = " and ".join(f"{k.upper()} ≤ {v:,.0f} ms" for k, v in result.header.goodput.items())
    longest = max((row.context for row in shared), default=0)
    prefix = f"questions on a shared prefix of {longest:,} tokens, {_tokens(shared)}"
    alone = f"one request at a time, prompt in the radix cache, {_tokens(single)}"
    load = "offered rate, requests/s" if offered else "requests at a time"
    return [
        Panel(
            title="Time between tokens against context",
            note=f"{alone}; bar: p99",
            x="context, tokens",
            y="ITL, ms (median)",
            lines=_over_context(single, lambda row: row.itl_ms, True),
            log_y=True,
            tokens=True,
        ),
        _speed_up(single),
        _first_token(rows),
        Panel(
            *("Throughput against concurrency", prefix, "requests at a time", "tokens/s"),
            _over_load(closed, longest, lambda row: row.tokens_per_s),
        ),
        Panel(
            *(f"Goodput: {limits}", prefix, load, "requests/s within the limits"),
            _over_load(offered or closed, longest, lambda row: row.goodput_per_s),
        ),
        _by_tool(rows),
    ]


def _speed_up(rows: Sequence[Row]) -> Panel:
    """Time between tokens of the first dense peer over that of each variant."""
    peer = next((row.variant for row in rows if row.server != OURS), None)
    dense = {row.context: row.itl_ms for row in rows if row.variant == peer}

    def gain(row: Row) -> float | None:
        beside = dense.get(row.context)
        return beside / row.itl_ms if beside and row.itl_ms else None

    title = "Decode speed-up" if peer is None else f"Decode speed-up over SGLang's {peer}"
    note = "its median ITL over that of the variant, same context, same run"
    return Panel(title, note, "context, tokens", "times", _over_context(rows, gain), tokens=True)


def _first_token(rows: Sequence[Row]) -> Panel:
    cold = [row for row in rows if row.workload == "cold"]
    hit = [row for row in rows if row.workload == "hit"]
    lines = [*_over_context(cold, lambda row: row.ttft_ms)]
    # What a request asks for does not change its prefill: one line per server.
    leads = {row.variant for row in cold}
    for line in _over_context([row for row in hit if row.variant in leads], lambda r: r.ttft_ms):
        lines.append(Line(line.name, line.points, hollow=True))
    note = "filled: nothing cached; rings: all but the last page in the radix cache"
    axes = ("context, tokens", "TTFT, ms (median)")
    return Panel("Time to the first token", note, *axes, tuple(lines), log_y=True, tokens=True)


def _by_tool(rows: Sequence[Row]) -> Bars:
    groups = []
    for workload, heading in (("offline", "offline engine"), ("program", "frontend programs")):
        some = [row for row in rows if row.workload == workload]
        longest = max((row.context for row in some), default=0)
        bars = tuple((row.variant, row.tokens_per_s) for row in some if row.context == longest)
        if bars:
            groups.append((f"{heading}, {some[0].requests} requests", bars))
    note = "with prefill; offline starts cold, programs find their document cached"
    return Bars("Throughput of the other two tools", note, "tokens/s", tuple(groups))


def _over_context(rows: Sequence[Row], value: Value, reach: bool = False) -> tuple[Line, ...]:
    return _by_variant(rows, lambda row: row.context, value, reach)


def _over_load(rows: Sequence[Row], context: int, value: Value) -> tuple[Line, ...]:
    """Points of the longest shared prefix."""
    some = [row for row in rows if row.context == context]
    return _by_variant(some, lambda row: row.rate or row.concurrency, value)


def _by_variant(
    rows: Sequence[Row], x: Callable[[Row], float], y: Value, reach: bool = False
) -> tuple[Line, ...]:
    lines = []
    for name in dict.fromkeys(row.variant for row in rows):
        mine = sorted((row for row in rows if row.variant == name), key=x)
        found = [(x(row), value, row) for row in mine if (value := y(row)) is not None]
        tops = tuple(max(value, row.itl_p99_ms or value) for _, value, row in found)
        points = tuple((at, value) for at, value, _ in found)
        lines.append(Line(name, points, tops if reach else ()))
    return tuple(lines)


def _tokens(rows: Sequence[Row]) -> str:
    found = {output for row in rows for output in row.tool.get("output_lens", ())}
    return f"{max(found)} generated" if found else "none generated"


def _head(result: Result) -> str:
    where = result.header.environment
    machine = f"{where['machine']}; SGLang {where['sglang']}, commit {where['commit']}"
    return (
        f'<text class="title" x="{LEFT}" y="24">{escape(result.header.model)}</text>'
        f'<text class="soft" x="{LEFT}" y="44">{escape(machine)}, {escape(where["when"])}</text>'
    )


def _legend(looks: dict[str, Look]) -> tuple[str, int]:
    """Every name beside its line, and how many rows that takes."""
    parts, x, row = [], float(LEFT), 0
    for name, look in looks.items():
        wide = 52 + 7 * len(name)
        if x + wide > COLUMNS * WIDTH and x > LEFT:
            x, row = float(LEFT), row + 1
        y = HEAD + 8 + row * ROW
        dash = f' stroke-dasharray="{look.dash}"' if look.dash else ""
        parts.append(
            f'<path class="line" stroke="{look.colour}"{dash} d="M{x:.0f} {y}h26"/>'
            f'<text x="{x + 32:.0f}" y="{y + 4}">{escape(name)}</text>'
        )
        x += wide
    return "".join(parts), row + 1
