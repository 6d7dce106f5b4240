"""The text model: three Qwen3 layers that read Python, trained on nothing but the next token.

No selection method had a say in its loss, so it favours none: a judge of selections.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from sgl_sparsekv.models.checkpoint import Checkpoint
from sgl_sparsekv.models.corpus import TextSampler, bpe_tokenizer, learn_merges, library
from sgl_sparsekv.models.weights import load_weights, read_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

TEXT_WEIGHTS = Path(__file__).with_name("text.safetensors")
MAX_POSITIONS = 131072
VOCABULARY = 2048
HIDDEN, HEAD_DIM, NUM_QO_HEADS, NUM_KV_HEADS, NUM_LAYERS = 128, 64, 4, 2, 3
_MATRIX_LR, _OTHER_LR = 0.02, 3e-3
_WARM_UP, _SLOPE, _LAST = 30, 1.6, 0.03
SHARPEN = 1.4
"""Queries grow by this after training: over more keys than were trained on, attention thins out
(the temperature of YaRN, arXiv 2309.00071, section 3.4)."""


@dataclass(frozen=True)
class TextStage:
    """One rung of the ladder: tokens of a sample, samples of a step, and how many steps."""

    length: int
    batch: int
    steps: int


TEXT_LADDER = (TextStage(256, 16, 900), TextStage(1024, 4, 500), TextStage(4096, 1, 200))


@dataclass(frozen=True)
class TextProgress:
    """Where training stands: running means of the loss on running text and on quotes, in nats."""

    length: int
    step: int
    text: float
    quoted: float
    seconds: float


def build_text_untrained(seed: int = 0) -> Qwen3ForCausalLM:
    """The starting point of training, float32: noise in every weight."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_QO_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                size = (0.21 if "embed" in name else 0.7) * weight.shape[1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * size)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                weight.fill_(1.4)  # a scaled q·k of up to 16: sharp enough to begin with
    model.generation_config.do_sample = False
    return model


def build_text_tokenizer(weights: Path = TEXT_WEIGHTS) -> PreTrainedTokenizerFast:
    """The tokenizer of shipped weights: its merges are part of their recipe."""
    return bpe_tokenizer(read_recipe(weights)["merges"], MAX_POSITIONS)


def load_text(weights: Path = TEXT_WEIGHTS) -> Qwen3ForCausalLM:
    """The shipped model in float32 (its weights are stored as bfloat16), in evaluation mode."""
    model = build_text_untrained()
    load_weights(model, weights)
    return model.eval()


def save_text(
    folder: str | Path,
    model: Qwen3ForCausalLM | None = None,
    merges: Sequence[Sequence[str]] | None = None,
) -> None:
    """Writes the shipped model, or `model` and its `merges`, to `folder` in bfloat16."""
    tokenizer = bpe_tokenizer(merges, MAX_POSITIONS) if merges else build_text_tokenizer()
    (model or load_text()).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_text(
    seed: int = 0,
    ladder: Sequence[TextStage] = TEXT_LADDER,
    on_progress: Callable[[TextProgress], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[Qwen3ForCausalLM, dict[str, Any]]:
    """Trains a model on this Python's own library, or goes on; returns it with its recipe."""
    began, texts = time.process_time(), library(held_out=False)
    merges = learn_merges(texts, VOCABULARY)
    tokenizer = bpe_tokenizer(merges, MAX_POSITIONS)
    ids = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    sampler = TextSampler(ids, seed, MAX_POSITIONS - 1)
    model = build_text_untrained(seed)
    optimizers = _optimizers(model)
    recipe = {"seed": seed, "ladder": [asdict(stage) for stage in ladder]}
    checkpoint = checkpoint or Checkpoint()
    plain = [optimizer for optimizer, _ in optimizers]
    notes = checkpoint.restore(model, plain, sampler.rng, recipe)
    total, step = sum(stage.steps for stage in ladder), notes.get("step", 0)
    reached, began = notes.get("reached", []), began - notes.get("seconds", 0.0)
    for stage in ladder[len(reached) :]:
        means: tuple[float, float] | None = None
        for _ in range(stage.steps):
            rate = min(1.0, (step + 1) / _WARM_UP, _SLOPE * (1 - step / total) + _LAST)
            new = _train_step(model, sampler, stage, optimizers, rate)
            means = (means[0] * 0.9 + new[0] * 0.1, means[1] * 0.9 + new[1] * 0.1) if means else new
            step += 1
            if on_progress and step % 20 == 0:
                seconds = time.process_time() - began
                on_progress(TextProgress(stage.length, step, *means, seconds))
        if means:
            text, quoted = (round(mean, 3) for mean in means)
            reached.append({"length": stage.length, "text": text, "quoted": quoted})
            seconds = time.process_time() - began
            checkpoint.save({"step": step, "reached": reached, "seconds": seconds})
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_norm.weight.mul_(SHARPEN)
    about = {
        **recipe,
        "steps": step,
        "cpu_seconds": round(time.process_time() - began),
        "text": f"library of Python {platform.python_version()}, {sum(map(len, ids))} tokens",
        "reached": reached,
        "sharpen": SHARPEN,
        "merges": merges,
    }
    return model.eval(), about


def _optimizers(model: Qwen3ForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the layers' matrices, AdamW for the rest, each with its learning rate."""
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.dim() == 2 and "embed" not in name]
    others = [weight for name, weight in named if weight.dim() != 2 or "embed" in name]
    return [
        (torch.optim.Muon(matrices, weight_decay=0.01), _MATRIX_LR),
        (torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0), _OTHER_LR),
    ]


def _train_step(
    model: Qwen3ForCausalLM,
    sampler: TextSampler,
    stage: TextStage,
    optimizers: Sequence[tuple[torch.optim.Optimizer, float]],
    rate: float,
) -> tuple[float, float]:
    """One step; returns the loss on running text and on quotes."""
    batch = sampler.batch(stage.batch, stage.length)
    with torch.autocast("cpu", torch.bfloat16):
        # Without a mask attention is causal, whatever jumps there are in the positions.
        plain: dict[str, None] = {"full_attention": None}
        output = model(batch.ids, plain, batch.positions, use_cache=False)
    logits, targets = output.logits[:, :-1].float(), batch.ids[:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    model.zero_grad()
    loss.mean().backward()
    # Muon's steps have a length of their own.
    torch.nn.utils.clip_grad_norm_(optimizers[-1][0].param_groups[0]["params"], 1.0)
    for optimizer, lr in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * rate
        optimizer.step()
    quoted = batch.quoted[:, 1:].flatten()
    return loss[~quoted].mean().item(), loss[quoted].mean().item()
