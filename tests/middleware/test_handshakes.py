from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import open_house
from trio_wskit import Reject, Request, Router, WsKitError
from trio_wskit.limiter import Decision, MemoryRateLimiter, Policy
from trio_wskit.middleware import limit_handshakes


async def refusal(house: Any, request: Request) -> Reject | None:
    client = await house.connect(request)
    refused: Reject | None = client.refused
    return refused


async def test_an_address_that_comes_too_often_is_told_when_to_come_back(autojump_clock: MockClock) -> None:
    told: list[tuple[Request, Decision]] = []
    asked: list[Request] = []

    async def authenticate(request: Request) -> str:
        asked.append(request)
        return "alice"

    def refused_to(request: Request, decision: Decision) -> None:
        told.append((request, decision))

    guard = limit_handshakes(MemoryRateLimiter(Policy(2, 0.4)), authenticate, on_refused=refused_to)
    ann, bob = Request(remote="203.0.113.7"), Request(remote="203.0.113.8")
    async with open_house(Router(), authenticate=guard) as house:
        assert await refusal(house, ann) is None
        assert await refusal(house, ann) is None
        refused = await refusal(house, ann)
        assert refused is not None
        assert (refused.status, refused.body, refused.headers) == (429, "Too many connections", {"Retry-After": "3"})
        assert told == [(ann, Decision(False, 0, 2.5))]
        assert await refusal(house, bob) is None
        await trio.sleep(2.5)
        assert await refusal(house, ann) is None
    assert len(asked) == 4


async def test_who_has_no_address_is_not_limited(autojump_clock: MockClock) -> None:
    async with open_house(Router(), authenticate=limit_handshakes(MemoryRateLimiter(Policy(1, 0.001)))) as house:
        for _ in range(3):
            assert await refusal(house, Request()) is None


async def test_without_authenticate_everybody_gets_in_with_empty_data(autojump_clock: MockClock) -> None:
    router = Router()
    data: list[object] = []

    @router.on_open
    async def note(session: Any) -> None:
        data.append(session.data)

    async with open_house(router, authenticate=limit_handshakes(MemoryRateLimiter(Policy(1, 1)))) as house:
        assert await refusal(house, Request(remote="203.0.113.7")) is None
    assert data == [{}]


async def test_what_authenticate_says_is_what_it_says(autojump_clock: MockClock) -> None:
    async def nobody(request: Request) -> None:
        return None

    async with open_house(Router(), authenticate=limit_handshakes(MemoryRateLimiter(Policy(1, 1)), nobody)) as house:
        refused = await refusal(house, Request(remote="203.0.113.7"))
        assert refused is not None
        assert refused.status == 401


async def test_a_key_of_one_s_own_is_asked(autojump_clock: MockClock) -> None:
    guard = limit_handshakes(MemoryRateLimiter(Policy(1, 0.001)), key=lambda request: request.target)
    async with open_house(Router(), authenticate=guard) as house:
        assert await refusal(house, Request(target="/a")) is None
        assert await refusal(house, Request(target="/b")) is None
        assert await refusal(house, Request(target="/a")) is not None


async def test_a_store_that_does_not_answer_refuses_with_503(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(_: object, key: str, cost: int = 1) -> Decision:
        raise WsKitError("UNAVAILABLE", retry_after=1.5)

    monkeypatch.setattr(MemoryRateLimiter, "consume", down)
    async with open_house(Router(), authenticate=limit_handshakes(MemoryRateLimiter(Policy(1, 1)))) as house:
        refused = await refusal(house, Request(remote="203.0.113.7"))
        assert refused is not None
        assert (refused.status, refused.headers) == (503, {"Retry-After": "2"})


async def test_every_handshake_is_counted_once(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(request: Request) -> None:
        return None

    def key(request: Request) -> str | None:
        if request.target == "/broken":
            raise ValueError("mine")
        return None if request.target == "/free" else "all"

    guard = limit_handshakes(MemoryRateLimiter(Policy(1, 1)), nobody, key=key)
    async with open_house(Router(), authenticate=guard) as house:
        statuses = [
            refused.status
            for target in ("/", "/", "/free", "/broken")
            if (refused := await refusal(house, Request(target=target))) is not None
        ]
        assert statuses == [401, 429, 401, 500]  # who is let through may be refused by authenticate
        assert len(house.logged()) == 1

        async def down(_: object, key: str, cost: int = 1) -> Decision:
            raise WsKitError("UNAVAILABLE")

        monkeypatch.setattr(MemoryRateLimiter, "consume", down)
        await refusal(house, Request())
    counts = guard.counts
    assert (counts.passed, counts.refused, counts.impossible, counts.failed, counts.spent) == (2, 1, 0, 2, 1)
