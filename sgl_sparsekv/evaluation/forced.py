"""Tokens that a request must say first: how a question is fed in decode.

SGLang's `/generate` takes the tokens of the prompt and gives those of the answer; it has no field
for tokens that decode must follow. A custom logit processor can leave the sampler one choice per
step, which comes to the same: each forced token is read by an ordinary decode step.
"""

import json
import pickle
from typing import Any

KEY = "forced_tokens"
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
            if step < len(params.get(KEY, ())):
                logits[row] = float("-inf")
                logits[row, params[KEY][step]] = 0.0
        return logits


def processor() -> str:
    """Value of `custom_logit_processor`: names the class above, which the server has too."""
    return json.dumps({"callable": pickle.dumps(ForcedTokens).hex()})
