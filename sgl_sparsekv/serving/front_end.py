"""What the process that talks to clients knows of the server; nothing until our backend is chosen.

SGLang's tokenizer manager is built once per front-end process, before the first request and, in an
HTTP server, before its FastAPI application starts: the place to learn the options and to put the
request guard into the application.
"""

import logging
import sys
from dataclasses import dataclass
from typing import Any

from ..config import REQUEST_FIELDS, ServerOptions
from .metrics import ServingMetrics, process_metrics

logger = logging.getLogger(__name__)
HTTP_MODULE = "sglang.srt.entrypoints.http_server"


@dataclass(frozen=True)
class FrontEnd:
    """A front-end process whose server runs our backend.

    Attributes:
        options: the server's.
        vocab_size: token ids of the model are below it.
        metrics: where refusals are counted.
        multimodal: the model takes images and the like, whose placeholders may stand among ids.
    """

    options: ServerOptions
    vocab_size: int
    metrics: ServingMetrics
    multimodal: bool = False

    def count_refusal(self, message: str) -> None:
        """Count a refused request under the field its message names."""
        self.metrics.rejected(_field_of(message))


_active: FrontEnd | None = None


def active() -> FrontEnd | None:
    """This process's front end, or None where the sparsekv backend was not chosen."""
    return _active


def set_active(front_end: FrontEnd | None) -> None:
    """Replace this process's front end."""
    global _active
    _active = front_end


def note_tokenizer_manager(result: object, manager: Any, *args: Any, **kwargs: Any) -> None:
    """After `TokenizerManager.__init__`: from here on requests are checked."""
    from ..backend.flags import options_of

    options = options_of(manager.server_args)
    if options is None:
        return
    metrics = process_metrics(bool(manager.enable_metrics))
    vocab_size, multimodal = manager.model_config.vocab_size, manager.mm_processor is not None
    front_end = FrontEnd(options, int(vocab_size), metrics, multimodal)
    set_active(front_end)
    # Absent from an offline Engine; importing it here would load a web server for nothing.
    http = sys.modules.get(HTTP_MODULE)
    if http is None:
        return
    if http.app.middleware_stack is not None:
        # An engine beside a server that already runs: that server is not this engine's.
        logger.warning("sparsekv: misplaced options are not looked for: the web server has started")
        return
    from .guard import install

    install(http.app, front_end)


def _field_of(message: str) -> str:
    """The label of a refusal: a known name, so that clients cannot grow the label's values."""
    start = message.split(": ", 1)[1] if message.startswith("request ") else message
    name = start.removeprefix("sparsekv.").split(" ", 1)[0].split("[", 1)[0]
    known = (*REQUEST_FIELDS, "input_ids", "prompt", "stop_token_ids", "top_logprobs_num")
    if name in known:
        return name
    return "misplaced" if " belongs in " in message else "unknown"
