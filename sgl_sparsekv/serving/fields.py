"""Every field of a request, and what it must be.

A number that does not fit its tensor, or a list that does not fit its batch, ends SGLang's
scheduler and with it every request of the server. So each field of `SamplingParams`,
`GenerateReqInput` and `EmbeddingReqInput` stands here under a rule, or is `free` with the reason; a
test walks those classes and fails on a field that is missing.
"""

from typing import Any

import torch

from .patterns import LONGEST_PATTERN, MOST_PATTERNS, MOST_REPEATS, is_patterns, nesting
from .rules import (
    INT32,
    INT64,
    WORDS,
    Limits,
    Rule,
    absent,
    flag,
    free,
    is_finite,
    is_number,
    is_text,
    is_token,
    is_whole,
    mapping,
    number,
    one_of,
    text,
    texts,
    up_to,
    whole,
)

MOST_SAMPLES = 1024
"""Samples of one prompt (`n`): each is a request of its own in every process."""
MOST_BIAS = 1e30
DEEPEST = 128
"""Brackets of a grammar that stand in each other."""
LEAST = 1e-6
"""Smallest divisor and probability: float32 takes logits over it without a loss of sense."""
_INTERNAL = absent("SGLang fills it in")
_NAME = text(512)
_PROCESSOR = free("read by the model's processor of images, video and audio")


def _is_grammar(value: Any, limits: Limits) -> bool:
    """A schema of thousands of levels keeps the grammar's compiler busy without end."""
    return is_text(value, WORDS) and nesting(value) <= DEEPEST


def _is_top_k(value: Any, limits: Limits) -> bool:
    return is_whole(value, 1, 1 << 30) or (is_whole(value, -1, -1))


def _is_bias(value: Any, limits: Limits) -> bool:
    if not isinstance(value, dict) or len(value) > limits.vocab_size:
        return False
    return all(
        _is_key(key, limits) and is_number(bias, -MOST_BIAS, MOST_BIAS)
        for key, bias in value.items()
    )


def _is_key(key: Any, limits: Limits) -> bool:
    if isinstance(key, str):
        return len(key) <= 20 and key.isdecimal() and is_token(int(key), limits)
    return is_token(key, limits)


def _are_tokens(value: Any, limits: Limits) -> bool:
    if not isinstance(value, (list, tuple, set, frozenset)) or len(value) > limits.vocab_size:
        return False
    return all(is_token(token, limits) for token in value)


def _are_positions(value: Any, limits: Limits) -> bool:
    return isinstance(value, list) and all(is_whole(at, 0, limits.context - 1) for at in value)


def _are_embeddings(value: Any, limits: Limits) -> bool:
    """Rows `[n, hidden_size]` of one prompt, n >= 1."""
    return (
        isinstance(value, list)
        and 0 < len(value) <= limits.context
        and all(
            isinstance(row, list)
            and len(row) == limits.hidden_size
            and all(isinstance(channel, float) and is_finite(channel) for channel in row)
            for row in value
        )
    )


def _are_overrides(value: Any, limits: Limits) -> bool:
    """SGLang's own class over a tensor `[n, hidden_size]`; a client can send no such thing."""
    rows = getattr(value, "embeds", None)
    return isinstance(rows, torch.Tensor) and fits_model(rows, limits)


def _are_tensors(value: Any, limits: Limits) -> bool:
    """What SGLang makes of a score's embeddings; a client can send no such thing."""
    return isinstance(value, list) and all(
        isinstance(row, torch.Tensor) and fits_model(row, limits) for row in value
    )


def fits_model(rows: torch.Tensor, limits: Limits) -> bool:
    """Whether rows `[..., hidden_size]` can stand for tokens."""
    return rows.ndim > 0 and rows.shape[-1] == limits.hidden_size and bool(rows.isfinite().all())


def _are_labels(value: Any, limits: Limits) -> bool:
    return isinstance(value, dict) and all(
        name in limits.labels and isinstance(label, str) for name, label in value.items()
    )


_GRAMMAR = Rule(
    f"a text of at most {WORDS} characters with at most {DEEPEST} brackets in each other",
    _is_grammar,
)
_TOKENS = "token ids in [0, {vocab}), at most that many"
_WATERMARK = mapping({"enabled": flag(), "key": _NAME, "context_window": whole(1, INT32)})

SAMPLING: dict[str, Rule] = {
    "max_new_tokens": whole(0, INT32),
    "min_new_tokens": whole(0, INT32),
    "n": Rule(
        f"an integer in [1, {MOST_SAMPLES}]",
        lambda value, _: is_whole(value, 1, MOST_SAMPLES),
        optional=False,
    ),
    "beam_width": Rule(
        "1 with the sparsekv backend (beam search needs pages of one token; take n samples)",
        lambda value, _: is_whole(value, 1, 1),
    ),
    "stop": texts(32, 4096),
    "stop_token_ids": Rule(_TOKENS, _are_tokens),
    "stop_regex": Rule(
        f"at most {MOST_PATTERNS} regular expressions of {LONGEST_PATTERN} bytes, with at most "
        f"{MOST_REPEATS} open repeats, none inside another",
        lambda value, _: is_patterns(value),
    ),
    "temperature": number(0, MOST_BIAS),
    "top_p": number(LEAST, 1),
    "top_k": Rule(f"-1, or an integer in [1, {1 << 30}]", _is_top_k),
    "min_p": number(0, 1),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "repetition_penalty": number(LEAST, 2),
    "json_schema": _GRAMMAR,
    "regex": _GRAMMAR,
    "ebnf": _GRAMMAR,
    "structural_tag": _GRAMMAR,
    "ignore_eos": flag(),
    "skip_special_tokens": flag(),
    "spaces_between_special_tokens": flag(),
    "no_stop_trim": flag(),
    "stream_interval": whole(1, INT32),
    "logit_bias": Rule(
        f"an object of token ids in [0, {{vocab}}) with numbers in [{-MOST_BIAS:g}, {MOST_BIAS:g}]",
        _is_bias,
    ),
    "sampling_seed": whole(-INT64 - 1, INT64),
    "custom_params": mapping(),
    "watermark": _WATERMARK,
    "stop_strs": _INTERNAL,
    "stop_regex_strs": _INTERNAL,
    "stop_str_max_len": _INTERNAL,
    "stop_regex_max_len": _INTERNAL,
    "is_normalized": _INTERNAL,
    "ebnf_full_assistant": flag(),
}
"""Fields of `SamplingParams`."""

REQUEST: dict[str, Rule] = {
    "rid": text(512, each=True),
    "session_id": _NAME,
    "text": free("becomes token ids, which the context bounds"),
    "input_ids": free("checked with the prompts: `requests.check_token_ids`"),
    "input_embeds": Rule(
        "rows of as many finite numbers as the model has channels", _are_embeddings, each=True
    ),
    "image_data": _PROCESSOR,
    "video_data": _PROCESSOR,
    "audio_data": _PROCESSOR,
    "mm_hashes": _PROCESSOR,
    "mm_content_hashes": _PROCESSOR,
    "use_audio_in_video": flag(),
    "video_config": _PROCESSOR,
    "images_config": _PROCESSOR,
    "mm_processor_kwargs": _PROCESSOR,
    "modalities": _PROCESSOR,
    "max_dynamic_patch": whole(0, 1024),
    "min_dynamic_patch": whole(0, 1024),
    "image_max_dynamic_patch": whole(0, 1024),
    "video_max_dynamic_patch": whole(0, 1024),
    "sampling_params": free("its fields stand in SAMPLING"),
    "watermark": Rule(_WATERMARK.text, _WATERMARK.holds, each=True),
    "return_logprob": flag(each=True),
    "logprob_start_len": up_to("context", -1, each=True),
    "top_logprobs_num": up_to("vocab", each=True),
    "token_ids_logprob": Rule(_TOKENS, _are_tokens, each=True),
    "return_sampling_mask": flag(each=True),
    "sampling_logprobs_mode": one_of("selected", "support", each=True),
    "return_text_in_logprobs": flag(),
    "return_flat_raw_top_logprobs": flag(),
    "return_flat_raw_output_top_logprobs": flag(),
    "return_flat_raw_top_logprobs_b64": flag(),
    "stream": flag(),
    "log_metrics": flag(),
    "return_hidden_states": one_of(True, False, "last", each=True),
    "return_routed_experts": flag(),
    "routed_experts_start_len": up_to("context"),
    "return_indexer_topk": flag(),
    "session_params": mapping(
        {
            "id": _NAME,
            "rid": _NAME,
            "offset": whole(0, INT32),
            "replace": flag(),
            "drop_previous_output": flag(),
        }
    ),
    "lora_path": text(each=True),
    "lora_id": _INTERNAL,
    # Code that runs as it is; a server takes it under --enable-custom-logit-processor alone.
    "custom_logit_processor": text(1 << 24, each=True),
    "positional_embed_overrides": Rule(
        "rows of as many finite numbers as the model has channels, as SGLang's PositionalEmbeds",
        _are_overrides,
        each=True,
    ),
    "bootstrap_host": text(512, each=True),
    "bootstrap_port": whole(0, 65535, each=True),
    "bootstrap_room": whole(0, INT64, each=True),
    "bootstrap_pair_key": text(512, each=True),
    "decode_tp_size": whole(1, INT32, each=True),
    "routed_dp_rank": whole(0, INT32),
    "data_parallel_rank": whole(0, INT32),
    "disagg_prefill_dp_rank": whole(0, INT32),
    "routing_key": text(),
    "conversation_id": text(),
    "http_worker_ipc": _INTERNAL,
    "background": flag(),
    "require_reasoning": flag(),
    "max_thinking_tokens": whole(0, INT32),
    "priority": whole(-INT32 - 1, INT32),
    "extra_key": text(each=True),
    "cache_salt": text(each=True),
    "no_logs": flag(),
    "custom_labels": Rule(
        "an object of labels among --tokenizer-metrics-allowed-custom-labels", _are_labels
    ),
    "return_bytes": flag(),
    "return_entropy": flag(),
    "return_prompt_token_ids": flag(),
    "external_trace_header": mapping(),
    "received_time": number(0, 1e12),
    "need_wait_for_mm_inputs": _INTERNAL,
    "num_items_assigned": _INTERNAL,
    "encoder_urls": _INTERNAL,
    "multi_item_delimiter_indices": Rule(
        "positions in the prompt, below {context}", _are_positions, each=True
    ),
    "token_indices_to_pool": Rule(
        "positions in the prompt, below {context}", _are_positions, each=True
    ),
    "kv_hints": free("handed to HiCache's storage, which is not served; SGLang checks its shape"),
    "embed_override_token_id": Rule("a token id in [0, {vocab})", is_token),
    "embed_overrides": Rule("tensors of the model's size", _are_tensors, each=True),
    "is_cross_encoder_request": flag(),
    "dimensions": whole(1, INT32),
    "return_pooled_hidden_states": flag(),
    "decision_layout": free("set by /v1/systemone alone; SGLang refuses it elsewhere"),
}
"""Fields of `GenerateReqInput` and `EmbeddingReqInput`."""

MEDIA = ("image_data", "video_data", "audio_data")
