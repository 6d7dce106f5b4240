"""Options reach the server from every thread that runs a program, and from no other program."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
import sglang as sgl
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint

from sgl_sparsekv.serving.frontend import SparseKVEndpoint, sparse_gen


class FakeServer(ThreadingHTTPServer):
    """Answers like SGLang and remembers what was asked."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def options(self) -> list[Any]:
        """What each generation asked of us; None where it asked nothing."""
        generations = [body["sampling_params"] for body in self.seen]
        return [
            (params.get("custom_params") or {}).get("sparsekv")
            for params in generations
            if params["max_new_tokens"]
        ]


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        self._reply(json.dumps({"model_path": "toy"}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append(body)
        answer = json.dumps({"text": "ok", "meta_info": {"sparsekv": {"method": "quest"}}})
        self._reply(f"data: {answer}\n\ndata: [DONE]\n\n" if body.get("stream") else answer)

    def _reply(self, text: str) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FakeServer]:
    made = FakeServer()
    Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@sgl.function
def plain(s: Any, text: str) -> Any:
    s += text + sgl.gen("answer", max_tokens=4)


@sgl.function
def mixed(s: Any, text: str) -> Any:
    s += text + sgl.gen("first", max_tokens=4)
    s += sparse_gen("second", sparsekv={"method": "full"}, max_tokens=4)
    s += sgl.gen("third", max_tokens=4)


@sgl.function
def forked(s: Any, text: str) -> Any:
    s += text
    forks = s.fork(2)
    for fork in forks:
        fork += sgl.gen("answer", max_tokens=4)
    forks.join()


def test_every_generation_of_an_endpoint(server: FakeServer) -> None:
    state = plain.run("x", backend=SparseKVEndpoint(server.url, budget=512))
    assert state["answer"] == "ok" and server.options() == [{"budget": 512}]
    assert state.get_meta_info("answer")["sparsekv"] == {"method": "quest"}


def test_one_generation_wins_over_its_endpoint(server: FakeServer) -> None:
    mixed.run("x", backend=SparseKVEndpoint(server.url, budget=512, method="quest")).sync()
    usual = {"budget": 512, "method": "quest"}
    assert server.options() == [usual, {"budget": 512, "method": "full"}, usual]


def test_threads_of_a_batch_and_forks(server: FakeServer) -> None:
    endpoint = SparseKVEndpoint(server.url, budget=512)
    plain.run_batch([{"text": str(i)} for i in range(12)], backend=endpoint, num_threads=4)
    forked.run("x", backend=endpoint).sync()
    assert server.options() == [{"budget": 512}] * 14


def test_streams(server: FakeServer) -> None:
    state = plain.run("x", backend=SparseKVEndpoint(server.url, window=32), stream=True)
    assert "".join(state.text_iter()) == "xok"
    assert server.options() == [{"window": 32}]


def test_two_endpoints_do_not_mix(server: FakeServer) -> None:
    one = SparseKVEndpoint(server.url, budget=512, sink=32)
    other = one.with_options(budget=0.5)
    plain.run("x", backend=one).sync()
    plain.run("x", backend=other).sync()
    plain.run("x", backend=SparseKVEndpoint(server.url)).sync()
    plain.run("x", backend=RuntimeEndpoint(server.url)).sync()
    assert server.options() == [
        {"budget": 512, "sink": 32},
        {"budget": 0.5, "sink": 32},
        None,
        None,
    ]


def test_dtype_still_constrains(server: FakeServer) -> None:
    @sgl.function
    def number(s: Any) -> Any:
        s += sparse_gen("n", sparsekv={}, dtype=int, max_tokens=4)

    number.run(backend=SparseKVEndpoint(server.url)).sync()
    assert server.options() == [{}]
    assert server.seen[-1]["sampling_params"]["regex"] == r"[-+]?[0-9]+[ \n]*"


def test_unknown_options_are_refused_before_anything_is_sent(server: FakeServer) -> None:
    with pytest.raises(ValueError, match="option must be one of"):
        SparseKVEndpoint(server.url, bugdet=512)
    with pytest.raises(ValueError, match="got 'bugdet'"):
        sparse_gen("x", sparsekv={"bugdet": 1})
    with pytest.raises(ValueError, match="choices must be left"):
        sparse_gen("x", sparsekv={}, choices=["a", "b"])
    assert server.seen == []


def test_another_backend_does_not_drop_the_options_silently(server: FakeServer) -> None:
    state = mixed.run("x", backend=RuntimeEndpoint(server.url))
    state.sync()
    assert "Invalid dtype" in str(state.error())
