"""The evaluations of `sparsekv eval`: what each takes on the command line, and what it makes."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import outputs

if TYPE_CHECKING:
    from ..evaluation.model import Model
    from ..evaluation.tasks.asking import Asking
    from ..evaluation.tasks.base import Task
    from ..evaluation.tasks.texts import Text

LONGBENCH_TOKENS = 31500
"""Of a prompt, as published for models with a context of 32k."""
LONGBENCH_ANSWER = 640
"""Tokens kept free for the longest answer, 512, and a chat template."""
SYNTHETIC = "synthetic"
"""A tiny set of LongBench's form, made for the package's `trained` model."""


@dataclass(frozen=True)
class Evaluation:
    """One of them.

    Attributes:
        text: for `--help`.
        add_arguments: declares its own arguments.
        make: the task, from all arguments and the model.
    """

    text: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    make: Callable[[argparse.Namespace, "Model"], "Task"]


def _needle_arguments(parser: argparse.ArgumentParser) -> None:
    _question_arguments(parser)
    parser.add_argument("--lengths", default="4k,8k", help="tokens of prompt and answer: 4k..32k")
    parser.add_argument("--depths", type=int, default=5, help="rows of the map")
    parser.add_argument("--needles", type=int, default=1, help="needles that an answer takes")
    parser.add_argument("--samples", type=int, default=1, help="documents per length")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample")


def _needle(args: argparse.Namespace, model: "Model") -> "Task":
    from ..evaluation.settings import parse_lengths
    from ..evaluation.tasks.needle.small_models import kind_of
    from ..evaluation.tasks.needle.task import Grid, NeedleTask

    grid = Grid(
        documents=kind_of(model.tokens),
        lengths=parse_lengths(args.lengths),
        depths=args.depths,
        needles=args.needles,
        samples=args.samples,
        seed=args.seed,
    )
    return NeedleTask(_asking(args, model), grid)


def _ruler_arguments(parser: argparse.ArgumentParser) -> None:
    _question_arguments(parser)
    parser.add_argument("--tasks", default="all", help="a list such as vt,cwe, or all 13")
    parser.add_argument("--lengths", default="4k", help="tokens of prompt and answer: 4k..128k")
    parser.add_argument("--samples", type=int, default=10, help="of each task and length")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other documents")
    parser.add_argument("--haystack", type=Path, help="text of the essays; else generated prose")
    parser.add_argument("--squad", type=Path, help="SQuAD's dev-v2.0.json; else generated passages")
    parser.add_argument("--hotpotqa", type=Path, help="HotpotQA's hotpot_dev_distractor_v1.json")


def _ruler(args: argparse.Namespace, model: "Model") -> "Task":
    from ..evaluation.settings import parse_lengths
    from ..evaluation.tasks.ruler.task import RulerTask

    return RulerTask(
        _asking(args, model),
        _names(args.tasks),
        parse_lengths(args.lengths),
        args.samples,
        args.seed,
        args.haystack,
        args.squad,
        args.hotpotqa,
    )


def _longbench_arguments(parser: argparse.ArgumentParser) -> None:
    _question_arguments(parser)
    parser.add_argument("--data", required=True, help="folder of LongBench's files, or synthetic")
    parser.add_argument("--sets", default="all", help="a list such as qasper,hotpotqa_e, or all")
    parser.add_argument("--samples", type=int, help="the first so many of each set; else all")
    parser.add_argument(
        "--max-length",
        type=int,
        help="tokens of a prompt, the middle of a longer one is cut; else 31500 or what fits",
    )
    parser.add_argument("--prompts", type=Path, help="a file like LongBench's dataset2prompt.json")


def _longbench(args: argparse.Namespace, model: "Model") -> "Task":
    from ..evaluation.tasks.longbench.synthetic import PROMPTS, write_synthetic
    from ..evaluation.tasks.longbench.task import LongBenchTask

    folder, prompts = Path(args.data), args.prompts
    if args.data == SYNTHETIC:
        folder = args.out.with_suffix(".data")
        write_synthetic(folder)
        prompts = prompts or folder / PROMPTS
    fits = (model.context_length or LONGBENCH_TOKENS) - LONGBENCH_ANSWER
    limit = args.max_length or min(LONGBENCH_TOKENS, fits)
    return LongBenchTask(
        _asking(args, model), folder, _names(args.sets), args.samples, limit, prompts
    )


def _math_arguments(parser: argparse.ArgumentParser) -> None:
    _question_arguments(parser)
    parser.add_argument(
        "--data", type=Path, required=True, help=".jsonl in the form of GSM8K or AIME"
    )
    parser.add_argument("--shots", type=int, default=0, help="first problems, shown solved")
    parser.add_argument("--samples", type=int, help="the next so many are asked; else all")
    parser.add_argument("--tokens", type=int, default=1024, help="of an answer, at most")


def _math(args: argparse.Namespace, model: "Model") -> "Task":
    from ..evaluation.tasks.math.task import MathTask

    return MathTask(_asking(args, model), args.data, args.shots, args.samples, args.tokens)


def _names(text: str) -> list[str]:
    """A list separated by commas; `all` is none in particular."""
    return [] if text == "all" else [name.strip() for name in text.split(",")]


def _perplexity_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lengths", default="4k", help="tokens of context and scored text: 4k,8k")
    parser.add_argument("--tokens", type=int, default=256, help="of those, read by decode")
    parser.add_argument(
        "--data", type=Path, help=".txt, folder of .txt (PG19), or .jsonl with `text`"
    )
    parser.add_argument("--samples", type=int, default=8, help="texts at most")
    parser.add_argument("--seed", type=int, default=0, help="of generated texts")


def _perplexity(args: argparse.Namespace, model: "Model") -> "Task":
    from ..evaluation.settings import parse_lengths
    from ..evaluation.tasks.perplexity import PerplexityTask

    texts = {n: _texts(args, model, "text", n) for n in parse_lengths(args.lengths)}
    return PerplexityTask(model.tokens, texts, args.tokens)


def _fidelity_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=128, help="that decode follows, at most")
    parser.add_argument(
        "--data", type=Path, help=".txt, folder of .txt, or .jsonl with `prompt` (`continuation`)"
    )
    parser.add_argument("--length", default="4k", help="tokens of a prompt, without --data")
    parser.add_argument("--samples", type=int, default=8, help="prompts at most")
    parser.add_argument("--seed", type=int, default=0, help="of the first prompt, without --data")
    parser.add_argument("--chat", action="store_true", help="without --data: by the chat template")


def _fidelity(args: argparse.Namespace, model: "Model") -> "Task":
    from ..evaluation.settings import parse_lengths
    from ..evaluation.tasks.fidelity import FidelityTask

    (length,) = parse_lengths(args.length)
    return FidelityTask(model.tokens, _prompts(args, model, length), args.tokens)


def _prompts(args: argparse.Namespace, model: "Model", length: int) -> "list[Text]":
    """Those of the user's file; else quotations, essays and texts to go on with, by turns."""
    from ..evaluation.tasks.generate.prompts import RealPrompts
    from ..evaluation.tasks.needle.small_models import kind_of

    if args.data is not None or kind_of(model.tokens) != "prose":
        if args.chat:
            raise ValueError("chat must be left out: the prompts are taken as they are")
        return _texts(args, model, "prompt", length)
    chat = model.tokens.chat() if args.chat else ("", "")
    return RealPrompts(model.tokens, chat, args.tokens).texts(length, args.seed, args.samples)


def _texts(args: argparse.Namespace, model: "Model", field: str, length: int) -> "list[Text]":
    """Texts of the user's file, or documents that the package's own models can read."""
    from ..evaluation.tasks.needle.small_models import kind_of, written_text
    from ..evaluation.tasks.texts import read_texts

    if args.samples < 1:
        raise ValueError(f"samples must be at least 1, got {args.samples}")
    if args.data is not None:
        return read_texts(args.data, field)[: args.samples]
    kind = kind_of(model.tokens)
    if kind == "prose":
        raise ValueError("data must be given for this model: a file or folder of texts")
    return [written_text(kind, length, args.seed + i) for i in range(args.samples)]


def _question_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol",
        default="prefilled",
        help="the question is prefilled with the document, or decoded",
    )
    parser.add_argument("--chat", action="store_true", help="by the model's chat template")


def _asking(args: argparse.Namespace, model: "Model") -> "Asking":
    from ..evaluation.tasks.asking import Asking

    return Asking(model.tokens, args.protocol, model.tokens.chat() if args.chat else ("", ""))


EVALUATIONS = {
    "needle": Evaluation("needles found, by length and depth", _needle_arguments, _needle),
    "ruler": Evaluation("RULER's thirteen tasks", _ruler_arguments, _ruler),
    "longbench": Evaluation("LongBench v1, from its files", _longbench_arguments, _longbench),
    "math": Evaluation(
        "problems with a number, from GSM8K's or AIME's file", _math_arguments, _math
    ),
    "perplexity": Evaluation("how well decode foretells text", _perplexity_arguments, _perplexity),
    "fidelity": Evaluation(
        "how far decode strays from reading everything", _fidelity_arguments, _fidelity
    ),
    "generate": Evaluation(
        "long outputs, followed and said freely", outputs.generate_arguments, outputs.generate
    ),
    "turns": Evaluation(
        "conversations over one growing prefix", outputs.turns_arguments, outputs.turns
    ),
}
