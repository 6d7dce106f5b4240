"""`sparsekv model`: writes a small model, trains one anew, or fetches or converts a real one."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_sparsekv.models.text import TextProgress
    from sgl_sparsekv.models.trained import Progress


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


def run(args: argparse.Namespace) -> int:
    """Writes the model `args` asks for; returns the exit code, 2 for what cannot be done."""
    from sgl_sparsekv.models.wheel import NotFetched

    start = time.monotonic()
    try:
        there = _is_there(args)
        if not there:
            _check_folder(args.out_dir, args.force)
            _KINDS[args.kind](args)
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
    from sgl_sparsekv.models.trained import save_trained, train
    from sgl_sparsekv.models.weights import save_weights

    _use_threads(args.threads)
    model, about = train(args.seed, on_progress=_show)
    save_trained(args.out_dir, model)
    save_weights(model, about, args.out_dir / "model.safetensors")  # the same, with its recipe


def _train_text(args: argparse.Namespace) -> None:
    from sgl_sparsekv.models.text import save_text, train_text
    from sgl_sparsekv.models.weights import save_weights

    _use_threads(args.threads)
    model, about = train_text(args.seed, on_progress=_show_text)
    save_text(args.out_dir, model, about["merges"])
    save_weights(model, about, args.out_dir / "model.safetensors")  # the same, with its recipe


def _smollm2(args: argparse.Namespace) -> None:
    from sgl_sparsekv.models.smollm2 import save_smollm2

    save_smollm2(args.out_dir)


def _gguf(args: argparse.Namespace) -> None:
    from sgl_sparsekv.models.converted import save_converted

    save_converted(args.file, args.out_dir)


def _use_threads(threads: int) -> None:
    import torch

    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)


def _show(progress: Progress) -> None:
    print(
        f"length {progress.length:5d}  step {progress.step:4d}  loss {progress.loss:.3f}  "
        f"accuracy {progress.accuracy:.3f}  {progress.seconds:.0f} CPU s",
        flush=True,
    )


def _show_text(progress: TextProgress) -> None:
    print(
        f"length {progress.length:5d}  step {progress.step:4d}  text {progress.text:.3f}  "
        f"quoted {progress.quoted:.3f}  {progress.seconds:.0f} CPU s",
        flush=True,
    )


_KINDS = {
    "analytic": _analytic,
    "trained": _trained,
    "text": _text,
    "train": _train,
    "train-text": _train_text,
    "smollm2": _smollm2,
    "gguf": _gguf,
}
