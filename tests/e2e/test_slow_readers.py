"""Clients on real sockets that do not read for a while, and what they are told when they do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import trio

from tests.serving import TRANSPORTS, Client, connect, serving, until
from trio_wskit import App, ByteBudget, Context, Limits, Router, Server, message
from trio_wskit.pubsub import block, conflate

pytestmark = pytest.mark.e2e
on_both = pytest.mark.parametrize("transport", TRANSPORTS)

FILL = "x" * 20_000  # so that the kernel's buffers are full soon


@message("JOIN")
class Join: ...


@message("TICK")
class Tick:
    n: int
    fill: str = ""


def routes() -> Router:
    router = Router()

    @router.on(Join)
    async def join(ctx: Context[Join]) -> None:
        await ctx.topics.subscribe("t", gaps=True)
        await ctx.send(Tick(0))

    return router


async def joined(server: Server) -> Client:
    client = await connect(server)
    await client.send("JOIN")
    assert (await client.receive())["payload"]["n"] == 0
    return client


async def publish_until(app: App, enough: Callable[[], object], heard: list[int] | None = None) -> int:
    """Publish numbers from 1 on, each when the one before it was `heard`; the last of them."""
    n = 0
    with trio.fail_after(30):
        while not enough():
            n += 1
            await app.publish("t", Tick(n, FILL))
            await trio.lowlevel.checkpoint()
            while heard is not None and len(heard) < n:
                await trio.lowlevel.checkpoint()
    return n


async def stream_to(client: Client, last: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Read up to the number `last`, or a notice of it: what came, and what is missing, each in its place."""
    came: list[int] = []
    gaps: list[tuple[int, int]] = []
    now = 0
    with trio.fail_after(20):
        while now < last:
            received = await client.receive()
            payload = received["payload"]
            if received["type"] == "$ws:gap":
                assert payload["topic"] == "t"
                gaps.append((payload["from"], payload["to"]))
                assert payload["from"] == now + 1
                now = payload["to"]
            else:
                came.append(payload["n"])
                assert payload["n"] == now + 1
                now = payload["n"]
    return came, gaps


@on_both
@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", block(0.02)])
async def test_what_is_missing_is_told_in_its_place_and_everything_else_comes(transport: str, overflow: Any) -> None:
    app = App(routes(), overflow=overflow, limits=Limits(outbox_messages=20))
    async with serving(app, transport) as server, await joined(server) as slow, await joined(server) as quick:
        (outbox, _) = (session.outbox for session in app.sessions)
        received: list[int] = []

        async def read_all() -> None:
            while True:
                received.append((await quick.receive())["payload"]["n"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_all)
            last = await publish_until(app, lambda: outbox.dropped >= 50, received)
            nursery.cancel_scope.cancel()
        assert received == [*range(1, last + 1)]
        came, gaps = await stream_to(slow, last)
        assert len(gaps) == 1
        assert len(came) + sum(to - first + 1 for first, to in gaps) == last
        assert last - len(came) == outbox.dropped == app.backpressure.dropped
        await app.publish("t", Tick(last + 1))
        assert (await slow.receive())["payload"]["n"] == last + 1
        assert app.budget.used == 0


@on_both
async def test_of_a_state_the_newest_comes(transport: str) -> None:
    app = App(routes(), overflow=conflate())
    async with serving(app, transport) as server, await joined(server) as slow:
        (outbox,) = (session.outbox for session in app.sessions)
        last = await publish_until(app, lambda: outbox.conflated >= 50)
        numbers: list[int] = []
        with trio.fail_after(20):
            while last not in numbers:
                numbers.append((await slow.receive())["payload"]["n"])
        assert numbers == sorted(numbers)
        assert len(numbers) == last - outbox.conflated
        assert outbox.dropped == 0


@on_both
async def test_over_the_budget_goes_who_takes_nothing_and_who_takes_a_little_stays(transport: str) -> None:
    budget = ByteBudget(3_000_000)
    app = App(routes(), overflow="drop_newest", budget=budget, limits=Limits(write_timeout=math.inf))
    async with serving(app, transport) as server, await joined(server), await joined(server) as slow:
        first, second = app.sessions

        async def read_a_little() -> None:
            while True:
                await slow.receive()
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_a_little)
            await publish_until(app, lambda: app.backpressure.evicted)
            nursery.cancel_scope.cancel()
        assert budget.used <= 3_000_000
        assert (first.outbox.closed is not None, second.outbox.closed) == (True, None)
        await until(lambda: len(app.sessions) == 1)  # it had a second to read why
        assert first.close_code == 1013
    await until(lambda: budget.used == 0)


@on_both
async def test_a_quorum_is_what_the_kernel_has_taken(transport: str) -> None:
    app = App(routes(), overflow="drop_newest")
    async with serving(app, transport) as server, await joined(server), await joined(server) as slow:
        outboxes = [session.outbox for session in app.sessions]
        result = await app.publish("t", Tick(1), quorum=1, within=5)
        assert (result.matched_local, result.written) == (2, 2)
        await publish_until(app, lambda: all(outbox.queued_bytes > 1_000_000 for outbox in outboxes))
        result = await app.publish("t", Tick(-1), quorum=0.5, within=0.05)
        assert (result.delivered, result.written) == (2, 0)
        async with trio.open_nursery() as nursery:

            async def read_all() -> None:
                while True:
                    await slow.receive()

            nursery.start_soon(read_all)
            result = await app.publish("t", Tick(-2), quorum=0.5, within=20)
            assert result.written == 1
            nursery.cancel_scope.cancel()
