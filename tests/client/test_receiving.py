from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.client.links import GetUser, Hello, News, Server, User, open_pair, settle
from trio_wskit import Gap, message
from trio_wskit._core.envelope import Envelope
from trio_wskit.client import Overflow, Stream
from trio_wskit.errors import ConfigError, ConnectionClosed, PayloadInvalid, RpcError

# Handlers


async def test_handlers_run_in_the_order_of_messages_and_of_registration(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        seen: list[str] = []

        @client.on(News)
        async def first(news: News) -> None:
            await trio.sleep(1)
            seen.append("first " + news.text)

        async def second(news: News) -> None:
            seen.append("second " + news.text)
            remove()

        remove = client.on(News, second)
        server.send("NEWS", {"text": "a"})
        server.send("NEWS", {"text": "b"})
        await trio.sleep(5)
        remove()
        assert seen == ["first a", "second a", "first b"]
        await first(News("c"))


async def test_a_handler_that_never_waits_may_be_a_plain_function(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        seen: list[str] = []

        @client.on(News)
        def read(news: News) -> None:
            seen.append(news.text)

        server.send("NEWS", {"text": "a"})
        await settle()
        read(News("b"))
        assert seen == ["a", "b"]


async def test_a_handler_that_fails_stops_nothing(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    logged: list[str] = []
    async with open_pair(logged=logged) as (client, server):
        seen: list[str] = []

        async def bad(news: News) -> None:
            raise KeyError(news.text)

        async def good(news: News) -> None:
            seen.append(news.text)

        client.on(News, bad)
        client.on(News, good)

        server.send("NEWS", {"text": "a"})
        await settle()
        assert "a handler of 'NEWS' failed" in logged or caplog.records
        errors: list[tuple[Exception, Envelope | None]] = []
        client.on_error(lambda error, envelope: errors.append((error, envelope)))
        server.send("NEWS", {"text": "b"})
        await settle()
        assert seen == ["a", "b"]
        assert [(type(error), envelope and envelope.type) for error, envelope in errors] == [(KeyError, "NEWS")]


async def test_a_handler_may_ask_though_the_server_never_stops_talking(autojump_clock: MockClock) -> None:
    async with open_pair(handler_capacity=2) as (client, server), trio.open_nursery() as nursery:
        replies: list[User] = []

        async def ask(news: News) -> None:
            replies.append(await client.request(GetUser(news.text)))

        client.on(News, ask)

        async def talk() -> None:
            for number in range(15):
                server.send("NEWS", {"text": str(number)})
                await settle()
            for _ in range(15):
                server.send("USER", {"name": "n"}, id=await server.asked())

        nursery.start_soon(talk)
        await trio.sleep(1)
        assert len(replies) == 15


async def test_what_is_no_function_is_refused_when_it_is_registered(autojump_clock: MockClock) -> None:
    nothing: Any = "nothing"
    async with open_pair() as (client, _):
        for register in (client.on_error, client.on_unhandled, partial(client.on, News), client.on(News)):
            with pytest.raises(ConfigError, match="takes a function, not 'nothing'"):
                register(nothing)
        with pytest.raises(ConfigError, match="is not a message"):
            client.on(nothing)


# Streams


async def test_a_full_stream_that_waits_pushes_the_server_back(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.messages(News, capacity=2) as stream:
        sent = 0
        with suppress(trio.WouldBlock):
            while sent < 10_000:
                server.send("NEWS", {"text": f"{sent}" + "x" * 1000})
                sent += 1
                if sent % 10 == 0:
                    await settle()
        assert sent < 10_000
        for number in range(sent):
            assert (await stream.receive()).text.rstrip("x") == str(number)
        assert stream.dropped == 0


@pytest.mark.parametrize(("overflow", "kept"), [("drop_oldest", ["3", "4"]), ("drop_newest", ["0", "1"])])
async def test_a_stream_may_drop(overflow: Overflow, kept: list[str], autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.messages(News, capacity=2, overflow=overflow) as stream:
        for number in range(5):
            server.send("NEWS", {"text": str(number)})
        await settle()
        assert [(await stream.receive()).text for _ in range(2)] == kept
        assert (stream.dropped, len(stream)) == (3, 0)


async def test_streams_see_what_they_want_and_those_that_have_left_see_nothing(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.messages(News) as everything:
        async with client.messages(News, where=lambda news: news.text > "b") as some:
            for text in "abc":
                server.send("NEWS", {"text": text})
            await settle()
            assert await some.receive() == News("c")
        with pytest.raises(trio.ClosedResourceError):
            await some.receive()
        server.send("NEWS", {"text": "d"})
        await settle()
        assert [(await everything.receive()).text for _ in range(4)] == list("abcd")
        await everything.aclose()
        server.send("NEWS", {"text": "e"})
        await settle()
        with pytest.raises(trio.ClosedResourceError):
            await everything.receive()


async def test_cancelling_a_receive_takes_nothing(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.messages(News) as stream:
        with trio.move_on_after(1):
            await stream.receive()
        server.send("NEWS", {"text": "a"})
        await settle()
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.receive()
        assert await stream.receive() == News("a")


@pytest.mark.parametrize(("capacity", "overflow"), [(0, "wait"), (1, "drop")])
def test_a_stream_has_a_bound_and_a_policy(capacity: int, overflow: Overflow) -> None:
    with pytest.raises(ConfigError):
        Stream[int](capacity, overflow)


# What cannot be read, and what nobody wants


async def test_bad_messages_are_told_and_change_nothing(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.messages(News) as stream:
        errors: list[str] = []
        remove = client.on_error(lambda error, _: errors.append(str(error)))
        for text in (
            "{",
            "[]",
            '{"type":5}',
            '{"type":"NEWS","payload":5}',
            '{"type":"__what"}',
            '{"type":"$ws:abort"}',
        ):
            server.peer.send_nowait(text)
        server.send("ERROR", {"code": "X", "message": "m"})
        server.send("RPC_ERROR", {"code": "Y", "message": "n"})
        server.send("NEWS", {"text": "a"})
        assert await stream.receive() == News("a")
        assert [error.partition(":")[0] for error in errors] == ["INVALID_ARGUMENT"] * 4 + ["X", "Y"]
        assert client.stats.refused == 4
        remove()


async def test_a_hook_that_fails_stops_nothing(autojump_clock: MockClock) -> None:
    logged: list[str] = []
    async with open_pair(logged=logged) as (client, server), client.messages(News) as stream:

        def bad(*_: object) -> None:
            raise KeyError

        client.on_unhandled(bad)
        client.on_error(bad)
        server.send("WHAT")
        server.send("NEWS", {"text": "a"})
        assert await stream.receive() == News("a")
    assert [line.splitlines()[0] for line in logged] == ["an on_error hook failed"]


async def test_a_type_may_be_named_error(autojump_clock: MockClock) -> None:
    @message("ERROR")
    class Oops:
        code: str

    async with open_pair() as (client, server), client.messages(Oops) as stream:
        server.send("ERROR", {"code": "X"})
        assert await stream.receive() == Oops("X")


async def test_what_is_logged_repeats_nothing_that_came(autojump_clock: MockClock) -> None:
    logged: list[str] = []
    async with open_pair(logged=logged) as (_, server):
        server.send("ERROR", {"code": "secret", "message": "secret"})
        server.peer.send_nowait("secret")
        await settle()
    assert sorted(logged) == [
        "MalformedMessage: register an on_error hook to see it",
        "ServerError about a message 'ERROR': register an on_error hook to see it",
    ]
    assert logging.getLogger("trio_wskit.client").handlers == []


# Subscriptions


async def confirm(server: Server, kind: str = "SUBSCRIBE") -> str:
    """Answer a subscription, and give its topic."""
    asked = await server.receive()
    assert asked["type"] == kind
    server.send(kind + "D", asked["payload"], id=asked["meta"]["correlationId"])
    topic: str = asked["payload"]["topic"]
    return topic


async def test_a_subscription_is_a_scope(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("room:1", News) as stream:
            server.send("NEWS", {"text": "a"})
            assert await stream.receive() == News("a")
        assert await confirm(server, "UNSUBSCRIBE") == "room:1"
        assert client.stats.unhandled == 0


async def test_two_scopes_share_a_subscription(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as one:
            async with client.subscribed("t", News) as two:
                server.send("NEWS", {"text": "a"})
                assert await one.receive() == await two.receive() == News("a")
            assert await server.heard() == []


async def test_a_subscription_survives_a_reconnection_and_tells_of_the_gap(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            server.send("NEWS", {"text": "a"})
            await settle()
            server.peer.cut()
            await settle()
            await client.send(Hello("queued"))
            await client.wait_open()
            assert await confirm(server) == "t"  # before what was queued
            assert (await server.receive())["type"] == "HELLO"
            server.send("NEWS", {"text": "b"})
            assert [await stream.receive() for _ in range(3)] == [News("a"), Gap("t", "reconnected"), News("b")]


async def test_a_subscription_waits_for_a_connection(autojump_clock: MockClock) -> None:
    server = Server()
    server.failures.append(5.0)
    async with open_pair(server, wait=False) as (client, _), trio.open_nursery() as nursery:

        async def answer() -> None:
            await client.wait_open()
            await confirm(server)

        nursery.start_soon(answer)
        async with client.subscribed("t", News):
            assert trio.current_time() == 5


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
async def test_a_subscription_marks_what_it_dropped(overflow: Overflow, autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News, capacity=2, overflow=overflow) as stream:
            for number in range(5):
                server.send("NEWS", {"text": str(number)})
            await settle()
            got = [await stream.receive() for _ in range(3)]
            gap = Gap("t", "overflow", 3)
            assert got == ([gap, News("3"), News("4")] if overflow == "drop_oldest" else [News("0"), News("1"), gap])


async def test_a_subscription_that_is_refused_raises(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        async def refuse() -> None:
            server.send("RPC_ERROR", {"code": "PERMISSION_DENIED"}, id=await server.asked())

        nursery.start_soon(refuse)
        with pytest.raises(RpcError, match="PERMISSION_DENIED"):
            async with client.subscribed("t", News):
                pytest.fail("not reached")
        nursery.start_soon(confirm, server)
        async with client.subscribed("t", News) as stream:
            server.peer.cut()
            await settle()
            await client.wait_open()
            await refuse()
            assert await stream.receive() == Gap("t", "reconnected")
            with pytest.raises(RpcError, match="PERMISSION_DENIED"):
                await stream.receive()
        assert await server.heard() == []


async def test_the_subscription_messages_are_the_applications_own(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        async with client.subscribed("t", News, subscribe=Hello, unsubscribe=None):
            pass
        assert [(one["type"], one["payload"]) for one in await server.heard()] == [("HELLO", {"name": "t"})]


async def test_a_client_that_gives_up_ends_its_subscriptions(autojump_clock: MockClock) -> None:
    async with open_pair(logged=[]) as (client, server), trio.open_nursery() as nursery:

        async def wait_for_ever() -> None:
            with pytest.raises(ConnectionClosed, match="4401"):
                async with client.subscribed("never answered", News):
                    pytest.fail("not reached")

        nursery.start_soon(wait_for_ever)
        await settle()
        server.peer.close(4401)
        await client.wait_closed()
        with pytest.raises(ConnectionClosed, match="4401"):
            async with client.subscribed("t", News):
                pytest.fail("not reached")


async def test_subscriptions_are_not_counted_as_requests_and_may_be_many(autojump_clock: MockClock) -> None:
    async with open_pair(max_pending=1) as (client, server), trio.open_nursery() as nursery:

        async def subscribe(number: int) -> None:
            async with client.subscribed(f"t{number}", News):
                await trio.sleep_forever()

        for number in range(2500):
            nursery.start_soon(subscribe, number)
        server.peer.cut()
        await settle()
        await client.wait_open()
        asked = await server.heard()
        assert len({one["payload"]["topic"] for one in asked}) == 2500
        nursery.cancel_scope.cancel()


async def test_a_subscription_message_that_is_wrong_is_said(autojump_clock: MockClock) -> None:
    server = Server()
    server.failures.append(1.0)
    async with open_pair(server, wait=False) as (client, _):
        with pytest.raises(PayloadInvalid):
            async with client.subscribed("t", News, subscribe=lambda _: Hello(5)):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
                pytest.fail("not reached")
        assert client.state == "open"


async def test_all_who_wait_on_one_stream_are_told_of_its_end_each_with_an_error_of_its_own(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_pair(logged=[]) as (client, server),
        client.messages(News) as stream,
        trio.open_nursery() as nursery,
    ):
        errors: list[ConnectionClosed] = []

        async def take() -> None:
            with pytest.raises(ConnectionClosed, match="4401") as caught:
                await stream.receive()
            errors.append(caught.value)

        for _ in range(3):
            nursery.start_soon(take)
        await settle()
        server.peer.close(4401, "go away")
        await settle()
        assert len(set(errors)) == 3, "a traceback that several share grows with each who raises it"


async def test_a_request_is_answered_though_the_client_had_stopped_reading_before(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server), client.messages(News, capacity=1), trio.open_nursery() as nursery:
        for number in range(3):
            server.send("NEWS", {"text": str(number)})
            await settle()

        async def answer() -> None:
            server.send("USER", {"name": "n"}, id=await server.asked())

        nursery.start_soon(answer)
        with trio.fail_after(1):
            assert await client.request(GetUser("1")) == User("n")
