from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.protocol_table import PAGE, ROWS, Row, written
from tests.sessions import Add, Said, Say, Total, error_of, open_house
from trio_wskit import Context, Limits, Router, Rpc, WsKitError, message
from trio_wskit.limiter import Policy


@message("REFUSED")
class Refused: ...


@message("MAPPED")
class Mapped: ...


@message("BROKEN")
class Broken: ...


@message("LATE")
class Late: ...


@message("SLOW")
class Slow: ...


@message("STEPS")
class Steps(Rpc[Total]): ...


@message("REFUSED_CALL")
class RefusedCall(Rpc[Total]): ...


@message("BROKEN_CALL")
class BrokenCall(Rpc[Total]): ...


@message("EMPTY")
class Empty(Rpc[Total]): ...


@message("TWICE")
class Twice(Rpc[Total]): ...


def played() -> Router:
    router = Router()
    router.errors.register(OSError, "FAILED_PRECONDITION")

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.send(Said(ctx.payload.text))

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        await trio.sleep(ctx.payload.n)
        return Total(ctx.payload.n)

    @router.rpc(Steps)
    async def steps(ctx: Context[Steps]) -> Total:
        ctx.progress(1)
        ctx.progress(2)
        return Total(3)

    @router.rpc(Twice)
    async def twice(ctx: Context[Twice]) -> Total:
        await ctx.reply(Total(1))
        return Total(2)

    def raises(error: Exception) -> Any:
        async def handler(ctx: Context[Any]) -> Any:
            raise error

        return handler

    async def nothing(ctx: Context[Any]) -> Any:
        return None

    async def sleeps(ctx: Context[Any]) -> None:
        await trio.sleep(5)

    router.on(Refused)(raises(WsKitError("NOT_FOUND")))
    router.on(Mapped)(raises(OSError("secret")))
    router.on(Broken)(raises(KeyError("secret")))
    router.rpc(RefusedCall)(raises(WsKitError("NOT_FOUND")))
    router.rpc(BrokenCall)(raises(KeyError("secret")))
    router.rpc(Empty)(nothing)
    router.on(Late, timeout=1)(sleeps)
    router.on(Slow)(sleeps)
    return router


def in_words(answer: dict[str, Any]) -> str:
    words = [answer["type"]]
    if answer["type"] in ("ERROR", "RPC_ERROR"):
        words.append(error_of(answer))
    if "correlationId" in answer.get("meta", {}):
        words.append(f"[{answer['meta']['correlationId']}]")
    return " ".join(words)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.input}, {row.state}".strip(", "))
async def test_the_protocol_is_what_its_table_says(autojump_clock: MockClock, row: Row) -> None:
    options: dict[str, Any] = {
        name: Policy(*value) if name == "message_rate" else value for name, value in row.limits.items()
    }
    async with open_house(played(), limits=Limits(ping_interval=math.inf, **options)) as house:
        client = await house.connect()
        for one in row.before:
            client.peer.send_nowait(one)
        await trio.sleep(0.1)
        if row.drains:
            house.nursery.start_soon(house.app.drain, 10)
            await trio.sleep(0.1)
        for one in row.send:
            client.peer.send_nowait(one)
        if row.cut:
            client.peer.close()
        await trio.sleep(row.wait)
        heard = await client.heard()
        assert [in_words(one) for one in heard] == list(row.answers)
        if row.closed is None:
            assert client.session.close_code is None
        else:
            assert (await client.closed())[0] == row.closed
        house.logged()


def test_the_page_shows_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), "python -m tests.protocol_table"
