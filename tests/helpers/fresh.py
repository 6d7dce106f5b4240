"""The package as a user gets it: built from a clean copy of the tree, installed beside SGLang."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = "sgl_sparsekv"
_LEFT_OUT = shutil.ignore_patterns(
    *(".venv", ".uv", ".git", "build", "dist", "demo-out", "*.egg-info", "__pycache__", ".*_cache"),
    *(".hypothesis", "mutants"),
)


def copy_tree(to: Path) -> Path:
    """The tree as `git clone` gives it, and the kernels that `make setup` builds in it."""
    return Path(shutil.copytree(ROOT, to, ignore=_LEFT_OUT))


def build(tree: Path, out: Path, *kinds: str) -> list[Path]:
    """What `python -m build` makes of a tree, with the build tools of this environment.

    Args:
        tree: source folder, or an sdist that was unpacked.
        out: folder to build into.
        kinds: `--sdist`, `--wheel`; both, the wheel from the sdist, when none is named.
    """
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *kinds]
    done = subprocess.run([*command, str(tree)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return sorted(out.iterdir())


class FreshEnvironment:
    """A virtual environment with a wheel in it, and what it depends on from this environment.

    A path in a `.pth` file is searched last and its own `.pth` files are not run, so an editable
    install over there is not seen.
    """

    def __init__(self, folder: Path, wheel: Path) -> None:
        """Make it and install the wheel with pip."""
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.wheel = wheel
        self._must(sys.executable, "-m", "venv", str(folder))
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = folder / "lib" / name / "site-packages"
        (self.packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = (str(self.python), "-m", "pip", "--disable-pip-version-check", "install", "-q")
        self._must(*pip, "--no-index", "--no-deps", str(wheel))

    @staticmethod
    def _must(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, *arguments: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        """Run a program of its `bin`, away from the source tree."""
        programs = self.folder / "bin"
        return run([str(programs / arguments[0]), *arguments[1:]], self.folder, programs, timeout)


def environment(programs: Path) -> dict[str, str]:
    """Environment variables of someone who has activated an environment."""
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "PATH": path, "OMP_NUM_THREADS": "1"}


def run(
    command: list[str], folder: Path, programs: Path, timeout: float
) -> "subprocess.CompletedProcess[str]":
    """Run a command somewhere, with the programs of an environment first on the path."""
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(programs),
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
    )
