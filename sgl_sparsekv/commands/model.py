"""`sparsekv model`: writes a small model, trains one anew, or fetches or converts a real one."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_sparsekv.models.checkpoint import Checkpoint
    from sgl_sparsekv.models.text import TextProgress as TextTrained
    from sgl_sparsekv.models.trained import Progress as Trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the kinds of models to `parser`."""
    names = f"{{{','.join(_KINDS)}}}"
    kinds = parser.add_subparsers(dest="kind", required=True, metavar=names)
    analytic = kinds.add_parser("analytic", help="written down, exact at any length")
    trained = kinds.add_parser("trained", help="the shipped weights")
    text = kinds.add_parser("text", help="the shipped weights of the model of Python sources")
    train = kinds.add_parser("train", help="train the shipped recipe anew, minutes on two cores")
    train_text = kinds.add_parser("train-text", help="the same for the model of Python sources")
    smollm2 = kinds.add_parser("smollm2", help="fetch SmolLM2-135M-Instruct, 93 MB")
    gguf = kinds.add_parser("gguf", help="convert a GGUF file of a Llama- or Qwen-like model")
    gguf.add_argument("file", type=Path, metavar="FILE", help="GGUF file to read")
    for kind in (analytic, trained, text, train, train_text, smollm2, gguf):
        kind.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder to write")
        kind.add_argument("--force", action="store_true", help="write into a non-empty folder")
    analytic.add_argument("--layers", type=int, default=3, help="number of layers (3)")
    analytic.add_argument("--retrieve-layer", type=int, default=2, help="the answering layer (2)")
    analytic.add_argument("--kv-heads", type=int, default=2, help="1, 2 or 4 (2)")
    analytic.add_argument("--places", type=int, default=1024, help="number of place names (1024)")
    analytic.add_argument("--code", default="sparse", help="sparse, dense or gaussian (sparse)")
    analytic.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    analytic.add_argument("--seed", type=int, default=0)
    for kind in (train, train_text):
        kind.add_argument("--seed", type=int, default=0)
        kind.add_argument("--threads", type=int, default=2, help="torch threads (2)")
        kind.add_argument("--resume", action="store_true", help="go on with one that was stopped")


def run(args: argparse.Namespace) -> int:
    """Writes the model `args` asks for; returns the exit code, 2 for what cannot be done."""
    from sgl_sparsekv.models.wheel import NotFetched
    from sgl_sparsekv.tooling.signals import terminated_is_interrupted

    start = time.monotonic()
    try:
        with terminated_is_interrupted():
            there = _is_there(args)
            if not there:
                _check_folder(args.out_dir, args.force)
                _KINDS[args.kind](args)
    except KeyboardInterrupt:
        print("sparsekv model: stopped; a training goes on with --resume", file=sys.stderr)
        return 130
    except (ValueError, OSError, NotFetched) as error:
        print(f"sparsekv model: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in args.out_dir.iterdir() if path.is_file())
    done = f"{args.out_dir} is that model already" if there else f"wrote {args.out_dir}"
    print(f"{done}: {size / 1e6:.1f} MB, {time.monotonic() - start:.0f} s")
    return 0


def _is_there(args: argparse.Namespace) -> bool:
    """Whether the folder is the converted model that is asked for, unchanged."""
    from sgl_sparsekv.models.converted import holds
    from sgl_sparsekv.models.digest import sha256
    from sgl_sparsekv.models.smollm2 import WEIGHTS

    if args.kind == "smollm2":
        return holds(args.out_dir, WEIGHTS.sha256)
    return args.kind == "gguf" and args.file.is_file() and holds(args.out_dir, sha256(args.file))


def _check_folder(folder: Path, force: bool) -> None:
    """Refuse a folder that cannot be written, before any work is done; creates nothing."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"OUT_DIR must be a folder, got {folder}")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ValueError(f"OUT_DIR must be empty or --force given, got {folder}")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"OUT_DIR must be writable, got {folder}")


def _analytic(args: argparse.Namespace) -> None:
    import torch

    from sgl_sparsekv.models.analytic import AnalyticConfig, save_analytic

    config = AnalyticConfig(
        num_layers=args.layers,
        retrieve_layer=args.retrieve_layer,
        num_kv_heads=args.kv_heads,
        num_places=args.places,
        code=args.code,
        seed=args.seed,
    )
    save_analytic(args.out_dir, config, getattr(torch, args.dtype))


def _trained(args: argparse.Namespace) -> None:
    from sgl_sparsekv.models.trained import save_trained

    save_trained(args.out_dir)


def _text(args: argparse.Namespace) -> None:
    from sgl_sparsekv.models.text import save_text

    save_text(args.out_dir)


def _train(args: argparse.Namespace) -> None:
    from sgl_sparsekv.models.trained import LADDER, save_trained, train
    from sgl_sparsekv.models.weights import save_weights

    checkpoint = _checkpoint(args)
    tell = _teller(sum(stage.max_steps for stage in LADDER))
    model, about = train(args.seed, on_progress=tell, checkpoint=checkpoint)
    save_trained(args.out_dir, model)
    save_weights(model, about, args.out_dir / "model.safetensors")  # the same, with its recipe
    checkpoint.finish()


def _train_text(args: argparse.Namespace) -> None:
    from sgl_sparsekv.models.text import TEXT_LADDER, save_text, train_text
    from sgl_sparsekv.models.weights import save_weights

    checkpoint = _checkpoint(args)
    tell = _teller(sum(stage.steps for stage in TEXT_LADDER))
    model, about = train_text(args.seed, on_progress=tell, checkpoint=checkpoint)
    save_text(args.out_dir, model, about["merges"])
    save_weights(model, about, args.out_dir / "model.safetensors")  # the same, with its recipe
    checkpoint.finish()


def _smollm2(args: argparse.Namespace) -> None:
    from sgl_sparsekv.models.smollm2 import save_smollm2

    save_smollm2(args.out_dir)


def _gguf(args: argparse.Namespace) -> None:
    from sgl_sparsekv.models.converted import save_converted

    save_converted(args.file, args.out_dir)


def _checkpoint(args: argparse.Namespace) -> Checkpoint:
    """Of a training, beside the folder that it will fill; sets torch's threads."""
    import torch

    from sgl_sparsekv.models.checkpoint import Checkpoint

    if args.threads < 1:
        raise ValueError(f"threads must be at least 1, got {args.threads}")
    torch.set_num_threads(args.threads)
    path = args.out_dir.with_name(f"{args.out_dir.name}.part.pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    return Checkpoint(path, args.resume)


def _teller(most: int) -> Callable[[Trained | TextTrained], None]:
    """Shows where a training of at most so many steps stands, and how long the rest may take."""
    from sgl_sparsekv.tooling.progress import Progress

    progress = Progress()

    def tell(now: Trained | TextTrained) -> None:
        figures = asdict(now)
        length, step, _ = (figures.pop(name) for name in ("length", "step", "seconds"))
        told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        progress.count(step, most, f"{length:,} tokens: {told}")

    return tell


_KINDS = {
    "analytic": _analytic,
    "trained": _trained,
    "text": _text,
    "train": _train,
    "train-text": _train_text,
    "smollm2": _smollm2,
    "gguf": _gguf,
}
