"""Run one of SGLang's own tools that loads no plugins by itself, with plugins loaded.

    python -m sgl_sparsekv.with_plugins sglang.benchmark.one_batch --attention-backend sparsekv ...
    python -m sgl_sparsekv.with_plugins sglang.benchmark.offline_throughput ...

`launch_server`, `sglang serve` and `sglang.Engine` need no such help. Ranks that a tool spawns by
itself load nothing, so `one_batch` runs with one rank.
"""

import runpy
import sys

USAGE = "usage: python -m sgl_sparsekv.with_plugins MODULE [ARGUMENTS]"


def main(argv: list[str]) -> int:
    """Load plugins, then run the module as a script; returns 2 when none is named."""
    if not argv or argv[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return 2
    from sglang.srt.plugins import load_plugins

    load_plugins()
    sys.argv = argv
    try:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        if error.name is None or not argv[0].startswith(error.name):
            raise
        print(f"with_plugins: there is no module {argv[0]!r}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
