"""A real server process that is killed, stopped, told to end and started again, under a client that lives on."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from tests.client.mortal_server import Echo, Mortal, Said, Say, Tell, Told, Wait, mortal
from tests.serving import until
from tests.valkey import Server as Valkey
from trio_wskit import ConnectionClosed, Gap, Limits, Reconnect, RpcError, open_client
from trio_wskit.client import Client, StateChange, Stream

pytestmark = pytest.mark.e2e

QUICK: Final = Reconnect(initial_delay=0.05, max_delay=0.1, jitter="none", restart_delay=(0.1, 0.2))


@asynccontextmanager
async def client_of(server: Mortal, **limits: Any) -> AsyncGenerator[Client]:
    with trio.fail_after(40):  # nothing here needs as much, even on a busy machine
        async with open_client(server.url, reconnect=QUICK, limits=Limits(**limits)) as client:
            yield client


async def ask_and_wait(
    client: Client, outcomes: list[object], seconds: float = 1000.0, *, task_status: trio.TaskStatus[None]
) -> None:
    """Ask for what takes its time; started once the server works on it."""
    try:
        async with client.call(Wait(seconds)) as call:
            await anext(call.progress)
            task_status.started()
            outcomes.append((await call.reply).text)
    except (ConnectionClosed, RpcError) as error:
        outcomes.append(error.code)


async def texts(stream: Stream[Any], count: int) -> list[object]:
    got: list[object] = []
    while len(got) < count:
        item = await stream.receive()
        got.append(item if isinstance(item, Gap) else item.text)
    return got


async def change_to(changes: Stream[StateChange], state: str) -> StateChange:
    async for change in changes:
        if change.state == state:
            return change
    raise AssertionError(f"it never was {state}")


async def test_when_the_server_is_killed_requests_end_and_what_waits_goes_to_the_next() -> None:
    with mortal() as server:
        await server.start()
        async with (
            client_of(server) as client,
            client.messages(Said) as said,
            client.subscribed("kept:1", Told) as told,
            trio.open_nursery() as nursery,
        ):
            await client.request(Tell("kept:1", "before"))
            assert await texts(told, 1) == ["before"]
            outcomes: list[object] = []
            for _ in range(3):
                await nursery.start(ask_and_wait, client, outcomes)
            with client.states() as changes:
                await server.kill()
                await change_to(changes, "reconnecting")
                await until(lambda: len(outcomes) == 3, seconds=2)
                assert outcomes == [1006] * 3

                answers: list[Said] = []

                async def ask() -> None:
                    answers.append(await client.request(Echo("from the queue")))

                for text in ("a", "b"):
                    await client.send(Say(text))
                nursery.start_soon(ask)
                await until(lambda: client.stats.queued == 3)
                await client.send(Say("c"))
                await server.start()
                await change_to(changes, "open")
            assert await texts(said, 3) == ["a", "b", "c"]
            await until(lambda: answers == [Said("from the queue")])
            await client.request(Tell("kept:1", "after"))
            assert await texts(told, 2) == [Gap("kept:1", "reconnected"), "after"]  # histories went with the process
            assert (client.stats.connects, client.stats.queue_dropped, client.stats.pending) == (2, 0, 0)


async def test_what_is_published_while_a_server_is_dead_comes_from_the_store_without_a_gap(tmp_path: Path) -> None:
    with Valkey(tmp_path) as valkey, mortal("--store", valkey.url) as server, mortal("--store", valkey.url) as other:
        await server.start()
        await other.start()
        async with (
            client_of(server) as client,
            client_of(other) as publisher,
            client.subscribed("kept:1", Told) as told,
            client.subscribed("unkept", Told, where=lambda one: one.text == "unkept") as unkept,
        ):
            await publisher.request(Tell("kept:1", "0"))
            assert await texts(told, 1) == ["0"]
            for round_ in (1, 10):
                await server.kill()
                for number in range(round_, round_ + 5):
                    await publisher.request(Tell("kept:1", str(number)))
                await publisher.request(Tell("unkept", "lost"))
                await server.start()
                assert await texts(told, 5) == [str(number) for number in range(round_, round_ + 5)]
                assert await texts(unkept, 1) == [Gap("unkept", "reconnected")]
            await publisher.request(Tell("unkept", "unkept"))
            assert await texts(unkept, 1) == ["unkept"]


async def test_a_server_that_stands_still_is_found_out_and_taken_again_when_it_goes_on() -> None:
    with mortal() as server:
        await server.start()
        async with (
            client_of(server, ping_interval=0.3, ping_timeout=0.5, handshake_timeout=0.5) as client,
            client.messages(Said) as said,
            trio.open_nursery() as nursery,
        ):
            outcomes: list[object] = []
            await nursery.start(ask_and_wait, client, outcomes)
            with client.states() as changes:
                server.signal(signal.SIGSTOP)  # the kernel still takes what we send, and new connections too
                began = trio.current_time()
                lost = await change_to(changes, "reconnecting")
                assert str(lost.reason) == "connection closed with 1006 (no pong in time)"
                assert trio.current_time() - began < 5
                await until(lambda: outcomes == [1006])
                again = await change_to(changes, "reconnecting")
                assert "within 0.5 s" in str(again.reason)  # the handshake of an attempt
                await client.send(Say("a"))
                server.signal(signal.SIGCONT)
                await change_to(changes, "open")
            assert await texts(said, 1) == ["a"]


@pytest.mark.parametrize("code", [1001, 1012])
async def test_a_server_that_drains_lets_calls_end_and_is_waited_for(code: int) -> None:
    with mortal("--code", str(code)) as server:
        await server.start()
        async with client_of(server) as client, client.messages(Said) as said, trio.open_nursery() as nursery:
            outcomes: list[object] = []
            await nursery.start(ask_and_wait, client, outcomes, 0.5)
            with client.states() as changes:
                server.signal(signal.SIGTERM)
                lost = await change_to(changes, "reconnecting")
                assert str(lost.reason).startswith(f"connection closed with {code}")
                assert await server.ended() == 0
                assert outcomes == ["waited"]
                await client.send(Say("a"))
                await server.start()
                await change_to(changes, "open")
            assert await texts(said, 1) == ["a"]
