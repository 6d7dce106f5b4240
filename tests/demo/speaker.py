"""A stand-in for a server that streams: its next token depends on the last one and on who reads."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sgl_sparsekv.evaluation.forced import NOTES, ForcedTokens
from sgl_sparsekv.evaluation.tokens import Tokens

SPREAD = {"quest": 0.5, "pqcache": 0.1, "residual_pq": 0.2, "streaming": 3.0}
"""How far a method's logits lie from dense ones."""
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>"
DIES = 10_000
"""`max_new_tokens` that the stand-in answers with an error."""


def save_model(folder: Path, positions: int = 2048) -> Path:
    """What the second act needs of a model: tokenizer, chat template and context."""
    from sgl_sparsekv.models import build_text_tokenizer

    tokenizer = build_text_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    shape = {"num_hidden_layers": 30, "max_position_embeddings": positions}
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


@contextmanager
def speaker(folder: Path, ours: bool = True) -> Iterator[SimpleNamespace]:
    """A server on a loopback port; with `ours` it reports what was read, as our backend does."""
    tokens = Tokens(folder)
    state = SimpleNamespace(bodies=[], stopped=False, url="", check=lambda: None)
    state.stop = lambda: setattr(state, "stopped", True)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.bodies.append(body)
            if body["sampling_params"]["max_new_tokens"] == DIES:
                self.send_error(400, "too many tokens")
                return
            answers = list(_answers(body, tokens, ours))
            if body.get("stream"):
                data = "".join(f"data: {json.dumps(one)}\n\n" for one in answers)
                data += "data: [DONE]\n\n"
            else:
                data = json.dumps(answers[-1])
            self.send_response(200)
            self.send_header("Content-Length", str(len(data.encode())))
            self.end_headers()
            self.wfile.write(data.encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answers(body: dict[str, Any], tokens: Tokens, ours: bool) -> Iterator[dict[str, Any]]:
    """What is there after each token."""
    sampling, ids = body["sampling_params"], body["input_ids"]
    params = dict(sampling.get("custom_params") or {})
    options = params.get("sparsekv") or {}
    request = SimpleNamespace(extend_end=None, origin_input_ids=ids, customized_info=None)
    params["__req__"] = request
    said: list[int] = []
    for _ in range(sampling["max_new_tokens"]):
        logits = _logits(said[-1] if said else ids[-1], options.get("method", "full"))[None]
        if "custom_logit_processor" in body:
            ForcedTokens()(logits, [params])
        said.append(int(logits.argmax()))
        there = 30 * len(ids) * len(said)
        meta: dict[str, Any] = {"prompt_tokens": len(ids), "cached_tokens": len(ids) - 1}
        meta["completion_tokens"] = len(said)
        meta[NOTES] = (request.customized_info or {}).get(NOTES, [])
        if ours and options:
            read = 1.0 if options["method"] == "full" else 0.07
            counts = {"tokens_in_context": there, "tokens_attended": int(read * there)}
            meta["sparsekv"] = {**options, **counts, "rejected": None}
        yield {"text": tokens.text(said), "output_ids": said, "meta_info": meta}


def _logits(token: int, method: str) -> torch.Tensor:
    """`[2048]`; ids of bytes and merges only, so that nothing ends an answer."""
    generator = torch.Generator().manual_seed(token)
    logits = torch.randn(2048, generator=generator) * 4
    logits += SPREAD.get(method, 0.0) * torch.randn(2048, generator=generator)
    logits[:300] = -30.0
    return logits
