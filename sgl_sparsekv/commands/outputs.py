"""Evaluations of what is said at length: their arguments, and the tasks they make."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation.model import Model
    from ..evaluation.tasks.base import Task
    from ..evaluation.tasks.generate.wanted import Prompts


def generate_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `generate`."""
    parser.add_argument("--tasks", default="all", help="a list of continue,write,copy,call, or all")
    parser.add_argument("--lengths", default="4k", help="tokens of prompt and output: 4k..32k")
    parser.add_argument("--tokens", type=int, default=1024, help="of an output, at most")
    parser.add_argument("--count", type=int, default=4, help="quotations and calls per document")
    parser.add_argument("--samples", type=int, default=1, help="documents per length")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample")
    parser.add_argument("--chat", action="store_true", help="by the model's chat template")


def generate(args: argparse.Namespace, model: "Model") -> "Task":
    """The task `generate`."""
    from ..evaluation.settings import parse_lengths
    from ..evaluation.tasks.generate.task import GenerateTask, Grid

    prompts = _prompts(args, model)
    grid = Grid(
        tasks=chosen(args.tasks, prompts.tasks),
        lengths=parse_lengths(args.lengths),
        new_tokens=args.tokens,
        count=args.count,
        samples=args.samples,
        seed=args.seed,
    )
    return GenerateTask(model.tokens, prompts, grid)


def _prompts(args: argparse.Namespace, model: "Model") -> "Prompts":
    from ..evaluation.tasks.generate.prompts import RealPrompts
    from ..evaluation.tasks.generate.small_models import SmallPrompts

    kind = _kind(args, model)
    if kind != "prose":
        return SmallPrompts(model.tokens, kind, args.tokens)
    return RealPrompts(model.tokens, model.tokens.chat() if args.chat else ("", ""), args.tokens)


def _kind(args: argparse.Namespace, model: "Model") -> str:
    """Which documents the model can read; see `kind_of`.

    Raises:
        ValueError: it is one that reads no chat.
    """
    from ..evaluation.tasks.needle.small_models import kind_of

    kind = kind_of(model.tokens)
    if args.chat and kind != "prose":
        raise ValueError("chat must be left out: this model reads its own documents alone")
    return kind


def chosen(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Names of a list separated by commas, in the order of `known`; `all` are all of them.

    Raises:
        ValueError: one is unknown.
    """
    names = known if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"task must be one of {', '.join(known)}, got {name!r}")
    return tuple(name for name in known if name in names)


def turns_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `turns`."""
    parser.add_argument("--lengths", default="4k", help="tokens of a conversation: 4k..32k")
    parser.add_argument("--turns", type=int, default=4, help="of a conversation")
    parser.add_argument("--tokens", type=int, default=160, help="of an answer, at most")
    parser.add_argument("--cold", type=int, default=1, help="last turns asked again uncached")
    parser.add_argument("--samples", type=int, default=1, help="conversations per length")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample")
    parser.add_argument("--chat", action="store_true", help="by the model's chat template")


def turns(args: argparse.Namespace, model: "Model") -> "Task":
    """The task `turns`."""
    from ..evaluation.settings import parse_lengths
    from ..evaluation.tasks.real.document import digest
    from ..evaluation.tasks.turns.conversation import PLAIN, real_conversation, small_conversation
    from ..evaluation.tasks.turns.task import Grid, TurnsTask

    if args.tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {args.tokens}")
    grid = Grid(parse_lengths(args.lengths), args.turns, args.cold, args.samples, args.seed)
    kind = _kind(args, model)
    about = {"answers": args.tokens, "chat": args.chat}
    if kind != "prose":
        return TurnsTask(
            model.tokens,
            lambda length, seed: small_conversation(kind, length, args.turns, seed),
            grid,
            {**about, "documents": kind},
        )
    around = model.tokens.turns() if args.chat else PLAIN
    return TurnsTask(
        model.tokens,
        lambda length, seed: real_conversation(
            model.tokens, around, length, args.turns, args.tokens, seed
        ),
        grid,
        {**about, "documents": digest()},
    )
