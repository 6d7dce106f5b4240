"""A server's native API: what it offers, and one question at a time."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from ..errors import SparseKVError
from .forced import NOTES


class EvaluationStopped(SparseKVError):
    """The evaluation cannot go on; finished cells are kept."""


@dataclass(frozen=True)
class ServerInfo:
    """What a server says about itself.

    Attributes:
        model: folder of its model.
        methods: what a request may choose.
        context_length: tokens of prompt and answer at most; None if it does not say.
        forcing: it accepts custom logit processors.
        versions: of what it runs.
    """

    model: str
    methods: tuple[str, ...]
    context_length: int | None
    forcing: bool
    versions: dict[str, str | None]


@dataclass(frozen=True)
class Reply:
    """What came back for a question.

    Attributes:
        text: what was said.
        output_ids: its tokens, with those that end an answer.
        prompt_tokens: of the prompt.
        cached_tokens: of those, in the radix cache.
        report: the server's echo, `meta_info["sparsekv"]`.
        notes: per token, what `forced.NOTES` says; empty if none were asked for.
    """

    text: str
    output_ids: list[int]
    prompt_tokens: int
    cached_tokens: int
    report: dict[str, Any]
    notes: list[Any]


class Client:
    """Talks to one server."""

    def __init__(self, url: str, timeout: float = 1800.0) -> None:
        """Take its address; `timeout` is in seconds, per answer."""
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must start with http:// or https://, got {url!r}")
        self.url = url.rstrip("/")
        self._timeout = timeout

    def info(self) -> ServerInfo:
        """Ask what it serves.

        Raises:
            EvaluationStopped: it does not answer, or runs without this package's backend.
        """
        model, server = self._call("/model_info"), self._call("/server_info")
        states = server.get("internal_states") or [{}]
        ours = states[0].get("sparsekv")
        if ours is None:
            raise EvaluationStopped(
                f"the server at {self.url} must run with --attention-backend sparsekv"
            )
        return ServerInfo(
            str(model["model_path"]),
            tuple(ours["options"]["methods"]),
            server.get("context_length"),
            bool(server.get("enable_custom_logit_processor")),
            {"sglang": server.get("version"), "sgl_sparsekv": ours.get("version")},
        )

    def generate(self, body: dict[str, Any]) -> Reply:
        """Ask one question; without our options any SGLang server is taken, and nothing reported.

        Raises:
            EvaluationStopped: the server refuses, does not answer, or did not apply our options.
        """
        answer = self._call("/generate", body)
        meta = answer["meta_info"]
        sent = body["sampling_params"]["custom_params"].get("sparsekv", {})
        report = meta.get("sparsekv", None if sent else {})
        if report is None:
            raise EvaluationStopped(f"the server at {self.url} did not say what it read")
        for name, value in sent.items():
            if report.get(name) != value:
                raise EvaluationStopped(
                    f"the server at {self.url} applied {name} {report.get(name)!r}, "
                    f"asked for was {value!r}"
                )
        return Reply(
            answer["text"],
            answer.get("output_ids", []),
            meta["prompt_tokens"],
            meta["cached_tokens"],
            report,
            meta.get(NOTES, []),
        )

    def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            raise EvaluationStopped(f"the server refused: {_message(error)}") from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise EvaluationStopped(f"the server at {self.url} does not answer: {reason}") from None
        except ValueError:
            raise EvaluationStopped(f"the server at {self.url} is no SGLang server") from None
        return found


def _message(error: urllib.error.HTTPError) -> str:
    """What an error response says, on one line."""
    text = error.read().decode(errors="replace")
    try:
        inner = json.loads(text)["error"]
        text = inner["message"] if isinstance(inner, dict) else str(inner)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(text.split())[:400] or f"HTTP {error.code}"
