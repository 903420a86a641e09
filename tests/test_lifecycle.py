"""The life of a connection: what runs when, who is told of what, and what a failure stops."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Add, Client, House, Said, Say, Total, error_of, open_house, raw, settle
from trio_wskit import Admission, Context, Limits, Reject, Request, Router, Session, WsKitError

Next = Callable[[], Awaitable[Any]]


def speaking(log: list[str], *names: str) -> list[Any]:
    """Middleware that says when it is entered and left."""

    def make(name: str) -> Any:
        async def speak(ctx: Context[Any], call_next: Next) -> Any:
            log.append(f"{name} in")
            result = await call_next()
            log.append(f"{name} out")
            return result

        return speak

    return [make(name) for name in names]


async def test_a_life_in_its_order(autojump_clock: MockClock) -> None:
    log: list[str] = []
    router = Router()

    async def authenticate(request: Request) -> dict[str, str]:
        log.append("authenticate")
        return {"name": "ada"}

    def identity(who: Admission) -> str:
        log.append(f"identity {who.data['name']}")
        return "user:ada"

    @router.on_open
    async def first_open(session: Session) -> None:
        await trio.sleep(1)
        log.append(f"open 1 {session.data} {session.identity} {session.close_code}")

    @router.on_open
    async def second_open(session: Session) -> None:
        log.append("open 2")

    @router.on_close
    async def first_close(session: Session) -> None:
        await trio.sleep(1)
        log.append(f"close 1 {session.data} {session.close_code} {session.close_reason}")

    @router.on_close
    async def second_close(session: Session) -> None:
        log.append("close 2")

    router.observe(on_open=lambda _: log.append("observe open"), on_close=lambda _: log.append("observe close"))
    outer, inner, own = speaking(log, "outer", "inner", "own")
    router.use(outer)
    router.use(inner)

    @router.route(Say).use(own).on
    async def say(ctx: Context[Say]) -> None:
        log.append("handler")
        await trio.sleep_forever()

    async with open_house(router, authenticate=authenticate, identity=identity) as house:
        client = await house.connect()
        client.say("sent before it was open")
        await trio.sleep(2)
        client.peer.close(4000, "enough")
        await client.served.wait()
    assert log == [
        "authenticate",
        "identity ada",
        "open 1 {'name': 'ada'} user:ada None",
        "open 2",
        "observe open",
        "outer in",
        "inner in",
        "own in",
        "handler",
        "close 1 {'name': 'ada'} 4000 enough",
        "close 2",
        "observe close",
    ]


async def test_who_is_not_let_in_has_no_life(autojump_clock: MockClock) -> None:
    log: list[str] = []
    router = Router()

    async def authenticate(request: Request) -> None:
        raise Reject(403, "not you")

    async def hook(session: Session) -> None:
        log.append("hook")

    router.on_open(hook)
    router.on_close(hook)
    router.observe(on_open=lambda _: log.append("observer"), on_close=lambda _: log.append("observer"))
    async with open_house(router, authenticate=authenticate) as house:
        assert (await house.connect()).refused is not None
    assert log == []


async def _client_closes(house: House, client: Client) -> None:
    client.peer.close(4001, "mine")


async def _link_breaks(house: House, client: Client) -> None:
    client.peer.cut()


async def _garbage(house: House, client: Client) -> None:
    for _ in range(3):
        client.peer.send_nowait("garbage")


async def _session_closes(house: House, client: Client) -> None:
    await client.session.close(4002, "yours")


async def _app_drains(house: House, client: Client) -> None:
    await house.app.drain(0)


async def _is_cancelled(house: House, client: Client) -> None:
    client.scope.cancel()


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        (_client_closes, 4001, "mine"),
        (_link_breaks, 1006, ""),
        (_garbage, 1008, "too many malformed messages"),
        (_session_closes, 4002, "yours"),
        (_app_drains, 1012, "shutting down"),
        (_is_cancelled, 1001, "going away"),
    ],
)
async def test_close_hooks_and_observers_know_how_it_ended(
    autojump_clock: MockClock, end: Callable[[House, Client], Awaitable[None]], code: int, reason: str
) -> None:
    seen: list[tuple[int | None, str]] = []
    router = Router()

    @router.on_close
    async def note(session: Session) -> None:
        seen.append((session.close_code, session.close_reason))

    router.observe(on_close=lambda session: seen.append((session.close_code, session.close_reason)))
    async with open_house(router, limits=Limits(max_protocol_errors=3)) as house:
        client = await house.connect()
        await end(house, client)
        await client.served.wait()
    assert seen == [(code, reason)] * 2


async def test_middleware_that_does_not_go_on_skips_all_that_is_inside(autojump_clock: MockClock) -> None:
    log: list[str] = []
    router = Router()
    outer, inner, own = speaking(log, "outer", "inner", "own")
    router.use(outer)

    @router.use
    async def stop(ctx: Context[Any], call_next: Next) -> Any:
        log.append("stop")

    router.use(inner)
    router.route(Say).use(own).on(lambda ctx: log.append("handler"))
    async with open_house(router) as house:
        client = await house.connect()
        client.say("")
        assert await client.heard() == []
    assert log == ["outer in", "stop", "outer out"]


async def test_what_middleware_adds_to_the_data_is_there_later(autojump_clock: MockClock) -> None:
    router = Router()

    @router.use
    async def count(ctx: Context[Any], call_next: Next) -> Any:
        ctx.data["count"] = ctx.data.get("count", 0) + 1
        return await call_next()

    router.on(Say)(lambda ctx: ctx.send_nowait(Said(str(ctx.data["count"]))))
    async with open_house(router) as house:
        client, other = await house.connect(), await house.connect()
        client.say("", "", "")
        assert await client.texts() == ["1", "2", "3"]
        other.say("")
        assert await other.texts() == ["1"]


def told_router(told: list[tuple[str, str | None]], log: list[str]) -> Router:
    """Says what its error hooks and its observers were told: the code or the exception, and the context's type."""
    router = Router()

    def tell(error: Exception, ctx: Context[Any] | None) -> None:
        told.append((error.code if isinstance(error, WsKitError) else repr(error), ctx and ctx.type))

    router.on_error(tell)
    router.observe(on_error=tell)

    @router.on(Say)
    def say(ctx: Context[Say]) -> None:
        log.append(ctx.payload.text)
        if ctx.payload.text == "raise":
            raise KeyError("mine")
        if ctx.payload.text == "error":
            ctx.error("NOT_FOUND")

    return router


@pytest.mark.parametrize(
    ("sent", "answer", "told"),
    [
        ("garbage", "INVALID_ARGUMENT", ("INVALID_ARGUMENT", None)),
        ("[]", "INVALID_ARGUMENT", ("INVALID_ARGUMENT", None)),
        ('{"payload": {}}', "INVALID_ARGUMENT", ("INVALID_ARGUMENT", None)),
        (raw("__mine"), "INVALID_ARGUMENT", ("INVALID_ARGUMENT", None)),
        (raw("$mine", call_id="1"), "INVALID_ARGUMENT", ("INVALID_ARGUMENT", None)),
        (raw("NO_SUCH_TYPE"), "UNIMPLEMENTED", ("UNIMPLEMENTED", None)),
        (raw("NO_SUCH_TYPE", call_id="1"), "UNIMPLEMENTED", ("UNIMPLEMENTED", None)),
        (raw("SAY", {"text": 1}), "INVALID_ARGUMENT", ("INVALID_ARGUMENT", "SAY")),
        (raw("SAY", {"text": "raise"}), "INTERNAL", ("KeyError('mine')", "SAY")),
        (raw("SAY", {"text": "error"}), "NOT_FOUND", ("NOT_FOUND", "SAY")),
        (raw("SAY", {"text": "x" * 1000}), "RESOURCE_EXHAUSTED", None),  # that is for the hooks of limits
    ],
)
async def test_error_hooks_are_told_of_all_that_went_wrong_with_the_context_if_there_is_one(
    autojump_clock: MockClock, sent: str, answer: str, told: tuple[str, str | None] | None
) -> None:
    seen: list[tuple[str, str | None]] = []
    log: list[str] = []
    async with open_house(told_router(seen, log), limits=Limits(max_payload_bytes=500)) as house:
        client = await house.connect()
        client.peer.send_nowait(sent)
        client.say("the connection lives")
        (refused,) = await client.heard()
        assert error_of(refused) == answer
        assert seen == ([] if told is None else [told] * 2)
        assert log[-1] == "the connection lives"
        house.logged()


async def test_a_heartbeat_and_an_abort_reach_no_handler_no_middleware_and_no_error_hook(
    autojump_clock: MockClock,
) -> None:
    seen: list[tuple[str, str | None]] = []
    log: list[str] = []
    router = told_router(seen, log)
    (speak,) = speaking(log, "middleware")
    router.use(speak)
    async with open_house(router) as house:
        client = await house.connect()
        client.send("__heartbeat")
        client.send("$ws:abort", call_id="nobody's")
        (beat,) = await client.heard()
        assert beat["type"] == "__heartbeat_ack"
    assert (seen, log) == ([], [])


async def test_an_error_of_middleware_is_told_with_its_context(autojump_clock: MockClock) -> None:
    seen: list[tuple[str, str | None]] = []
    router = told_router(seen, [])

    @router.use
    async def refuse(ctx: Context[Any], call_next: Next) -> Any:
        ctx.error("PERMISSION_DENIED")

    async with open_house(router) as house:
        client = await house.connect()
        client.say("")
        assert [error_of(one) for one in await client.heard()] == ["PERMISSION_DENIED"]
    assert seen == [("PERMISSION_DENIED", "SAY")] * 2


async def test_a_handler_knows_the_latency_of_the_last_ping(autojump_clock: MockClock) -> None:
    router = Router()
    known: list[float | None] = []

    @router.rpc(Add)
    def add(ctx: Context[Add]) -> Total:
        known.append(ctx.latency)
        return Total(0)

    async with open_house(router, limits=Limits(ping_interval=10)) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="1")
        await settle()
        client.peer.delay(0.2)
        await trio.sleep(11)
        client.send("ADD", {}, call_id="2")
        await trio.sleep(1)
        client.peer.delay(0.05)
        await trio.sleep(10)
        client.send("ADD", {}, call_id="3")
        await trio.sleep(1)
        assert [round(one, 6) if one is not None else None for one in known] == [None, 0.4, 0.1]
