"""Loads SGLang's plugins the way a server does and prints which hooks are in place, as JSON.

`python -m sgl_sparsekv.serving.hook_probe`; `sparsekv doctor` runs it in a process of its own.
"""

import json
import sys


def main() -> None:
    """Print the report."""
    from sglang.srt.plugins import load_plugins

    from ..host import BACKEND_NAME
    from ..plugin import HOOKS, missing_hooks

    load_plugins()
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    report = {
        "hooks": [hook.target for hook in HOOKS],
        "missing": missing_hooks(),
        "backend": BACKEND_NAME in ATTENTION_BACKENDS,
        # Imported before SGLang sets its directory, it would never write to /metrics.
        "prometheus_too_early": "prometheus_client" in sys.modules,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
