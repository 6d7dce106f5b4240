"""A server that answers `/generate` by looking things up in the prompt, wrong where it is told."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sgl_sparsekv.evaluation import forced
from sgl_sparsekv.evaluation.tokens import Tokens

METHODS = ["full", "quest", "streaming", "mean_std"]


@contextmanager
def fake_server(folder: Path, **change: Any) -> Iterator[SimpleNamespace]:
    """A server for documents of sign posts or of prose, on a loopback port.

    Args:
        folder: what it calls its model.
        change: attributes to start with: `wrong` (method -> rows of the map it fails in), `depths`
            (rows there are), `die_after` (answers until it breaks off), `context_length`,
            `sparsekv` (it runs our backend), `forcing`, `applied` (overrides its echo).
    """
    state = SimpleNamespace(
        wrong={}, depths=5, die_after=None, context_length=None, sparsekv=True, forcing=True,
        applied={}, bodies=[], url="", folder=folder,
    )  # fmt: skip
    vars(state).update(change)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ours = {"sparsekv": {"version": "0", "options": {"methods": METHODS}}}
            server = {
                "internal_states": [ours if state.sparsekv else {}],
                "version": "fake",
                "context_length": state.context_length,
                "enable_custom_logit_processor": state.forcing,
            }
            model = {"model_path": str(folder)}
            self._send(200, model if self.path == "/model_info" else server)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if state.die_after is not None and len(state.bodies) >= state.die_after:
                self.connection.close()
                return
            state.bodies.append(body)
            self._send(200, reply(body, state))

        def _send(self, status: int, answer: object) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

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


def reply(body: dict[str, Any], state: SimpleNamespace) -> dict[str, Any]:
    """The answer, spoilt in the rows that are to be wrong, and what was read for it."""
    options = body["sampling_params"]["custom_params"]["sparsekv"]
    tokens = Tokens(state.folder)
    question, asked = "", []
    if "input_ids" in body:
        body["text"] = tokens.tokenizer.decode(body["input_ids"], skip_special_tokens=True)
        asked = body["sampling_params"]["custom_params"][forced.FORCED]
        question = tokens.tokenizer.decode(asked)
    text = f"{body['text']} {question}"
    look = prose if "secret number" in text else follow
    said, place, there = look(text)
    if int(place * state.depths) in state.wrong.get(options["method"], ()):
        said = f"{said.partition(' ')[0][:-3]} <lost>"
    there *= 3
    method = options["method"]
    attended = there if method == "full" else 3 * options["budget"]
    report = {**options, "tokens_attended": attended, "tokens_in_context": there}
    report |= {"decode_steps": 1, "rejected": None, **state.applied}
    meta = {"prompt_tokens": there // 3 + 1, "cached_tokens": 0, "sparsekv": report}
    own = tokens.tokenizer(f" {said}", add_special_tokens=False).input_ids
    return {"text": f"{question} {said}", "output_ids": [*asked, *own], "meta_info": meta}


def follow(text: str) -> tuple[str, float, int]:
    """Two sign posts from the last word on; where the second lies; words in the text."""
    words = text.split()
    posts = {word[:-1]: i + 1 for i, word in enumerate(words) if len(word) > 1 and word[-1] == ":"}
    first = words[posts[words[-1]]]
    return f"{first} {words[posts[first]]}", posts[first] / len(words), len(words)


def prose(text: str) -> tuple[str, float, int]:
    """The secret number asked for at the end, and more; where it lies; words in the text."""
    place = text.split()[-2]
    found = re.search(rf"number of {place} is (\d+)", text)
    assert found
    return f"{found[1]}. It is", found.start() / len(text), len(text.split())
