"""Whatever is sent to any route: an answer or a refusal, and neighbours that notice nothing."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import pytest
from helpers.random_requests import SESSIONS, Case, RequestMaker
from helpers.soak import SEED, Size, record

from sgl_sparsekv.models.documents import Document
from sgl_sparsekv.tooling.servers import ServerProcess

from .client import Ask, ask_for, assert_whole, body_of, generate, post

pytestmark = pytest.mark.server
CONCURRENCY = 8
SECONDS = 120
"""Until a request must be answered, those beside it included."""
JSON = {"content-type": "application/json"}


@dataclass
class Seen:
    """What came back.

    Attributes:
        statuses: how often each.
        bad: neither an answer nor a refusal: status, text and request.
        wrong: good requests that were answered otherwise than before.
        good: how many good requests were answered.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    good: int = 0


async def send(session: aiohttp.ClientSession, url: str, case: Case) -> tuple[int, str]:
    """Status and text; 0 where there was none."""
    try:
        async with session.post(url + case.route, data=case.body, headers=JSON) as answer:
            if case.endless and answer.status == 200:
                await answer.content.readany()
                return 200, ""
            return answer.status, (await answer.read()).decode(errors="replace")
    except (TimeoutError, aiohttp.ClientError) as error:
        return 0, repr(error)


async def send_all(url: str, cases: list[Case], good: list[tuple[Ask, list[int]]]) -> Seen:
    """Every case, a few at once, and beside them good requests over and over."""
    seen, gate, over = Seen(), asyncio.Semaphore(CONCURRENCY), asyncio.Event()
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def one(case: Case) -> None:
            async with gate:
                status, text = await send(session, url, case)
            seen.statuses[status] += 1
            if not 200 <= status < 500:
                seen.bad.append(f"{status} {text[:200]} to {case}")

        async def neighbours() -> None:
            while not over.is_set():
                for ask, expected in good:
                    async with session.post(f"{url}/generate", json=body_of(ask)) as answer:
                        given = await answer.json()
                    seen.good += 1
                    if given.get("output_ids") != expected:
                        seen.wrong.append(str(given)[:300])
                    await asyncio.sleep(0.2)

        beside = asyncio.create_task(neighbours())
        await asyncio.gather(*(one(case) for case in cases))
        over.set()
        await beside
    return seen


def bombard(server: ServerProcess, document: Document, seed: int, count: int) -> Seen:
    """What comes back from random requests, and whether the server is as it was before."""
    print(f"seed {seed}")
    options = ({"method": "quest", "budget": 512}, {"method": "full"})
    asks = [ask_for(document, q, o) for q in document.questions[:2] for o in options]
    good = [(ask, generate(server.url, ask)["output_ids"]) for ask in asks]
    maker = RequestMaker(seed)
    seen = asyncio.run(send_all(server.url, [maker.case() for _ in range(count)], good))
    print(f"{dict(seen.statuses)}, {seen.good} good ones beside them")
    for session in SESSIONS:
        post(f"{server.url}/close_session", {"session_id": session})
    server.check()
    assert seen.bad == [], "\n".join(seen.bad[:20])
    assert seen.wrong == [] and seen.good >= len(good)
    assert seen.statuses[200] >= count // 10 and seen.statuses[400] >= count // 4
    assert [generate(server.url, ask)["output_ids"] for ask, _ in good] == [e for _, e in good]
    assert_whole(server.url)
    return seen


def fresh_seed() -> int:
    return random.SystemRandom().randrange(2**32)


def test_every_answer_is_a_success_or_a_refusal(
    server: ServerProcess, shared_document: Document, size: Size
) -> None:
    """500 requests over all fields of all routes; make soak: 2,000 with each of three seeds."""
    count, runs = size(500, 2000), []
    for _ in range(size(1, 3)):
        seed = size(SEED, fresh_seed())
        seen = bombard(server, shared_document, seed, count)
        answers = {str(status): many for status, many in sorted(seen.statuses.items())}
        runs.append({"seed": seed, "answers": answers, "good_beside": seen.good})
    if count == 2000:
        record("requests", {"runs": runs})
