"""What a turn of a session asks for is done or refused; SGLang's own session runs here."""

from array import array
from types import SimpleNamespace
from typing import Any

import pytest

from sgl_sparsekv.backend import turns
from sgl_sparsekv.backend.turns import create_turn


class Request:
    """As much of SGLang's `Req` as a session reads."""

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)
        self.output_ids = array("q", [7])
        self.multimodal_inputs: object = None
        self.finished_reason: object = None
        self.to_finish: object = None

    def finished(self) -> bool:
        return self.finished_reason is not None

    def inherit_mm_token_counts(self, other: object) -> None:
        pass

    def set_finish_with_abort(self, message: str) -> None:
        self.to_finish = message


@pytest.fixture
def session(sglang: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    from sglang.srt.session.session_controller import Session

    monkeypatch.setattr(turns, "active_table", object)
    return Session(1000, "s")


def turn(session: Any, rid: str, finish: bool = True, embeds: Any = None, **params: Any) -> Any:
    """One more request of a session; `goes_on` names the turn that it follows."""
    from sglang.srt.managers.io_struct import SessionParams, TokenizedGenerateReqInput
    from sglang.srt.session.session_controller import Session

    params["rid"] = params.pop("goes_on", None)
    given = dict.fromkeys(TokenizedGenerateReqInput.__struct_fields__)
    own = {
        "rid": rid,
        "input_ids": None if embeds else array("q", [1, 2]),
        "input_embeds": embeds,
        "sampling_params": SimpleNamespace(max_new_tokens=8),
        "session_params": SessionParams(id="s", **params),
    }
    asked = SimpleNamespace(**{**given, **own})
    made = create_turn(Session.create_req, session, asked, None, 100, req_factory=Request)
    if finish and made.to_finish is None:
        made.finished_reason = "length"
    return made


def test_a_session_can_begin_anew(session: Any) -> None:
    turn(session, "a")
    running = turn(session, "b", finish=False, goes_on="a")
    fresh = turn(session, "c", replace=True)
    assert fresh.to_finish is None and list(fresh.origin_input_ids) == [1, 2]
    assert list(session.req_nodes) == ["c"]
    assert running.to_finish is not None


def test_a_turn_goes_on_with_the_one_it_names(session: Any) -> None:
    turn(session, "a")
    onward = turn(session, "b", goes_on="a")
    assert onward.session is session and onward.to_finish is None
    assert list(onward.origin_input_ids) == [1, 2, 7, 1, 2]


def test_a_name_that_was_given_is_refused(session: Any) -> None:
    first = turn(session, "a")
    again = turn(session, "a", goes_on="a")
    assert again.to_finish == "rid must be new in its session, got 'a'" and again.session is None
    assert session.req_nodes["a"].req is first


def test_embeddings_are_refused(session: Any) -> None:
    made = turn(session, "a", embeds=[[0.5]])
    assert made.to_finish is not None and made.to_finish.startswith("input_embeds must be left out")
    assert not session.req_nodes


def test_a_turn_that_sglang_refuses_leaves_the_session_to_the_one_that_runs(session: Any) -> None:
    session.streaming = True
    running = turn(session, "a", finish=False)
    refused = turn(session, "b")
    assert refused.to_finish is not None and refused.session is None
    assert running.session is session and session._inflight


def test_another_backend_is_left_alone(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "active_table", lambda: None)
    turn(session, "a")
    with pytest.raises(RuntimeError, match="changed size"):
        turn(session, "b", replace=True)
