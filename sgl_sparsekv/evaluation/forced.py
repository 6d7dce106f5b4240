"""Tokens that decode must follow: how a question is fed in decode, and how text is scored there.

SGLang's `/generate` takes the tokens of the prompt and gives those of the answer; it has no field
for tokens that decode must follow. A custom logit processor can leave the sampler one choice per
step, which comes to the same: each forced token is read by an ordinary decode step. What the model
would have said is written down before that, because SGLang computes log probabilities after it.
"""

import json
import pickle
from typing import Any

FORCED = "forced_tokens"
"""In `custom_params`: token ids, said one per step."""
WATCHED = "forced_watched"
"""In `custom_params`: per step the ids whose log probability is wanted, or how many of the best."""
NOTES = "forced"
"""In `meta_info`: per token of the answer what the model thought of it, `[best id, log probability
of the forced token, ids, their log probabilities]`; None for tokens that were not forced."""
_STEP = "forced_tokens_said"


class ForcedTokens:
    """Called by the server's sampler; duck-typed, as a client needs no SGLang to name it."""

    def __call__(self, logits: Any, custom_param_list: list[dict[str, Any]] | None = None) -> Any:
        """Leave one token where a row still has to follow.

        Args:
            logits: `[bs, vocab_size]`, changed in place.
            custom_param_list: per row the request's own `custom_params`, kept between its steps.
        """
        for row, params in enumerate(custom_param_list or []):
            request = params["__req__"]  # SGLang's `Req`, put there for logit processors
            read = request.extend_end
            if read is not None and read < len(request.origin_input_ids):
                continue  # more of the prompt is to come; what is sampled now is dropped
            step = params.get(_STEP, 0)
            params[_STEP] = step + 1
            forced = step < len(params.get(FORCED, ()))
            if WATCHED in params:
                note = _note(logits[row], params, step) if forced else None
                _write(request, note)
            if forced:
                logits[row] = float("-inf")
                logits[row, params[FORCED][step]] = 0.0
        return logits


def _note(logits: Any, params: dict[str, Any], step: int) -> list[Any]:
    """What a model with `logits` `[vocab_size]` thinks of the token it is made to say."""
    logs = logits.float().log_softmax(-1)
    watched = params[WATCHED]
    if isinstance(watched, int):
        ids = logs.topk(min(watched, logs.numel())).indices
    else:
        ids = logs.new_tensor(watched[step], dtype=int)
    forced = logs[params[FORCED][step]]
    return [int(logs.argmax()), float(forced), ids.tolist(), logs[ids].tolist()]


def _write(request: Any, note: list[Any] | None) -> None:
    """Into what SGLang returns with each token of the request's answer."""
    if request.customized_info is None:
        request.customized_info = {}
    request.customized_info.setdefault(NOTES, []).append(note)


def processor() -> str:
    """Value of `custom_logit_processor`: names the class above, which the server has too."""
    return json.dumps({"callable": pickle.dumps(ForcedTokens).hex()})
