"""Whether a command that is not run could be: its program, target, module and flags exist."""

import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from importlib.util import find_spec

from .pages import ROOT

_VERB = re.compile(r"[a-z][a-z-]*")
_FLAG = re.compile(r"--[a-z][a-z-]*")


def complaint(text: str) -> str:
    """Why the command cannot be run as written; "" if nothing is seen."""
    program, *words = shlex.split(text)
    if program == "make":
        done = _run("make", "-n", *words)
        return "" if done.returncode == 0 else done.stderr
    if program == "pip":
        return _missing_extras(" ".join(words))
    if program == "pytest":
        paths = [word for word in words if not word.startswith("-")]
        missing = [path for path in paths if not (ROOT / path).exists()]
        return f"there is no {missing}" if missing else ""
    flags = [word for word in words if _FLAG.fullmatch(word)]
    if program == "python":
        module = words[1]
        if find_spec(module) is None:
            return f"there is no module {module}"
        asked = [sys.executable, "-m", module]
    else:
        verbs = words[: next((i for i, w in enumerate(words) if not _VERB.fullmatch(w)), None)]
        asked = [sys.executable, "-m", "sgl_sparsekv.cli", *verbs]
    missing = sorted(set(flags) - _flags(*asked)) if flags or program == "sparsekv" else []
    return f"{shlex.join(asked)} has no {missing}" if missing else ""


@cache
def _flags(*command: str) -> frozenset[str]:
    """Flags that a program's help names."""
    done = _run(*command, "--help")
    assert done.returncode == 0, done.stderr
    return frozenset(_FLAG.findall(done.stdout))


def _missing_extras(text: str) -> str:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, extra in re.findall(r"([\w-]+)\[(\w+)\]", text):
        if name != known["name"] or extra not in known["optional-dependencies"]:
            return f"there is no {name}[{extra}]"
    return ""


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
