"""A server that answers `/generate` by looking things up in the prompt, wrong where it is told."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sgl_sparsekv.evaluation import forced
from sgl_sparsekv.evaluation.needles import tokenizer_of

METHODS = ["full", "quest", "streaming", "mean_std"]


@contextmanager
def fake_server(folder: Path, **change: Any) -> Iterator[SimpleNamespace]:
    """A server for documents of sign posts (`chain`), on a loopback port.

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
    """Follow two sign posts; the second is missed in the rows that are to be wrong."""
    options = body["sampling_params"]["custom_params"]["sparsekv"]
    question = ""
    if "input_ids" in body:
        tokenizer = tokenizer_of(state.folder)
        body["text"] = tokenizer.decode(body["input_ids"], skip_special_tokens=True)
        question = tokenizer.decode(body["sampling_params"]["custom_params"][forced.KEY])
    words = [*body["text"].split(), *question.split()]
    posts = {word[:-1]: i + 1 for i, word in enumerate(words) if len(word) > 1 and word[-1] == ":"}
    first = words[posts[words[-1]]]
    row = int(posts[first] / len(words) * state.depths)
    second = "<lost>" if row in state.wrong.get(options["method"], ()) else words[posts[first]]
    there, method = 3 * len(words), options["method"]
    attended = there if method == "full" else 3 * options["budget"]
    report = {**options, "tokens_attended": attended, "tokens_in_context": there}
    report |= {"decode_steps": 1, "rejected": None, **state.applied}
    meta = {"prompt_tokens": len(words) + 1, "cached_tokens": 0, "sparsekv": report}
    return {"text": f"{question} {first} {second}", "meta_info": meta}
