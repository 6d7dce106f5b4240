"""A prompt behind which the KV cache has no room is refused, and no other."""

from types import SimpleNamespace
from typing import Any

import pytest

from sgl_sparsekv.backend import request_table
from sgl_sparsekv.config import ServerOptions
from sgl_sparsekv.serving.room import Room, refuse_without_room


class Request:
    """As much of SGLang's `Req` as is read."""

    def __init__(self, length: int, asked: int | None) -> None:
        self.origin_input_ids = [0] * length
        self.sampling_params = SimpleNamespace(max_new_tokens=asked)
        self.to_finish: str | None = None

    def finished(self) -> bool:
        return False

    def set_finish_with_abort(self, message: str) -> None:
        self.to_finish = message


def clip(scheduler: Any, request: Any) -> None:
    """SGLang's arithmetic: whole pages of prompt, one page and one token kept back."""
    pages = -(-len(request.origin_input_ids) // scheduler.page_size)
    room = scheduler.max_total_num_tokens - (pages + 1) * scheduler.page_size - 1
    asked = request.sampling_params.max_new_tokens
    request.sampling_params.max_new_tokens = max(0, min(1 << 30 if asked is None else asked, room))


def told(length: int, asked: int | None, truncates: bool = False) -> str | None:
    scheduler = SimpleNamespace(
        max_total_num_tokens=4096,
        page_size=64,
        server_args=SimpleNamespace(allow_auto_truncate=truncates),
    )
    request = Request(length, asked)
    refuse_without_room(clip, scheduler, request)
    return request.to_finish


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_table, "_active", request_table.RequestTable(ServerOptions()))


@pytest.mark.parametrize("asked", [1, 60, None])
def test_no_room_for_a_token_is_a_refusal(serving: None, asked: int | None) -> None:
    message = told(4027, asked)
    assert message is not None
    assert message.startswith("prompt must leave room") and "4027 tokens" in message


@pytest.mark.parametrize(("length", "asked"), [(3968, 60), (4027, 0), (10, None)])
def test_what_can_be_answered_is(serving: None, length: int, asked: int | None) -> None:
    assert told(length, asked) is None


def test_prompts_that_sglang_cuts_itself_are_left_to_it(serving: None) -> None:
    assert told(4027, 60, truncates=True) is None


def test_another_backend_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_table, "_active", None)
    assert told(4027, 60) is None


def answered(room: Room, prompt: int) -> int:
    """Tokens that SGLang gives behind a prompt: `clip`, and what it leaves free of the context."""
    scheduler = SimpleNamespace(max_total_num_tokens=room.cache, page_size=room.page_size)
    request = Request(prompt, None)
    clip(scheduler, request)
    longest = min(room.context, room.cache) - 1
    if prompt >= longest - 5:
        return 0
    return min(request.sampling_params.max_new_tokens, longest - prompt - 1)


@pytest.mark.parametrize(
    "room",
    [Room(500, 1000, 64), Room(5000, 1024, 64), Room(512, 512, 1), Room(300, 320, 16),
     Room(300, 301, 1), Room(100, 96, 32), Room(64, 64, 64)],
)  # fmt: skip
def test_what_a_start_says_is_what_sglang_does(room: Room) -> None:
    answers = {prompt: answered(room, prompt) for prompt in range(1, room.cache + 1)}
    assert room.prompt == max((p for p, most in answers.items() if most), default=0)
    short = [p + most + 1 for p, most in answers.items() if p <= room.prompt]
    assert room.whole < min(short, default=1)
    assert f"up to {room.whole} tokens" in room.told()
    assert f"more than {room.prompt} are" in room.told()


def test_no_more_is_promised_than_must_be() -> None:
    """One token in a new page costs the page, and one more is kept back."""
    room = Room(5000, 1024, 64)
    assert min(p + answered(room, p) for p in range(1, room.prompt + 1)) == room.whole == 896
