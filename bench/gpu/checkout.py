"""Use the package from a checkout that is not installed.

`kernels/<device>` becomes `sgl_sparsekv.kernels.<device>`, as `package-dir` in `pyproject.toml` has
it. Importing this module does it, so `pytest -p bench.gpu.checkout` does too.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def use_checkout() -> None:
    """Make the package and its kernels importable; nothing changes where they are installed."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from sgl_sparsekv import kernels

    folder = str(ROOT / "kernels")
    if folder not in kernels.__path__:
        kernels.__path__.append(folder)


use_checkout()
