"""`sparsekv`: a table of subcommands, imported when they are used."""

import argparse
import sys
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from . import __version__

COMMANDS = {
    "doctor": ("doctor", "say whether this machine can serve, and what to do if not"),
    "model": ("model", "write a model to try things on: made, fetched, or from a GGUF file"),
    "demo": ("demo", "exact answers from a long document, and a real model: dense beside sparse"),
    "eval": ("evaluate", "is it still right? needles by length and depth, method by method"),
    "report": ("report", "one page from result files: quality, bytes, speed, what was read"),
    "watch": ("watch", "follow live which parts of the context a server reads"),
}
"""Name -> (module in `sgl_sparsekv.commands`, help)."""
OK, FAILED, BAD_INPUT = 0, 1, 2


def main(argv: list[str] | None = None) -> int:
    """Run `sparsekv`; returns its exit status: 0, 1 (the command failed) or 2 (bad input)."""
    arguments = sys.argv[1:] if argv is None else argv
    named = arguments[0] if arguments else "--help"
    try:
        if named in COMMANDS:
            return _run(named, arguments[1:])
        if named not in ("-h", "--help", "--version") and not named.startswith("-"):
            return _complain(f"command must be one of {', '.join(COMMANDS)}, got {named!r}")
        _overview().parse_args(arguments or ["--help"])
    except SystemExit as leave:  # argparse: 0 after help, 2 after bad input
        return leave.code if isinstance(leave.code, int) else BAD_INPUT
    except KeyboardInterrupt:
        return 130
    return OK


def _run(name: str, arguments: list[str]) -> int:
    module_name, text = COMMANDS[name]
    try:
        module = _load(module_name)
    except ImportError as error:
        return _complain(f"{name} cannot be loaded ({error}); run `sparsekv doctor`", FAILED)
    parser = _OneLine(prog=f"sparsekv {name}", description=text)
    module.add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        status: int = module.run(args)
    except ImportError as error:
        return _complain(f"{name}: {error}; run `sparsekv doctor`", FAILED)
    except ValueError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename or name}: {error.strerror or error}", FAILED)
    return status


def _load(module_name: str) -> ModuleType:
    return import_module(f".commands.{module_name}", __package__)


def _overview() -> argparse.ArgumentParser:
    lines = [f"  {name:8s} {text}" for name, (_, text) in COMMANDS.items()]
    parser = _OneLine(
        prog="sparsekv",
        usage="sparsekv COMMAND ...",
        description="Query-aware sparse decoding over SGLang's radix prefix cache.",
        epilog="commands:\n" + "\n".join(lines) + "\n\n`sparsekv COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sgl-sparsekv {__version__}")
    return parser


class _OneLine(argparse.ArgumentParser):
    """Bad input is one line, not the usage and then the line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _complain(message: str, status: int = BAD_INPUT) -> int:
    print(f"sparsekv: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
