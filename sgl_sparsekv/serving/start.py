"""A front end comes to be with SGLang's tokenizer manager.

The manager is built once per engine, before the first request and, in an HTTP server, before its
FastAPI application starts: the place to learn the options and to put the guard into the
application.
"""

import logging
import sys
from typing import Any

from .front_end import ATTRIBUTE, FrontEnd
from .guard import install
from .metrics import ServingMetrics
from .rules import Limits

logger = logging.getLogger(__name__)
HTTP_MODULE = "sglang.srt.entrypoints.http_server"


def note_tokenizer_manager(result: object, manager: Any, *args: Any, **kwargs: Any) -> None:
    """After `TokenizerManager.__init__`: from here on its requests are checked."""
    from ..backend.flags import options_of

    options = options_of(manager.server_args)
    if options is None:
        return
    front_end = FrontEnd(
        options,
        _limits(manager),
        ServingMetrics(bool(manager.enable_metrics)),
        manager.mm_processor is not None,
    )
    setattr(manager, ATTRIBUTE, front_end)
    # Absent from an offline Engine; importing it here would load a web server for nothing.
    http = sys.modules.get(HTTP_MODULE)
    if http is None or _is_worker(manager):
        return
    if http.app.middleware_stack is not None:
        # An engine beside a server that already runs: that server is not this engine's.
        logger.warning("sparsekv: misplaced options are not looked for: the web server has started")
        return
    install(http.app, front_end)


def _is_worker(manager: Any) -> bool:
    """Whether its application has the guard of `worker.py`, and starts while this runs."""
    return bool(getattr(manager.server_args, "tokenizer_worker_num", 1) > 1)


def _limits(manager: Any) -> Limits:
    model = manager.model_config
    labels = getattr(manager.server_args, "tokenizer_metrics_allowed_custom_labels", None)
    return Limits(
        int(model.vocab_size),
        int(model.context_len),
        int(model.hidden_size),
        frozenset(labels or ()),
    )
