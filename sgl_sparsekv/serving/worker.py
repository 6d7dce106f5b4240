"""The application of SGLang's extra tokenizer processes, with plugins loaded.

`--tokenizer-worker-num` above 1 spawns processes that import an application by a path, which a
variable of SGLang's names, and load no plugins. Where our backend was chosen the path is this one
(`backend/resolution.py`).
"""

from typing import Any

from sglang.srt.entrypoints import http_server
from sglang.srt.plugins import load_plugins
from starlette.middleware import Middleware

from .front_end import front_end_of
from .guard import App, Receive, RequestGuard, Send


class WorkerGuard:
    """The guard of a process whose front end comes to be while its application starts."""

    def __init__(self, app: App) -> None:
        """Wrap `app`."""
        self._app = app
        self._guard: RequestGuard | None = None

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if self._guard is None:
            state = http_server.get_global_state()
            front_end = front_end_of(state.tokenizer_manager) if state is not None else None
            if front_end is not None:
                self._guard = RequestGuard(self._app, front_end)
        await (self._guard or self._app)(scope, receive, send)


load_plugins()
app = http_server.app
# Innermost, as in a server of one process.
app.user_middleware.append(Middleware(WorkerGuard))
