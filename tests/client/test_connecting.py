from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.client.links import Hello, News, Server, open_pair, settle
from trio_wskit import Limits, QueueOptions, Reconnect, TokenAuth
from trio_wskit.client import StateChange
from trio_wskit.errors import ConnectFailed, ConnectionClosed, LocalProtocolError, WsKitError

ANYTHING: Any = "anything"

# States


async def test_every_change_of_state_is_seen_with_its_reason(autojump_clock: MockClock) -> None:
    server = Server()
    server.refuse(503)
    async with open_pair(server, wait=False, reconnect=Reconnect(jitter="none")) as (client, _):
        with client.states() as changes:
            await client.wait_open()
            server.peer.close(1011, "oops")
            await settle()
            await client.wait_open()
            await client.close()
            seen = [change async for change in changes]
        assert [(change.state, str(change.reason), change.attempt, change.delay) for change in seen] == [
            ("connecting", "None", 0, None),
            ("reconnecting", "refused", 1, 0.3),
            ("connecting", "None", 0, None),
            ("open", "None", 0, None),
            ("reconnecting", "connection closed with 1011 (oops)", 2, 0.6),  # it was not there for long
            ("connecting", "None", 0, None),
            ("open", "None", 0, None),
            ("closing", "None", 0, None),
            ("closed", "connection closed with 1000", 0, None),
        ]
        with client.states() as changes:
            assert [change async for change in changes] == [
                StateChange("closed", seen[-1].reason),
            ]
        assert repr(client) == "<Client closed>"


# Reconnecting


async def test_delays_double_and_begin_anew_once_a_connection_was_stable(autojump_clock: MockClock) -> None:
    server = Server()
    async with open_pair(server, reconnect=Reconnect(jitter="none", stable_after=5)) as (client, _):
        for _ in range(7):
            server.refuse()
        server.peer.cut()
        await settle()
        await client.wait_open()
        await trio.sleep(5)
        server.peer.cut()
        await settle()
        await client.wait_open()
    gaps = [round(later - earlier, 3) for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert gaps == [0.3, 0.6, 1.2, 2.4, 4.8, 9.6, 10.0, 10.0, 5.3]


async def test_jitter_takes_a_part_of_the_delay(autojump_clock: MockClock) -> None:
    async with open_pair(randomness=lambda: 0.25) as (client, server):
        server.peer.cut()
        await settle()
        await client.wait_open()
        assert server.times == [0, pytest.approx(0.075)]


@pytest.mark.parametrize(("code", "delay"), [(1012, 17.5), (1013, 17.5), (1001, 0.15), (1000, 0.15), (4000, 0.15)])
async def test_a_server_that_restarts_is_left_in_peace(code: int, delay: float, autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        server.peer.close(code)
        await settle()
        await client.wait_open()
        assert server.times == [0, pytest.approx(delay)]


async def test_retry_after_is_honoured_within_reason(autojump_clock: MockClock) -> None:
    server = Server()
    server.refuse(429, retry_after=20)
    server.refuse(503, retry_after=1e9)
    async with open_pair(server, reconnect=Reconnect(jitter="none", max_retry_after=100)):
        assert server.times == [0, 20.3, pytest.approx(20.3 + 100.6)]


@pytest.mark.parametrize("code", [4401, 4000, 4100])
async def test_it_gives_up_where_that_is_all_that_is_left(code: int, autojump_clock: MockClock) -> None:
    logged: list[str] = []
    policy = Reconnect(give_up_on={4000}) if code == 4000 else Reconnect(give_up_on=lambda closed: closed.code == 4100)
    async with open_pair(logged=logged, reconnect=policy) as (client, server), client.messages(News) as stream:
        server.send("NEWS", {"text": "last"})
        server.peer.close(code, "go away")
        assert str(await client.wait_closed()) == f"connection closed with {code} (go away)"
        assert await stream.receive() == News("last")
        with pytest.raises(ConnectionClosed, match="go away"):
            await stream.receive()
        with pytest.raises(ConnectionClosed, match="go away"):
            await client.send(Hello("a"))
        with pytest.raises(ConnectionClosed, match="go away"):
            await client.wait_open()
        async with client.messages(News) as another:
            with pytest.raises(ConnectionClosed):
                await another.receive()
    assert logged == [f"ws://server.test/path: connection closed with {code} (go away); giving up"]


async def test_without_reconnection_a_servers_goodbye_ends_streams_and_is_no_failure(autojump_clock: MockClock) -> None:
    async with open_pair(reconnect=None) as (client, server), client.messages(News) as stream:
        server.send("NEWS", {"text": "last"})
        server.peer.close(1000, "done")
        assert [news async for news in stream] == [News("last")]
        assert str(await client.wait_closed()) == "connection closed with 1000 (done)"


@pytest.mark.parametrize("status", [401, 403])
async def test_it_gives_up_when_it_may_not_come_in(status: int, autojump_clock: MockClock) -> None:
    async with open_pair(logged=[]) as (client, server):
        server.refuse(status)
        server.peer.cut()
        closed = await client.wait_closed()
        assert isinstance(closed, ConnectFailed)
        assert (closed.status, closed.retryable) == (status, False)


@pytest.mark.parametrize(
    ("policy", "attempts"), [(None, 1), (Reconnect(max_attempts=0), 1), (Reconnect(max_attempts=2), 3)]
)
async def test_there_may_be_a_number_of_attempts(
    policy: Reconnect | None, attempts: int, autojump_clock: MockClock
) -> None:
    server = Server()
    for _ in range(9):
        server.refuse(500)
    with pytest.raises(ConnectFailed):
        async with open_pair(server, reconnect=policy, logged=[]):
            pytest.fail("not reached")
    assert len(server.handshakes) == attempts


async def test_an_attempt_has_a_time_limit(autojump_clock: MockClock) -> None:
    server = Server()
    server.failures.append(math.inf)
    async with open_pair(server, limits=Limits(handshake_timeout=4, ping_interval=math.inf)) as (client, _):
        assert trio.current_time() == pytest.approx(4.15)
        assert (client.stats.attempts, client.stats.connects) == (2, 1)


async def test_the_caller_can_stop_waiting_for_the_first_connection(autojump_clock: MockClock) -> None:
    server = Server()
    server.failures.append(math.inf)
    with trio.move_on_after(1) as patience:
        async with open_pair(server):
            pytest.fail("not reached")
    assert patience.cancelled_caught
    assert trio.current_time() == 1


# Closing


@pytest.mark.parametrize("when", ["connecting", "reconnecting", "token"])
async def test_it_can_be_closed_in_every_state(when: str, autojump_clock: MockClock) -> None:
    server = Server()

    async def token() -> str:
        await trio.sleep_forever()
        raise AssertionError

    auth = TokenAuth(token) if when == "token" else None
    server.failures = [ConnectFailed("no")] if when == "reconnecting" else [math.inf]
    async with open_pair(server, wait=False, auth=auth) as (client, _):
        await settle()
        await client.send(Hello("a"))
        await client.close()
        assert trio.current_time() == 0
        assert client.state == "closed"
        await client.close(4000)  # the first one counts
        assert (await client.wait_closed()).code == 1000


async def test_close_sends_what_was_accepted_and_ends_requests_and_streams(autojump_clock: MockClock) -> None:
    from tests.client.links import GetUser

    async with open_pair() as (client, server), client.messages(News) as stream, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(ConnectionClosed, match="4000 \\(bye\\)"):
                await client.request(GetUser("1"))

        nursery.start_soon(ask)
        await settle()
        await client.send(Hello("a"))
        nursery.start_soon(client.close, 4000, "bye")
        assert [one["type"] for one in await server.heard()] == ["GET_USER", "HELLO"]
        with pytest.raises(trio.EndOfChannel):
            await stream.receive()


@pytest.mark.parametrize(("code", "reason"), [(1004, ""), (1006, ""), (1000, "x" * 124)])
async def test_a_close_that_cannot_be_sent_changes_nothing(code: int, reason: str, autojump_clock: MockClock) -> None:
    async with open_pair() as (client, _):
        with pytest.raises(LocalProtocolError):
            await client.close(code, reason)
        assert client.state == "open"


async def test_a_server_that_does_not_close_is_not_waited_for_for_long(autojump_clock: MockClock) -> None:
    async with open_pair() as (_, server):
        server.peer.stall()
    assert trio.current_time() == 5


async def test_a_block_that_is_cancelled_says_goodbye_for_a_second_at_most(autojump_clock: MockClock) -> None:
    with trio.move_on_after(2):
        async with open_pair() as (_, server):
            server.peer.stall()
            await trio.sleep_forever()
    assert trio.current_time() == 3


# Heartbeat


async def test_a_half_open_connection_is_found_out(autojump_clock: MockClock) -> None:
    async with open_pair(limits=Limits()) as (client, server):
        assert client.latency is None
        server.peer.delay(0.1)
        await trio.sleep(31)
        assert client.latency == pytest.approx(0.2)
        server.peer.stall()
        with client.states() as changes:
            assert (await changes.receive()).state == "open"
            assert str((await changes.receive()).reason) == "connection closed with 1006 (no pong in time)"
            assert trio.current_time() == pytest.approx(30.2 + 30 + 5)


# The offline queue


async def test_the_queue_refuses_the_newest_when_it_is_full(autojump_clock: MockClock) -> None:
    server = Server()
    server.refuse()
    errors: list[str] = []
    async with open_pair(server, wait=False, queue=QueueOptions(max_messages=2)) as (client, _):
        client.on_error(lambda error, _: errors.append(str(error)))
        for name in "ab":
            await client.send(Hello(name))
        with pytest.raises(WsKitError, match="RESOURCE_EXHAUSTED: the offline queue is full: 2 messages"):
            await client.send(Hello("c"))
        assert client.stats.queued == 2
        await client.wait_open()
        assert [one["payload"]["name"] for one in await server.heard()] == ["a", "b"]
        assert client.stats.queue_dropped == len(errors) == 1


async def test_the_queue_drops_the_oldest_where_that_is_its_policy(autojump_clock: MockClock) -> None:
    server = Server()
    server.refuse()
    logged: list[str] = []
    options = QueueOptions(policy="drop_oldest", max_messages=2)
    async with open_pair(server, wait=False, queue=options, logged=logged) as (client, _):
        for name in "abcd":
            await client.send(Hello(name))
        await client.wait_open()
        assert [one["payload"]["name"] for one in await server.heard()] == ["c", "d"]
    assert logged == ["WsKitError: register an on_error hook to see it"] * 2


async def test_the_queue_is_bounded_in_bytes_and_age(autojump_clock: MockClock) -> None:
    server = Server()
    server.failures = [9.0, ConnectFailed("no")]
    errors: list[str] = []
    async with open_pair(server, wait=False, queue=QueueOptions(max_bytes=200, max_age=5)) as (client, _):
        client.on_error(lambda error, _: errors.append(str(error)))
        with pytest.raises(WsKitError, match="RESOURCE_EXHAUSTED"):
            await client.send(Hello("x" * 200))
        await client.send(Hello("old"))
        await trio.sleep(5)
        await client.send(Hello("x" * 100))
        await client.wait_open()
        assert [one["payload"]["name"] for one in await server.heard()] == ["x" * 100]
        assert errors[1:] == ["ConnectFailed: no", "UNAVAILABLE: not sent within 5 s"][1:]


async def test_the_queue_takes_what_just_fits(autojump_clock: MockClock) -> None:
    async def queued(max_bytes: int) -> int:
        server = Server()
        server.refuse()
        async with open_pair(server, wait=False, queue=QueueOptions(max_bytes=max_bytes), logged=[]) as (client, _):
            with suppress(WsKitError):
                for _ in range(3):
                    await client.send(Hello("a"))
            inside: Any = client
            size: int = inside._turns._queue.queued_bytes
            return size

    three = await queued(10_000)
    assert await queued(three) == three
    assert await queued(three - 1) == three * 2 // 3


async def test_without_a_queue_what_cannot_be_sent_now_is_refused(autojump_clock: MockClock) -> None:
    server = Server()
    server.refuse()
    async with open_pair(server, wait=False, queue=QueueOptions(policy="off")) as (client, _):
        with pytest.raises(ConnectionClosed, match="not connected"):
            await client.send(Hello("a"))


async def test_close_drops_what_is_queued(autojump_clock: MockClock) -> None:
    server = Server()
    server.refuse()
    async with open_pair(server, wait=False) as (client, _):
        await client.send(Hello("a"))
        await client.close()
        assert (client.stats.queued, client.stats.queue_dropped) == (0, 1)


async def test_a_send_that_waits_for_room_waits_on_in_the_queue_when_the_connection_is_lost(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_pair(
            limits=Limits(outbox_messages=1, outbox_bytes=60_000, ping_interval=math.inf),
            queue=QueueOptions(max_messages=1, max_bytes=60_000),
        ) as (
            client,
            server,
        ),
        trio.open_nursery() as nursery,
    ):
        accepted: list[int] = []

        async def send() -> None:
            with suppress(WsKitError):
                for number in range(100):
                    await client.send(Hello(f"{number}" + "x" * 50_000))
                    accepted.append(number)

        client.on_error(lambda _, __: None)
        nursery.start_soon(send)
        await settle()
        assert len(accepted) < 100
        server.peer.cut()
        await settle()
        assert client.stats.queued == 1
        await client.wait_open()
        (sent,) = await server.heard()
        assert int(sent["payload"]["name"].rstrip("x")) == accepted[-1]
