"""What `bench.gpu` gives to SGLang's commands is known to their parsers."""

from pathlib import Path

from bench.gpu import server, steps
from tests.helpers.launcher import Launcher

PARSE = """
import argparse, sys
from sglang.srt.server_args import ServerArgs
from sglang.benchmark.one_batch import BenchArgs

parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
BenchArgs.add_cli_args(parser)
cut = sys.argv.index("--")
for words in (sys.argv[1:cut], sys.argv[cut + 1 :]):
    print("PARSED", parser.parse_args(words).attention_backend)
"""


def test_flags_for_sglang_are_known(launcher: Launcher, tmp_path: Path) -> None:
    """By SGLang's own parser with our flags added."""
    script = tmp_path / "parse.py"
    script.write_text(PARSE)
    flags = ("--sparsekv-unit-size", "64", "--sparsekv-budget", "2048")
    step = steps.arguments(tmp_path, "sparsekv", flags, tmp_path / "x.jsonl")
    served = ("--model-path", str(tmp_path), *server.COMMON, *server.SPARSE)
    said = launcher.run(script, *step, "--", *served)
    assert said.count("PARSED sparsekv") == 2
