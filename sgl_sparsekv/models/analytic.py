"""The analytic model: a Llama whose weights are written down, not trained.

Layer 0 copies the previous token's key code to each place (a previous-token head made of the fast
rotary channels); the retrieving layer matches the last word's code against those copies (on the
slow rotary channels, which hardly turn over the whole context) and puts out what stands there. So
"Ashbank: Oakford" read anywhere makes "Ashbank" be followed by "Oakford", and so on from place to
place. A page that is withheld is not guessed: the first token attracts what finds no match, and the
answer is `<lost>`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sgl_sparsekv.models import codes, words
from sgl_sparsekv.models.tokenizer import SPECIALS, WORD_OR_KEY, build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LOST = "<lost>"
HIDDEN, HEAD_DIM, NUM_QO_HEADS = 256, 64, 4
PAIRS = HEAD_DIM // 2
ROPE_THETA = 1e12
# Blocks of the residual stream.
_CONST, _SLACK = 0, 1
_IDENTITY = slice(2, 66)
_SOURCE = slice(66, 98)
_QUERY = slice(98, 130)
_PREVIOUS = slice(130, 162)
_OUTPUT = slice(162, 226)
_SINK = codes.CODE_DIM  # the last channel of the source, query and previous blocks
# Scores in nats: the previous token against the rest, and a full match against none.
PREVIOUS_SCORE = (90.0, 45.0, 25.0, 20.0, 20.0, 20.0, 15.0, 15.0, 15.0)
_MATCH_SCORE = 64.0
_SINK_SHARE = 0.75
_CONST_SIZE = 12.0


@dataclass(frozen=True)
class AnalyticConfig:
    """Shape and difficulty of the analytic model.

    `code` is "sparse" (easy for every method), "dense" or "gaussian". `retrieve_layer` answers; the
    layers that are neither it nor layer 0 do nothing.
    """

    num_layers: int = 3
    retrieve_layer: int = 2
    num_kv_heads: int = 2
    num_places: int = 1024
    code: codes.CodeKind = "sparse"
    max_positions: int = 131072
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.retrieve_layer < self.num_layers:
            raise ValueError(
                f"retrieve_layer must be from 1 to num_layers - 1 = {self.num_layers - 1}, "
                f"got {self.retrieve_layer}"
            )
        if self.num_kv_heads not in (1, 2, 4):
            raise ValueError(f"num_kv_heads must be 1, 2 or 4, got {self.num_kv_heads}")
        if not 64 <= self.max_positions <= 131072:
            raise ValueError(f"max_positions must be from 64 to 131072, got {self.max_positions}")
        words.place_names(self.num_places)
        codes.check_kind(self.code)


def vocabulary(num_places: int) -> list[str]:
    """Specials, `<lost>`, filler, the places, and the places as keys ("Ashbank:")."""
    places = words.place_names(num_places)
    return [*SPECIALS, LOST, *words.filler_words(), *places, *(f"{place}:" for place in places)]


def build_analytic(
    config: AnalyticConfig | None = None, dtype: torch.dtype = torch.float32
) -> LlamaForCausalLM:
    """The model in `dtype`, in evaluation mode; its weights depend on `config` alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = config or AnalyticConfig()
    llama = LlamaConfig(
        vocab_size=len(vocabulary(config.num_places)),
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=config.num_layers,
        num_attention_heads=NUM_QO_HEADS,
        num_key_value_heads=config.num_kv_heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=config.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        dtype="float32",
    )
    model = LlamaForCausalLM(llama)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        _write_tokens(model, config)
        layers: Any = model.model.layers
        _write_previous_heads(layers[0].self_attn)
        _write_match_heads(layers[config.retrieve_layer].self_attn)
    model.generation_config.do_sample = False
    return cast_weights(model, dtype).eval()


def cast_weights(model: LlamaForCausalLM, dtype: torch.dtype) -> LlamaForCausalLM:
    """Casts the weights; the rotary frequencies stay float32, as after loading from a folder."""
    rotary: Any = model.model.rotary_emb
    frequencies = rotary.inv_freq.clone()
    model = model.to(dtype)
    rotary.inv_freq = frequencies
    return model


def build_analytic_tokenizer(config: AnalyticConfig | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer that goes with `build_analytic`."""
    config = config or AnalyticConfig()
    return build_tokenizer(vocabulary(config.num_places), config.max_positions, WORD_OR_KEY)


def save_analytic(
    folder: str | Path, config: AnalyticConfig | None = None, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Writes model and tokenizer to `folder`, ready for transformers and SGLang."""
    model = build_analytic(config, dtype)
    model.save_pretrained(folder)
    build_analytic_tokenizer(config).save_pretrained(folder)


def _write_tokens(model: LlamaForCausalLM, config: AnalyticConfig) -> None:
    """Embedding and output head: which codes each word carries, and which word a code names."""
    embed: Any = model.model.embed_tokens.weight
    head: Any = model.lm_head.weight
    keys = codes.key_codes(config.code, config.num_places, config.seed)
    names = codes.identity_codes(config.num_places + 1, HEAD_DIM, config.seed)
    first_key = embed.shape[0] - config.num_places
    first_place = first_key - config.num_places
    code = slice(_QUERY.start, _QUERY.start + codes.CODE_DIM)
    embed[first_place:first_key, code] = keys
    embed[first_place:first_key, _IDENTITY] = names[1:] / 8
    code = slice(_SOURCE.start, _SOURCE.start + codes.CODE_DIM)
    embed[first_key:, code] = keys
    embed[0, _IDENTITY] = names[0] / 8
    embed[0, _SOURCE.start + _SINK] = 1.0
    embed[:, _CONST] = _CONST_SIZE
    # Every word gets the same length, so RMSNorm is one known factor.
    total = HIDDEN - 1.0
    embed[:, _SLACK] = (total - embed.square().sum(-1)).sqrt()
    head[first_place:first_key, _OUTPUT] = names[1:] * 4
    # Half a miss is a miss: the head that lost its page outvotes the head that kept it.
    head[len(SPECIALS), _OUTPUT] = names[0] * 6


def _inverse_frequencies() -> torch.Tensor:
    return 1.0 / ROPE_THETA ** (torch.arange(PAIRS, dtype=torch.float64) / PAIRS)


def _write_previous_heads(attn: Any) -> None:
    """Every head looks one place back: score = sum over pairs of a_i cos(w_i (distance - 1))."""
    size = torch.tensor(PREVIOUS_SCORE, dtype=torch.float64)
    amplitude = (size * math.sqrt(HEAD_DIM)).sqrt() / _CONST_SIZE
    angle = _inverse_frequencies()[: len(size)]
    for start in range(0, attn.q_proj.weight.shape[0], HEAD_DIM):
        real = attn.q_proj.weight[start : start + len(size), _CONST]
        imag = attn.q_proj.weight[start + PAIRS : start + PAIRS + len(size), _CONST]
        real.copy_(amplitude * angle.cos())
        imag.copy_(-amplitude * angle.sin())
    for start in range(0, attn.k_proj.weight.shape[0], HEAD_DIM):
        attn.k_proj.weight[start : start + len(size), _CONST] = amplitude.float()
        _eye(attn.v_proj.weight, start, _SOURCE)
    for start in range(0, attn.o_proj.weight.shape[1], HEAD_DIM):
        _eye(attn.o_proj.weight.T, start, _PREVIOUS, 1.0 / NUM_QO_HEADS)


def _write_match_heads(attn: Any) -> None:
    """Every head matches the query code with the previous token's, on the slow channels."""
    scale = math.sqrt(_MATCH_SCORE * math.sqrt(HEAD_DIM))
    slow = torch.cat([torch.arange(PAIRS // 2, PAIRS), torch.arange(PAIRS + PAIRS // 2, HEAD_DIM)])
    content, sink = slow[:_SINK], slow[_SINK]
    for start in range(0, attn.q_proj.weight.shape[0], HEAD_DIM):
        rows = attn.q_proj.weight[start : start + HEAD_DIM]
        rows[content, torch.arange(_QUERY.start, _QUERY.start + codes.CODE_DIM)] = scale
        rows[sink, _CONST] = scale * _SINK_SHARE / _CONST_SIZE
    for start in range(0, attn.k_proj.weight.shape[0], HEAD_DIM):
        rows = attn.k_proj.weight[start : start + HEAD_DIM]
        rows[content, torch.arange(_PREVIOUS.start, _PREVIOUS.start + codes.CODE_DIM)] = scale
        rows[sink, _SOURCE.start + _SINK] = scale
        _eye(attn.v_proj.weight, start, _IDENTITY)
    for start in range(0, attn.o_proj.weight.shape[1], HEAD_DIM):
        _eye(attn.o_proj.weight.T, start, _OUTPUT, 1.0 / NUM_QO_HEADS)


def _eye(weight: torch.Tensor, row: int, block: slice, size: float = 1.0) -> None:
    """Writes `size` times the identity into `weight` at `row` and the columns of `block`."""
    count = block.stop - block.start
    weight[row + torch.arange(count), torch.arange(block.start, block.stop)] = size
