"""`docs/compatibility.md`: what the sweeps found, one row for each flag and family."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from .sweep import FAULT, LIKEWISE, NEITHER, REFUSED, SERVED, UPSTREAM, Verdict

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
NOT_TRIED = "not tried"
HEAD = """# What is served, and what is refused

Written by `make soak` (`tests/start`; `python -m tests.start WORD` judges single lines anew) with
SGLang {version} on a CPU: every flag of SGLang's command line, and a tiny random model in float32
of every family, each through SGLang's own launcher with `--attention-backend sparsekv`. Where
transformers has no class of a family, a configuration alone (`tests/start/bare.py`) and weights
that SGLang makes up stand for its model; most of those that are not tried want more than that.

- **Served**: prompts of 6, 90 and 400 tokens gave the tokens of `torch_native` (where a flag
  changes them, of a `torch_native` server with the same flag), with `full` and with a budget
  above the context, and the longest was then read sparsely, page metadata compared with the keys
  in every step.
- **Refused**: the server ended with the sentence in the row and exit status 2, and no stack
  trace. What *sparsekv* refuses, it refuses before the weights load; the rest are SGLang's words.
- **As with torch_native**: SGLang itself does not answer such a request, or waits for what the
  flag names, and its dense server does the same.

Flags are judged in groups of eight, and alone where a group is not served: that eight serve
together stands for each of them. The schedulers are forked from a process that has SGLang
imported, where the launcher would spawn them. A flag that means nothing on a CPU, or for a model
this small, is served and does nothing.

| | flags, by value | families |
|---|---|---|
"""


def write_page(version: str, found: Sequence[Verdict], families: Sequence[Verdict]) -> Path:
    """Write the page over the last one; `found` is of flags."""
    text = HEAD.format(version=version) + "".join(counts(found, families))
    text += "\n## Flags\n\n| flag | |\n|---|---|\n"
    text += "".join(rows([(name_of(verdict.name), verdict) for verdict in found]))
    text += "\n## Families\n\n| architecture | |\n|---|---|\n"
    text += "".join(rows([(verdict.name, verdict) for verdict in families]))
    PAGE.write_text(text)
    return PAGE


def counts(flags: Iterable[Verdict], families: Iterable[Verdict]) -> Iterable[str]:
    """The small table at the top."""
    of_flags = Counter(verdict.how for verdict in flags)
    of_families = Counter(verdict.how for verdict in families)
    for how in (SERVED, REFUSED, UPSTREAM, LIKEWISE, NEITHER, NOT_TRIED, FAULT):
        if of_flags[how] or of_families[how]:
            yield f"| {how} | {of_flags[how]} | {of_families[how]} |\n"


def rows(found: Sequence[tuple[str, Verdict]]) -> Iterable[str]:
    """One row for what ended alike: the values of a flag stand together."""
    merged: dict[tuple[str, str], list[str]] = {}
    for name, verdict in found:
        # What stands beside other flags is shown as one line.
        flag, _, value = (name, "", "") if " --" in name else name.partition(" ")
        merged.setdefault((flag, outcome(verdict)), []).append(value)
    for (flag, words), values in merged.items():
        shown = ", ".join(value for value in values if value)
        yield f"| `{flag}`{f' `{escaped(shown)}`' if shown else ''} | {words} |\n"


def outcome(verdict: Verdict) -> str:
    """What a row says."""
    return escaped(told(verdict))


def escaped(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|")


def told(verdict: Verdict) -> str:
    """How a line ended and in which words, without this machine's paths."""
    words = verdict.words.removeprefix("sparsekv: error: ")
    words = words.replace(sys.prefix, "").replace(str(Path(__file__).parents[2]), "")
    words = re.sub(r"https?://\S+", "URL", words)
    words = re.sub(r"(?<![\w/])/(?:tmp|root|home|work)/\S+", "FILE", words)
    return f"{verdict.how}: {words}" if words else verdict.how


def verdict_of(name: str, text: str) -> Verdict:
    """What was told, read back."""
    how, _, words = text.partition(": ")
    return Verdict(name, how, words, 0.0)


def name_of(shown: str) -> str:
    """A command line without this machine's folders."""
    return re.sub(r"(?<!\S)/\S*/(\w+)", r"\1", shown)


def named(page: str, heading: str) -> set[str]:
    """First words of the rows below a heading."""
    below = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([^` ]+)", below, re.MULTILINE))
