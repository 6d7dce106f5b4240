"""What `gpu_benchmark.sh` measured, as a table: one line per server, the share of KV read beside.

    python examples/benchmark_table.py OUT        with OUT the folder that the script wrote
Numbers are SGLang's own; the share comes from the server's counters and includes the warm-up run.
"""

import json
import sys
from pathlib import Path
from typing import Any


def share_of_kv(info: dict[str, Any]) -> str:
    """Share of the KV cache that decode read, or a dash for a server without our backend."""
    states = [state.get("sparsekv") for state in info["internal_states"]]
    counters = [state["counters"] for state in states if state]
    there = sum(one["tokens_in_context_total"] for one in counters)
    read = sum(one["tokens_attended_total"] for one in counters)
    return f"{read / there:.1%}" if there else "-"


def main(folder: Path) -> None:
    """Print the table, in the order in which the servers ran."""
    print(
        f"{'server':<14}{'tokens/s':>10}{'TTFT ms':>10}{'ITL ms':>9}{'KV read':>9}{'requests':>10}"
    )
    for path in sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime):
        found = json.loads(path.read_text().splitlines()[-1])
        info = json.loads(path.with_suffix(".info").read_text())
        print(
            f"{path.stem:<14}{found['output_throughput']:>10.1f}{found['median_ttft_ms']:>10.1f}"
            f"{found['median_itl_ms']:>9.2f}{share_of_kv(info):>9}{found['completed']:>10}"
        )
    print("tokens/s: generated; TTFT and ITL: medians, with the documents in the radix cache.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
