"""Machine, versions and commit: what a figure means nothing without."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__


def environment() -> dict[str, Any]:
    """Machine, versions and commit: what a figure means nothing without."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, {_memory_gib()} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sgl_sparsekv": __version__,
        "commit": commit(),
        **{name: _version(name) for name in ("sglang", "torch", "transformers")},
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


def cpu_name() -> str:
    """The processor as the kernel calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """The checkout's commit, with `+` if it was changed; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(folder), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
