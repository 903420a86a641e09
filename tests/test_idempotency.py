from __future__ import annotations

from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Add, Client, Total, error_of, open_house
from trio_wskit import Admission, App, ConfigError, Context, Limits, MemoryIdempotency, Request, Router, WsKitError


def counting(runs: list[int], seconds: float = 0, **options: Any) -> Router:
    router = Router()

    @router.rpc(Add, **options)
    async def add(ctx: Context[Add]) -> Total:
        runs.append(ctx.payload.n)
        if seconds:
            await trio.sleep(seconds)
        return Total(len(runs))

    return router


def ask(client: Client, call_id: str, n: int = 0, *, key: str = "k", **meta: object) -> None:
    client.send("ADD", {"n": n}, call_id=call_id, idempotencyKey=key, **meta)


def totals(heard: list[dict[str, Any]]) -> list[tuple[str, int | str]]:
    return [
        (one["meta"]["correlationId"], one["payload"]["n"] if one["type"] == "TOTAL" else error_of(one))
        for one in heard
    ]


def store(**options: Any) -> MemoryIdempotency:
    return MemoryIdempotency(clock=trio.current_time, **options)


async def test_the_same_key_gets_the_recorded_answer_with_its_own_id(autojump_clock: MockClock) -> None:
    runs: list[int] = []
    async with open_house(counting(runs)) as house:
        client = await house.connect()
        ask(client, "1")
        ask(client, "2")
        ask(client, "3", key="other")
        assert totals(await client.heard()) == [("1", 1), ("2", 1), ("3", 2)]
        assert len(runs) == 2


@pytest.mark.parametrize("seconds", [0, 2])
async def test_without_a_key_or_a_store_each_request_runs(autojump_clock: MockClock, seconds: float) -> None:
    runs: list[int] = []
    async with open_house(counting(runs, seconds), idempotency=False) as house:
        client = await house.connect()
        ask(client, "1")
        ask(client, "2")
        client.send("ADD", {}, call_id="3")
        await trio.sleep(3)
        assert len(runs) == 3
        await client.heard()


async def test_a_second_one_in_flight_joins_the_first(autojump_clock: MockClock) -> None:
    runs: list[int] = []
    async with open_house(counting(runs, 5)) as house:
        client = await house.connect()
        ask(client, "1")
        await trio.sleep(2)
        ask(client, "2")
        ask(client, "3")
        await trio.sleep(4)
        assert sorted(totals(await client.heard())) == [("1", 1), ("2", 1), ("3", 1)]
        assert len(runs) == 1


async def test_a_client_that_comes_back_is_still_itself_and_nobody_else(autojump_clock: MockClock) -> None:
    runs: list[int] = []
    kept = store()
    options: dict[str, Any] = {
        "authenticate": _user,
        "identity": user_of,
        "idempotency": kept,
    }
    async with open_house(counting(runs, 5, detached=True), **options) as house:
        ann = await house.connect(_as("ann"))
        ask(ann, "1")
        await trio.sleep(1)
        await ann.leave()
        again, bob = await house.connect(_as("ann")), await house.connect(_as("bob"))
        ask(again, "2")
        ask(bob, "3")
        await trio.sleep(10)
        assert totals(await again.heard()) == [("2", 2)]  # two had begun when it ended
        assert totals(await bob.heard()) == [("3", 2)]
        assert len(runs) == 2
    assert (len(kept), kept.running) == (2, 0)


async def test_by_default_a_key_belongs_to_its_connection(autojump_clock: MockClock) -> None:
    runs: list[int] = []
    async with open_house(counting(runs)) as house:
        for _ in range(2):
            ask(await house.connect(), "1")
        await trio.sleep(1)
        assert len(runs) == 2
        for client in house.clients:
            await client.heard()


async def test_what_was_done_for_a_client_who_has_left_is_recorded(autojump_clock: MockClock) -> None:
    runs: list[int] = []
    router = Router()

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        runs.append(1)
        with ctx.shield(5):
            await trio.sleep(2)
        return Total(7)

    options: dict[str, Any] = {"authenticate": _user, "identity": user_of}
    async with open_house(router, **options) as house:
        ann = await house.connect(_as("ann"))
        ask(ann, "1")
        await trio.sleep(1)
        await ann.leave()
        again = await house.connect(_as("ann"))
        ask(again, "2")
        assert totals(await again.heard()) == [("2", 7)]
        assert len(runs) == 1


async def test_the_same_key_for_another_request_is_refused(autojump_clock: MockClock) -> None:
    runs: list[int] = []
    async with open_house(counting(runs, 1)) as house:
        client = await house.connect()
        ask(client, "1", 1)
        ask(client, "2", 2)
        await trio.sleep(2)
        ask(client, "3", 3)
        assert sorted(totals(await client.heard()), key=str) == [
            ("1", 1),
            ("2", "ALREADY_EXISTS"),
            ("3", "ALREADY_EXISTS"),
        ]
        assert runs == [1]


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (WsKitError("NOT_FOUND", "no such thing", {"id": 5}), True),
        (WsKitError("UNAVAILABLE"), False),
        (KeyError("secret"), False),
        (OSError(), True),
    ],
)
async def test_an_error_is_recorded_where_a_retry_is_pointless(
    autojump_clock: MockClock, error: Exception, recorded: bool
) -> None:
    runs: list[int] = []
    router = Router()
    router.errors.register(OSError, "FAILED_PRECONDITION")

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        runs.append(1)
        raise error

    async with open_house(router) as house:
        client = await house.connect()
        ask(client, "1")
        ask(client, "2")
        first, second = await client.heard()
        assert first["payload"] == second["payload"]
        assert (first["meta"]["correlationId"], second["meta"]["correlationId"]) == ("1", "2")
        assert len(runs) == (1 if recorded else 2)
        house.logged()


async def test_what_was_cancelled_is_not_recorded_and_who_joined_runs_it(autojump_clock: MockClock) -> None:
    runs: list[int] = []
    async with open_house(counting(runs, 5)) as house:
        client = await house.connect()
        ask(client, "1")
        ask(client, "2")
        ask(client, "3", timeoutMs=1_000)
        await trio.sleep(2)
        client.send("$ws:abort", correlationId="1")
        await trio.sleep(10)
        assert totals(await client.heard()) == [("3", "DEADLINE_EXCEEDED"), ("1", "CANCELLED"), ("2", 2)]


async def test_an_answer_is_forgotten_after_its_time(autojump_clock: MockClock) -> None:
    runs: list[int] = []
    async with open_house(counting(runs), idempotency=store(max_age=60)) as house:
        client = await house.connect()
        for call_id, wait in (("1", 59), ("2", 2), ("3", 0)):
            ask(client, call_id)
            await trio.sleep(wait)
        assert totals(await client.heard()) == [("1", 1), ("2", 1), ("3", 2)]


async def test_a_reply_given_early_is_recorded_too(autojump_clock: MockClock) -> None:
    router = Router()
    runs: list[int] = []

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        runs.append(1)
        await ctx.reply(Total(5), meta={"more": True})
        return Total(6)

    async with open_house(router) as house:
        client = await house.connect()
        ask(client, "1")
        ask(client, "2")
        heard = await client.heard()
        assert totals(heard) == [("1", 5), ("2", 5)]
        assert [one["meta"]["more"] for one in heard] == [True, True]
        assert len(runs) == 1


async def test_a_validation_failure_takes_no_key(autojump_clock: MockClock) -> None:
    runs: list[int] = []
    async with open_house(counting(runs)) as house:
        client = await house.connect()
        client.send("ADD", {"n": "x"}, call_id="1", idempotencyKey="k")
        ask(client, "2")
        assert totals(await client.heard()) == [("1", "INVALID_ARGUMENT"), ("2", 1)]


async def test_a_store_that_fails_is_the_servers_fault(autojump_clock: MockClock) -> None:
    class Broken:
        async def begin(self, key: str, fingerprint: bytes) -> bytes | None:
            await trio.lowlevel.checkpoint()
            raise OSError("secret")

        async def finish(self, key: str, fingerprint: bytes, answer: bytes | None) -> None:
            raise AssertionError("never")

    async with open_house(counting([]), idempotency=Broken()) as house:
        client = await house.connect()
        ask(client, "1")
        assert totals(await client.heard()) == [("1", "INTERNAL")]
        assert len(house.logged()) == 1


async def test_requests_with_keys_are_in_flight_like_others(autojump_clock: MockClock) -> None:
    async with open_house(counting([], 5), limits=Limits(max_in_flight=2)) as house:
        client = await house.connect()
        for n in range(3):
            ask(client, str(n), key=str(n))
        assert totals(await client.heard()) == [("2", "RESOURCE_EXHAUSTED")]


@pytest.mark.parametrize("bound", ["max_keys", "max_bytes", "max_age"])
def test_every_bound_is_above_0(bound: str) -> None:
    with pytest.raises(ConfigError, match=bound):
        MemoryIdempotency(**cast("Any", {bound: 0}))


def test_an_app_takes_a_store_or_a_choice() -> None:
    kept = MemoryIdempotency()
    apps: list[Any] = [App(Router(), idempotency=kept), App(Router(), idempotency=False), App(Router())]
    assert apps[0]._idempotency is kept
    assert apps[1]._idempotency is None
    assert isinstance(apps[2]._idempotency, MemoryIdempotency)


def user_of(who: Admission) -> str:
    user: str = who.data["user"]
    return user


def _as(user: str) -> Request:
    return Request(target=f"/{user}")


async def _user(request: Request) -> dict[str, str]:
    await trio.lowlevel.checkpoint()
    return {"user": request.path}
