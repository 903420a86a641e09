from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import NOW, Add, Client, Said, Say, Total, error_of, open_house, raw, settle
from trio_wskit import CloseError, ConnectionClosed, Context, Limits, Router, Session, WsKitError
from trio_wskit._services import LimitExceeded
from trio_wskit.pubsub import MemoryPubSub
from trio_wskit.transports.memory import MemoryTransport, memory_link

Hook = Callable[[Session], Awaitable[None]]


def echo(router: Router | None = None) -> Router:
    """SAY is answered with SAID."""
    router = router or Router()
    router.on(Say)(lambda ctx: ctx.send_nowait(Said(ctx.payload.text)))
    return router


def noted(log: list[str], name: str, error: Exception | None = None) -> Hook:
    async def hook(session: Session) -> None:
        log.append(name)
        if error is not None:
            raise error

    return hook


# --- on_open ---------------------------------------------------------------------------------------------------------


async def test_open_hooks_run_in_order_before_the_first_message(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []

    @router.on_open
    async def slow(session: Session) -> None:
        log.append("begin")
        await trio.sleep(5)
        await session.send(Said("welcome"))
        log.append("end")

    router.on_open(noted(log, "second"))
    router.on(Say)(lambda ctx: log.append("message"))
    async with open_house(router) as house:
        client = await house.connect()
        client.say("")
        client.send("__heartbeat")
        await settle()
        assert log == ["begin"]
        assert await client.receive() == {"type": "__heartbeat_ack", "meta": {"ts": NOW}}
        await trio.sleep(6)
        assert log == ["begin", "end", "second", "message"]
        assert await client.texts() == ["welcome"]


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [(CloseError(4001, "not you"), 4001, "not you"), (CloseError(), 1000, ""), (KeyError(), 1011, "Internal error")],
)
async def test_an_open_hook_that_raises_closes_the_connection(
    autojump_clock: MockClock, error: Exception, code: int, reason: str
) -> None:
    router = Router()
    log: list[str] = []
    told: list[tuple[Exception, Context[Any] | None]] = []
    router.on_open(noted(log, "first", error))
    router.on_open(noted(log, "never"))
    router.on_close(noted(log, "closed"))
    router.on_error(lambda error, ctx: told.append((error, ctx)))
    router.on(Say)(lambda ctx: log.append("message"))
    router.observe(on_open=lambda _: log.append("opened?"), on_close=lambda _: log.append("observed?"))
    async with open_house(router) as house:
        client = await house.connect()
        assert await client.closed() == (code, reason)
        await client.served.wait()
        assert log == ["first", "closed"]  # no observer was told that it was open, so none is told of the close
        if isinstance(error, CloseError):
            assert told == []
        else:
            assert told == [(error, None)]
            assert house.logged() == [f"a hook failed for client {client.client_id}"]


async def test_an_open_hook_that_raises_a_code_that_cannot_be_sent_closes_as_an_error(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    router.on_open(noted([], "", CloseError(1006)))
    async with open_house(router) as house:
        client = await house.connect()
        assert await client.closed() == (1011, "Internal error")
        assert house.logged() == [f"the session of client {client.client_id} failed"]


async def test_a_client_that_leaves_cancels_the_open_hook_and_is_cleaned_up(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []

    @router.on_open
    async def slow(session: Session) -> None:
        try:
            await trio.sleep_forever()
        finally:
            log.append("cancelled")

    router.on_open(noted(log, "never"))
    router.on_close(noted(log, "closed"))
    router.observe(on_open=lambda _: log.append("opened?"))
    async with open_house(router) as house:
        client = await house.connect()
        await client.leave()
        assert log == ["cancelled", "closed"]


async def test_an_open_hook_that_sends_to_who_has_left_ends_quietly(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on_open
    async def slow(session: Session) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
            await session.send(Said())

    async with open_house(router) as house:
        client = await house.connect()
        await client.leave()
    assert house.logged() == []


async def test_an_open_hook_may_close(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []

    @router.on_open
    async def refuse(session: Session) -> None:
        await session.send(Said("no"))
        await session.close(4000, "no")

    router.observe(on_open=lambda _: log.append("opened?"))
    async with open_house(router) as house:
        client = await house.connect()
        assert await client.receive() == {"type": "SAID", "meta": {"timestamp": NOW}, "payload": {"text": "no"}}
        assert await client.closed() == (4000, "no")
        assert log == []


# --- on_close --------------------------------------------------------------------------------------------------------


async def test_close_hooks_run_in_order_after_the_last_handler_with_the_topics_still_there(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    log: list[str] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.topics.subscribe("room:1")
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            log.append("handler")

    @router.on_close
    async def first(session: Session) -> None:
        log.append(f"{session.close_code} {session.close_reason} {[*session.topics]}")
        with pytest.raises(ConnectionClosed) as caught:
            await session.send(Said())
        assert caught.value.code == 4000

    router.on_close(noted(log, "second"))
    router.observe(on_close=lambda session: log.append(f"observer {len(session.topics)}"))
    async with open_house(router) as house:
        client = await house.connect()
        client.say("")
        await settle()
        client.peer.close(4000, "enough")
        await client.served.wait()
    assert log == ["handler", "4000 enough ['room:1']", "second", "observer 0"]


async def test_every_close_hook_runs_whatever_one_raises(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []
    errors: list[Exception] = []
    router.on_error(lambda error, ctx: errors.append(error))
    router.on_close(noted(log, "a", KeyError("x")))
    router.on_close(noted(log, "b", ConnectionClosed()))
    router.on_close(noted(log, "c"))
    async with open_house(router) as house:
        client = await house.connect()
        await client.leave()
        assert log == ["a", "b", "c"]
        assert [repr(error) for error in errors] == ["KeyError('x')"]
        assert house.logged() == [f"a hook failed for client {client.client_id}"]


async def test_a_close_hook_that_hangs_is_cancelled_and_costs_nobody_his_own(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []

    @router.on_open
    async def join(session: Session) -> None:
        await session.topics.subscribe("room:1")

    @router.on_close
    async def hang(session: Session) -> None:
        await trio.sleep_forever()

    router.on_close(noted(log, "second"))
    router.observe(on_close=lambda _: log.append("observer"))
    async with open_house(router, limits=Limits(close_timeout=2)) as house:
        client = await house.connect()
        began = trio.current_time()
        await client.leave()
        assert trio.current_time() - began == 4
        assert log == ["second", "observer"]
        assert house.logged() == [f"an on_close hook was cancelled, client {client.client_id}: it took too long"]


async def test_a_close_hook_whose_children_fail_when_it_is_cut_off_leaves_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    router = Router()

    @router.on_open
    async def join(session: Session) -> None:
        await session.topics.subscribe("room:1")

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError

    @router.on_close
    async def hang(session: Session) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await trio.sleep_forever()

    async with open_house(router) as house:
        client = await house.connect()
        await client.leave()
        assert house.logged() == [f"a hook failed for client {client.client_id}"]


async def test_a_driver_that_fails_at_the_end_is_told_and_the_session_ends(autojump_clock: MockClock) -> None:
    class Failing:
        """A memory driver that cannot unsubscribe."""

        def __init__(self) -> None:
            self.inner = MemoryPubSub()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        async def unsubscribe(self, client_id: str, topic: str) -> None:
            await self.inner.unsubscribe(client_id, topic)
            raise OSError("gone")

    router = Router()

    @router.on_open
    async def join(session: Session) -> None:
        await session.topics.subscribe("room:1")
        await session.topics.subscribe("room:2")

    async with open_house(router, pubsub=cast("MemoryPubSub", Failing())) as house:
        client = await house.connect()
        await client.leave()
        assert house.logged() == [f"a hook failed for client {client.client_id}"]


# --- what a session is -----------------------------------------------------------------------------------------------


async def test_data_is_one_object_for_a_connection_and_another_for_the_next(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    def say(ctx: Context[Say]) -> None:
        ctx.data["said"] = [*ctx.data.get("said", []), ctx.payload.text]
        assert ctx.data is ctx.session.data

    async with open_house(router) as house:
        one, two = await house.connect(), await house.connect()
        one.say("a", "b")
        two.say("c")
        await settle()
        assert (one.session.data, two.session.data) == ({"said": ["a", "b"]}, {"said": ["c"]})
        assert one.session.client_id != two.session.client_id
        assert repr(one.session) == f"<Session {one.client_id}>"


async def test_a_session_sends_with_meta_of_the_callers(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        client = await house.connect()
        await client.session.send(Said("a"), meta={"traceparent": "t"})
        assert await client.receive() == {
            "type": "SAID",
            "meta": {"timestamp": NOW, "traceparent": "t"},
            "payload": {"text": "a"},
        }


async def test_a_session_that_closes_sends_what_is_queued_first(autojump_clock: MockClock) -> None:
    async with open_house(echo()) as house:
        client = await house.connect()
        client.say("a", "b")
        await settle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.session.close, 4001, "bye")
            await trio.lowlevel.checkpoint()
            nursery.start_soon(client.session.close, 4002, "second")
        assert client.session.close_code == 4001
        assert await client.texts() == ["a", "b"]
        assert await client.closed() == (4001, "bye")


async def test_a_handler_that_closes_is_cancelled_behind_it(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.send(Said("last"))
        await ctx.close(4003, ctx.payload.text)
        log.append("closed")
        await trio.sleep_forever()

    async with open_house(router) as house:
        client = await house.connect()
        client.say("enough", "never looked at")
        assert await client.closed() == (4003, "enough")
        await client.served.wait()
    assert log == ["closed"]


# --- control ---------------------------------------------------------------------------------------------------------


async def test_a_heartbeat_is_answered_with_the_servers_time(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        client = await house.connect()
        client.send("__heartbeat", call_id="c1", more=1)
        assert await client.heard() == [{"type": "__heartbeat_ack", "meta": {"ts": NOW}}]


async def test_heartbeats_of_one_read_are_all_answered_however_many(autojump_clock: MockClock) -> None:
    async with open_house(limits=Limits(outbox_messages=10)) as house:
        client = await house.connect(capacity=10**6)
        for _ in range(3000):
            client.send("__heartbeat")
        assert len(await client.heard()) == 3000


async def test_refusals_of_one_read_are_all_sent_however_many(autojump_clock: MockClock) -> None:
    async with open_house(limits=Limits(outbox_messages=10)) as house:
        client = await house.connect(capacity=10**6)
        for _ in range(3000):
            client.send("NO")
        assert len(await client.heard()) == 3000


async def test_a_client_that_never_reads_its_refusals_is_disconnected_for_being_too_slow(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    limits: list[LimitExceeded] = []
    router.on_limit_exceeded(limits.append)
    async with open_house(router, limits=Limits(outbox_messages=10)) as house:
        client = await house.connect(capacity=1000)
        client.peer.stall()
        with suppress(ConnectionClosed):
            for _ in range(50):
                await client.peer.send(raw("NO"))
        await client.served.wait()
        assert trio.current_time() == 1  # it had as long to read why
        assert (client.session.close_code, client.session.close_reason) == (1013, "too slow")
        assert house.app.backpressure.disconnected == 1
        assert [(info.type, info.client_id) for info in limits] == [("backpressure", client.client_id)]
        assert limits[0].limit == 4 * 1024 * 1024


# --- malformed and too large -----------------------------------------------------------------------------------------


async def test_a_malformed_message_is_answered_and_the_connection_lives(autojump_clock: MockClock) -> None:
    async with open_house(echo()) as house:
        client = await house.connect()
        client.peer.send_nowait("garbage")
        client.peer.send_nowait('{"type": "SAY", "meta": {"correlationId": "c1", "timeoutMs": "soon"}}')
        client.send("$mine", call_id="c2")
        client.say("still here")
        garbage, meta, reserved, said = await client.heard()
        assert [error_of(one) for one in (garbage, meta, reserved)] == ["INVALID_ARGUMENT"] * 3
        assert garbage["type"] == "ERROR"
        assert meta["meta"]["correlationId"] == "c1"
        assert reserved["meta"]["correlationId"] == "c2"
        assert said["payload"] == {"text": "still here"}


async def test_too_many_malformed_messages_close_with_1008(autojump_clock: MockClock) -> None:
    async with open_house(echo(), limits=Limits(max_protocol_errors=3)) as house:
        client = await house.connect()
        client.peer.send_nowait("garbage")
        client.say("a")
        await settle()
        client.peer.send_nowait("garbage")
        client.say("b")
        for _ in range(10):
            client.peer.send_nowait("garbage")
        client.say("never looked at")
        heard = await client.heard()
        assert [one["type"] for one in heard].count("ERROR") == 3
        # "b" came before the message that was one too many, and its handler does not wait.
        assert [one["payload"]["text"] for one in heard if one["type"] == "SAID"] == ["a", "b"]
        assert await client.closed() == (1008, "too many malformed messages")


@pytest.mark.parametrize("on_exceeded", ["send", "close", "custom"])
async def test_a_message_that_is_too_big_is_treated_as_configured_and_never_an_error_of_ours(
    autojump_clock: MockClock, on_exceeded: Any
) -> None:
    router = echo()
    limits: list[LimitExceeded] = []
    errors: list[Exception] = []
    router.on_limit_exceeded(limits.append)
    router.on_error(lambda error, ctx: errors.append(error))
    async with open_house(router, limits=Limits(max_payload_bytes=100, on_exceeded=on_exceeded)) as house:
        client = await house.connect()
        client.say("x" * 200)
        observed = len(raw("SAY", {"text": "x" * 200}))
        client.say("x" * 300)
        await settle()
        if on_exceeded == "close":
            assert await client.closed() == (1009, "message too big")
            assert len(limits) == 1
        else:
            client.say("a")
            *refused, said = await client.heard()
            assert said["payload"] == {"text": "a"}
            if on_exceeded == "send":
                assert [error_of(one) for one in refused] == ["RESOURCE_EXHAUSTED"] * 2
                assert refused[0]["payload"]["details"] == {"observed": observed, "limit": 100}
                assert refused[0]["payload"]["retryable"] is False
            else:
                assert refused == []
            assert len(limits) == 2
        assert limits[0] == LimitExceeded("payload", observed, 100, client.client_id)
        assert errors == []


async def test_messages_that_are_too_big_are_no_protocol_errors(autojump_clock: MockClock) -> None:
    async with open_house(limits=Limits(max_payload_bytes=100, max_protocol_errors=2)) as house:
        client = await house.connect()
        for _ in range(5):
            client.say("x" * 200)
        assert len(await client.heard()) == 5
        assert client.session.close_code is None


async def test_a_limit_hook_that_raises_is_logged_no_more(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on_limit_exceeded
    def broken(info: LimitExceeded) -> None:
        raise KeyError

    seen: list[LimitExceeded] = []
    router.on_limit_exceeded(seen.append)
    async with open_house(router, limits=Limits(max_payload_bytes=10)) as house:
        client = await house.connect()
        client.say("xxx")
        (refused,) = await client.heard()
        assert error_of(refused) == "RESOURCE_EXHAUSTED"
        assert len(seen) == 1
        assert house.logged() == [f"an on_limit_exceeded hook failed for client {client.client_id}"]


# --- who is told of errors -------------------------------------------------------------------------------------------


async def test_error_hooks_and_observers_are_told_after_the_client_and_may_fail_themselves(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    told: list[str] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        ctx.error("NOT_FOUND")

    @router.on_error
    def broken(error: Exception, ctx: Context[Any] | None) -> None:
        raise KeyError

    @router.on_error
    def second(error: Exception, ctx: Context[Any] | None) -> None:
        assert isinstance(error, WsKitError)
        assert ctx is not None
        told.append(f"{error.code} {ctx.type} {ctx.session.outbox.queued_bytes > 0}")

    def failing(error: Exception, ctx: Context[Any] | None) -> None:
        raise KeyError

    router.observe(on_error=failing)
    router.observe(on_error=lambda error, ctx: told.append("observer"))
    router.observe(on_open=lambda _: None)
    async with open_house(router) as house:
        client = await house.connect()
        client.say("")
        (refused,) = await client.heard()
        assert error_of(refused) == "NOT_FOUND"
        assert told == ["NOT_FOUND SAY True", "observer"]
        assert house.logged() == [f"an on_error hook failed for client {client.client_id}", "an observer failed"]


# --- backpressure ----------------------------------------------------------------------------------------------------


async def test_a_client_that_sends_faster_than_handlers_work_is_held_back_and_nothing_is_lost(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    got: list[int] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep(0.1)
        got.append(int(ctx.payload.text[:4]))

    @router.rpc(Add)
    async def forever(ctx: Context[Add]) -> Total:
        await trio.sleep_forever()
        raise AssertionError

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="c1")
        sent: list[int] = []

        async def flood() -> None:
            for n in range(200):
                await client.peer.send(raw("SAY", {"text": f"{n:04}" + "x" * 10_000}))
                sent.append(n)

        house.nursery.start_soon(flood)
        await trio.sleep(1)
        assert client.session.connection.holds_back
        assert len(sent) < 60  # what a few buffers hold
        # What came before the flood is still heard; once there is room again, what comes now is, too.
        await trio.sleep(30)
        assert got == list(range(200))
        client.send("$ws:abort", call_id="c1")
        client.send("__heartbeat")
        assert {one["type"] for one in await client.heard()} == {"__heartbeat_ack", "RPC_ERROR"}


async def test_a_client_that_reads_slowly_slows_its_own_handlers_and_gets_everything(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    sent: list[int] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        for n in range(100):
            await ctx.send(Said(str(n)))
            sent.append(n)

    async with open_house(router, limits=Limits(outbox_messages=5, ping_interval=math.inf)) as house:
        client = await house.connect(capacity=300)
        client.peer.stall()
        client.say("")
        await trio.sleep(5)
        assert len(sent) < 20
        client.peer.resume()
        texts: list[str] = []
        while len(texts) < 100:
            texts += await client.texts()
        assert texts == list(map(str, range(100)))


async def test_one_clients_slowness_is_not_anothers(autojump_clock: MockClock) -> None:
    async with open_house(echo(), limits=Limits(outbox_messages=5, write_timeout=100)) as house:
        slow, quick = await house.connect(capacity=100), await house.connect()
        slow.peer.stall()
        for n in range(50):
            if not slow.session.outbox.congested:
                slow.say(str(n))
                await settle()
        quick.say("a")
        assert await quick.texts() == ["a"]
        assert trio.current_time() == 0


async def test_a_peer_that_never_reads_is_aborted_after_the_write_timeout(autojump_clock: MockClock) -> None:
    router = Router()
    ended: list[float] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        try:
            while True:
                await ctx.send(Said("x" * 100))
        finally:
            ended.append(trio.current_time())

    async with open_house(router, limits=Limits(outbox_messages=5, write_timeout=7)) as house:
        client = await house.connect(capacity=1000)
        client.peer.stall()
        client.say("")
        await client.served.wait()
        assert ended == [7]
        assert client.session.close_code == 1006


async def test_a_handler_that_is_stuck_is_cancelled_when_a_write_finds_the_client_gone(
    autojump_clock: MockClock,
) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep_forever()

    async with open_house(router, limits=Limits(max_waiting_batches=1, write_timeout=3)) as house:
        client = await house.connect(capacity=200)
        client.say("stuck")
        await settle()
        client.say("waits")
        await settle()
        assert client.session.connection.holds_back
        client.peer.stall()
        for _ in range(5):
            await client.session.send(Said("x" * 100))
        with trio.fail_after(4):
            await client.served.wait()


# --- goodbyes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shutdown_code", [1001])
async def test_a_session_that_is_cancelled_says_goodbye_and_cleans_up(
    autojump_clock: MockClock, shutdown_code: int
) -> None:
    router = echo()
    log: list[str] = []

    @router.on_open
    async def join(session: Session) -> None:
        await session.topics.subscribe("room:1")

    @router.rpc(Add)
    async def forever(ctx: Context[Add]) -> Total:
        try:
            await trio.sleep_forever()
        finally:
            log.append("cancelled")
        raise AssertionError

    router.on_close(noted(log, "closed"))
    async with open_house(router) as house:
        client = await house.connect()
        client.say("a")
        client.send("ADD", {}, call_id="c")
        await settle()
        client.scope.cancel()
        await client.served.wait()
        assert client.scope.cancelled_caught
        assert await client.texts() == ["a"]
        assert await client.closed() == (shutdown_code, "going away")
        assert log == ["cancelled", "closed"]
        assert trio.current_time() == 0


async def test_a_goodbye_to_a_client_that_does_not_read_takes_a_second_no_more(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        client = await house.connect()
        client.peer.stall()
        client.scope.cancel()
        await client.served.wait()
        assert trio.current_time() == 1


async def test_a_session_that_is_cancelled_while_another_closes_it_shows_the_code_of_that_close(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    seen: list[tuple[int | None, str]] = []

    @router.on_close
    async def note(session: Session) -> None:
        seen.append((session.close_code, session.close_reason))

    async with open_house(router) as house:
        client = await house.connect()
        client.peer.stall()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.session.close, 4000, "enough")
            await trio.sleep(1)
            client.scope.cancel()
            await client.served.wait()
        assert seen == [(4000, "enough")]
        assert trio.current_time() == 2  # no more than a second for a goodbye


async def test_who_closes_a_session_second_waits_until_it_is_closed(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        client = await house.connect()
        client.peer.stall()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.session.close, 4000)
            await trio.sleep(1)
            await client.session.close(4001)
            assert trio.current_time() == 5
            assert client.session.close_code == 4000


async def test_handlers_that_speak_while_we_say_goodbye_do_not_spoil_it(autojump_clock: MockClock) -> None:
    router = Router()
    limits: list[LimitExceeded] = []
    router.on_limit_exceeded(limits.append)

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        await trio.sleep(1)
        return Total(1)

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep(1)
        await ctx.send(Said("too late"))

    async with open_house(router) as house:
        client = await house.connect()
        client.send("ADD", {}, call_id="c1")
        client.say("")
        client.send("UNKNOWN", call_id="c2")
        await settle()
        client.peer.stall()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.session.close, 1012, "restart")
            await trio.sleep(3)
            client.peer.resume()
        assert trio.current_time() == 3
        assert await client.closed() == (1012, "restart")
        assert limits == []
        assert house.logged() == []


async def test_publishes_while_we_say_goodbye_do_not_spoil_it(autojump_clock: MockClock) -> None:
    router = Router()
    limits: list[LimitExceeded] = []
    router.on_limit_exceeded(limits.append)

    @router.on_open
    async def join(session: Session) -> None:
        await session.topics.subscribe("news")

    async with open_house(router) as house:
        client = await house.connect()
        client.peer.stall()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.session.close, 1012, "restart")
            await trio.sleep(1)
            result = await house.app.publish("news", Said("late"))
            assert (result.matched_local, result.delivered, result.dropped) == (1, 0, 0)
            client.peer.resume()
        assert await client.closed() == (1012, "restart")
        assert limits == []


async def test_a_publish_to_a_session_that_has_just_ended_harms_nobody(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on_open
    async def join(session: Session) -> None:
        await session.topics.subscribe("news")

    async with open_house(router) as house:
        client, other = await house.connect(capacity=50), await house.connect()
        client.scope.cancel()
        for _ in range(6):  # in each pass on the way to its end
            for _ in range(3):
                await house.app.publish("news", Said("x" * 40))
            await trio.lowlevel.checkpoint()
        await trio.sleep(2)
        assert len(await other.texts()) == 18


async def test_a_failure_of_the_session_itself_closes_with_1011_and_touches_no_other(
    autojump_clock: MockClock,
) -> None:
    class Broken:
        """A transport with a bug."""

        def __init__(self, inner: MemoryTransport) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            if name == "attach":
                raise AttributeError
            return getattr(self.inner, name)

        async def receive(self) -> Sequence[bytes]:
            await trio.sleep(1)
            raise OSError("a bug")

    async with open_house(echo()) as house:
        other = await house.connect()
        transport, peer = memory_link()
        client = house.start(Client(cast("MemoryTransport", Broken(transport)), peer))
        assert await client.closed() == (1011, "Internal error")
        await client.served.wait()
        assert len(house.logged()) == 1
        other.say("a")
        assert await other.texts() == ["a"]
