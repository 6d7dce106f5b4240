"""The trained model: two Llama layers that finish facts they have read anywhere in the prompt.

Training starts from an induction circuit over random sparse codes plus noise, because the same
model started from noise alone stays on its plateau for more steps than two cores do in minutes.
Every weight is then trained on facts in prose, at growing lengths, with jumps in position.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from sgl_sparsekv.models.analytic import PREVIOUS_SCORE
from sgl_sparsekv.models.checkpoint import Checkpoint
from sgl_sparsekv.models.codes import signed_codes
from sgl_sparsekv.models.curriculum import Sampler, Stage, vocabulary
from sgl_sparsekv.models.tokenizer import build_tokenizer
from sgl_sparsekv.models.training import page_loss, tail_forward
from sgl_sparsekv.models.weights import load_weights, read_recipe

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

WEIGHTS = Path(__file__).with_name("trained.safetensors")
MAX_POSITIONS = 131072
HIDDEN, HEAD_DIM, NUM_QO_HEADS, NUM_KV_HEADS = 224, 64, 4, 2
ROPE_THETA = 1e12
_PAIRS = HEAD_DIM // 2
# Where the starting circuit lives in the residual stream; training is free to use the rest.
_CONST, _STOP = 0, 1
_CODE, _PREVIOUS, _OUTPUT = slice(2, 66), slice(66, 130), slice(130, 194)

LADDER = (
    Stage(128, 16, 1e-3, 0.99, 20, 120, 12, 3),
    Stage(512, 4, 1e-3, 0.99, 30, 120, 12, 30, 0.3),
    Stage(1024, 2, 1e-3, 0.99, 80, 240, 8, 48, 0.3),
    Stage(2048, 1, 7e-4, 0.99, 80, 200, 12, 52, 0.3),
    Stage(4096, 1, 3e-4, 0.99, 24, 80, 12, 52, 0.3),
)


@dataclass(frozen=True)
class Progress:
    """Where training stands: `accuracy` is a running mean over answer tokens."""

    length: int
    step: int
    loss: float
    accuracy: float
    seconds: float


def build_untrained(seed: int = 0) -> LlamaForCausalLM:
    """The starting point of training, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=NUM_QO_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
        _write_circuit(model, seed)
    model.generation_config.do_sample = False
    return model


def build_trained_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the trained model."""
    return build_tokenizer(vocabulary(), MAX_POSITIONS)


def load_trained(weights: Path = WEIGHTS) -> LlamaForCausalLM:
    """The shipped model in float32 (its weights are stored as bfloat16), in evaluation mode."""
    model = build_untrained()
    load_weights(model, weights)
    return model.eval()


def recipe(weights: Path = WEIGHTS) -> dict[str, Any]:
    """How the shipped weights came to be: seed, ladder, steps and accuracy by stage."""
    return read_recipe(weights)


def save_trained(folder: str | Path, model: LlamaForCausalLM | None = None) -> None:
    """Writes the shipped model, or `model`, to `folder` in bfloat16 for transformers and SGLang."""
    (model or load_trained()).to(torch.bfloat16).save_pretrained(folder)
    build_trained_tokenizer().save_pretrained(folder)


def train(
    seed: int = 0,
    ladder: Sequence[Stage] = LADDER,
    on_progress: Callable[[Progress], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[LlamaForCausalLM, dict[str, Any]]:
    """Trains a model from its starting point, or from a checkpoint; returns it with its recipe."""
    model = build_untrained(seed)
    sampler = Sampler(seed, MAX_POSITIONS - 1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    recipe = {"seed": seed, "ladder": [asdict(stage) for stage in ladder]}
    checkpoint = checkpoint or Checkpoint()
    notes = checkpoint.restore(model, [optimizer], sampler.rng, recipe)
    step, reached = notes.get("step", 0), notes.get("reached", [])
    began = time.process_time() - notes.get("seconds", 0.0)
    for stage in ladder[len(reached) :]:
        for group in optimizer.param_groups:
            group["lr"] = stage.lr
        mean = 0.0
        for i in range(stage.max_steps):
            loss, right = _train_step(model, sampler, stage, optimizer)
            mean = right if i == 0 else 0.9 * mean + 0.1 * right
            step += 1
            if on_progress and step % 10 == 0:
                seconds = time.process_time() - began
                on_progress(Progress(stage.length, step, loss, mean, seconds))
            if i + 1 >= stage.min_steps and mean >= stage.goal:
                break
        reached.append({"length": stage.length, "steps": i + 1, "accuracy": round(mean, 4)})
        seconds = time.process_time() - began
        checkpoint.save({"step": step, "reached": reached, "seconds": seconds})
    spent = round(time.process_time() - began)
    return model.eval(), {**recipe, "steps": step, "cpu_seconds": spent, "reached": reached}


def _train_step(
    model: LlamaForCausalLM, sampler: Sampler, stage: Stage, optimizer: torch.optim.Optimizer
) -> tuple[float, float]:
    batch = sampler.batch(stage)
    logits, bounds = tail_forward(model, batch, with_bounds=stage.page_weight > 0)
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
    if stage.page_weight > 0:
        loss = loss + stage.page_weight * page_loss(bounds, batch.sources)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    asked = batch.sources >= 0
    right = (logits.argmax(-1) == batch.targets)[asked].float().mean()
    return loss.item(), right.item()


def _write_circuit(model: LlamaForCausalLM, seed: int) -> None:
    """Adds a previous-token layer and a matching layer over random codes of the fact words."""
    inner: Any = model.model
    embed, head = inner.embed_tokens.weight, model.lm_head.weight
    vocab = vocabulary()
    stop = vocab.index(".")
    coded = torch.tensor([stop, *range(len(vocab) // 2, len(vocab))])
    code = torch.cat([signed_codes(len(coded), _PAIRS, seed + h) for h in (1, 2)], 1)
    embed[:, _CONST] = 6.0
    embed[coded, _CODE] += code
    embed[stop, _STOP] = 2.0
    head[coded, _OUTPUT] += code
    head[1, _STOP] = 4.0
    first, second = (layer.self_attn for layer in inner.layers)
    size = torch.tensor(PREVIOUS_SCORE)
    amplitude = (size * math.sqrt(HEAD_DIM)).sqrt() / 13.5
    angle = 1.0 / ROPE_THETA ** (torch.arange(len(size)) / _PAIRS)
    slow = torch.cat([torch.arange(_PAIRS // 2, _PAIRS), torch.arange(48, HEAD_DIM)])
    for h in range(NUM_QO_HEADS):
        start, group = h * HEAD_DIM, h * NUM_KV_HEADS // NUM_QO_HEADS
        first.q_proj.weight[start : start + len(size), _CONST] += amplitude * angle.cos()
        imaginary = slice(start + _PAIRS, start + _PAIRS + len(size))
        first.q_proj.weight[imaginary, _CONST] -= amplitude * angle.sin()
        half = _CODE.start + group * _PAIRS + torch.arange(_PAIRS)
        second.q_proj.weight[start + slow, half] += 3.65
        for attn, block in ((first, _PREVIOUS), (second, _OUTPUT)):
            into = torch.arange(block.start, block.stop)
            attn.o_proj.weight[into, start + torch.arange(HEAD_DIM)] += 1.0 / NUM_QO_HEADS
    for h in range(NUM_KV_HEADS):
        start = h * HEAD_DIM
        first.k_proj.weight[start : start + len(size), _CONST] += amplitude
        half = _PREVIOUS.start + h * _PAIRS + torch.arange(_PAIRS)
        second.k_proj.weight[start + slow, half] += 3.65
        for attn in (first, second):
            from_code = torch.arange(_CODE.start, _CODE.stop)
            attn.v_proj.weight[start + torch.arange(HEAD_DIM), from_code] += 1.0
