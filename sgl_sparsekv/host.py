"""What is known of SGLang without importing it: the name that chooses us, the tested versions."""

from importlib.metadata import PackageNotFoundError, version

from . import TESTED_SGLANG

BACKEND_NAME = "sparsekv"
"""Of `--attention-backend`."""


def version_problem() -> str | None:
    """Why the installed SGLang cannot be served, or None when it is a tested one."""
    try:
        installed = version("sglang")
    except PackageNotFoundError:
        return "SGLang is not installed; pip install sglang==" + TESTED_SGLANG[-1]
    if installed in TESTED_SGLANG:
        return None
    return (
        f"SGLang {installed} was not tested with this sgl_sparsekv (tested: "
        f"{', '.join(TESTED_SGLANG)}); install a tested one"
    )
