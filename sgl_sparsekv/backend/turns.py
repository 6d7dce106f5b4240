"""Turns of a session: what SGLang's `Session.create_req` ends the scheduler on is a 400.

SGLang also leaves a turn that it refuses in the session, where it frees what belongs to the turn
that runs.
"""

from array import array
from collections.abc import Callable
from typing import Any

from .request_table import active_table


def create_turn(
    original: Callable[..., Any], session: Any, req: Any, *args: Any, **kwargs: Any
) -> Any:
    """Around `Session.create_req`: a request of SGLang's, refused if need be."""
    if active_table() is None:
        return original(session, req, *args, **kwargs)
    problem = _problem(session, req)
    if problem is None:
        params = req.session_params
        if params.replace and params.rid is None and not session.streaming:
            _begin_anew(session)
        turn = original(session, req, *args, **kwargs)
    else:
        if req.input_ids is None:
            req.input_ids = array("q", [0])
        # Made in a session of its own, it leaves no trace in this one.
        turn = original(type(session)(0), req, *args, **kwargs)
        turn.set_finish_with_abort(problem)
    if turn.to_finish is not None:
        turn.session = None
    return turn


def _problem(session: Any, req: Any) -> str | None:
    if req.input_embeds is not None:
        return "input_embeds must be left out in a session, which keeps token ids"
    if not session.streaming and req.rid in session.req_nodes:
        return f"rid must be new in its session, got {req.rid!r}"
    return None


def _begin_anew(session: Any) -> None:
    """As SGLang's `replace` means it; it changes the dictionary that it walks."""
    for node in session.req_nodes.values():
        node.abort()
    session.req_nodes.clear()
