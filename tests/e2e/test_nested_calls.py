"""A handler that asks another server: what is left of its time goes along, and who gives up stops the work of both."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import final

import pytest
import trio

from tests.serving import TRANSPORTS, connect, serving, until
from trio_wskit import App, Client, Context, Router, Rpc, Server, message, open_client

pytestmark = pytest.mark.e2e

both = pytest.mark.parametrize("transport", TRANSPORTS)


@message("REPORT")
class Report:
    text: str


@message("MAKE_REPORT")
class MakeReport(Rpc[Report]):
    seconds: float = 60.0


@message("ROWS")
class Rows:
    count: int


@message("QUERY")
class Query(Rpc[Rows]):
    seconds: float = 60.0


@final
class Servers:
    """One that makes reports, and asks the other one for the rows."""

    def __init__(self) -> None:
        self.front: Server
        self.front_left: list[float] = []  # what the report's handler had when it asked
        self.asked_ms: list[int] = []
        self.rows_left: list[float] = []
        self.ended: list[str] = []  # how handlers ended, the inner one first
        self.running = trio.Event()


@asynccontextmanager
async def open_servers(transport: str) -> AsyncGenerator[Servers]:
    servers = Servers()
    back, front = Router(), Router()
    to_back: list[Client] = []

    @back.rpc(Query)
    async def query(ctx: Context[Query]) -> Rows:
        servers.asked_ms.append(ctx.meta["timeoutMs"])
        servers.rows_left.append(ctx.time_remaining())
        servers.running.set()
        try:
            await trio.sleep(ctx.payload.seconds)
        except trio.Cancelled:
            servers.ended.append("query cancelled")
            raise
        return Rows(3)

    @front.rpc(MakeReport)
    async def make_report(ctx: Context[MakeReport]) -> Report:
        try:
            await trio.sleep(0.1)
            servers.front_left.append(ctx.time_remaining())
            rows = await to_back[0].request(Query(ctx.payload.seconds))
        except trio.Cancelled:
            servers.ended.append("report cancelled")
            raise
        return Report(f"{rows.count} rows")

    async with serving(App(back), transport) as back_server, serving(App(front), transport) as front_server:
        servers.front = front_server
        async with open_client(back_server.urls[0]) as client:
            to_back.append(client)
            yield servers


@both
async def test_what_is_left_of_the_time_goes_along(transport: str) -> None:
    async with open_servers(transport) as servers, open_client(servers.front.urls[0]) as client:
        with trio.fail_after(5):  # seconds, in real time
            assert (await client.request(MakeReport(0.0))).text == "3 rows"
        (front_left,), (asked,), (rows_left,) = servers.front_left, servers.asked_ms, servers.rows_left
        assert 4.5 < front_left < 4.9  # five seconds, and a tenth is gone
        assert 4.0 < asked / 1000 <= front_left + 0.001  # whole milliseconds
        assert 4.0 < rows_left <= asked / 1000


@both
async def test_who_is_cancelled_stops_the_work_of_both(transport: str) -> None:
    async with open_servers(transport) as servers, open_client(servers.front.urls[0]) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.request, MakeReport())
            with trio.fail_after(10):
                await servers.running.wait()
            nursery.cancel_scope.cancel()
        await until(lambda: len(servers.ended) == 2)
        assert sorted(servers.ended) == ["query cancelled", "report cancelled"]
        servers.ended.clear()
        # And both connections go on.
        assert (await client.request(MakeReport(0.0))).text == "3 rows"


@both
async def test_the_end_of_the_time_ends_both(transport: str) -> None:
    async with open_servers(transport) as servers, await connect(servers.front) as client:
        await client.send("MAKE_REPORT", {"seconds": 60}, call="1", timeoutMs=500)
        with trio.fail_after(10):
            answer = await client.receive()
        assert (answer["type"], answer["payload"]["code"]) == ("RPC_ERROR", "DEADLINE_EXCEEDED")
        await until(lambda: len(servers.ended) == 2)
        assert servers.asked_ms[0] <= 401


@both
async def test_who_leaves_stops_the_work_of_both(transport: str) -> None:
    async with open_servers(transport) as servers, await connect(servers.front) as client:
        await client.send("MAKE_REPORT", {"seconds": 60}, call="1")
        with trio.fail_after(10):
            await servers.running.wait()
        client.cut()
        await until(lambda: len(servers.ended) == 2)
