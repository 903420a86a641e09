from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.serving import Refused, connect, serving, until
from tests.sessions import Add, House, Say, Total, error_of, open_house
from trio_wskit import App, ConfigError, Context, DrainReport, Limits, Router, open_app


def slow(log: list[str]) -> Router:
    router = Router()

    @router.rpc(Add, timeout=1e6)
    async def add(ctx: Context[Add]) -> Total:
        await work(f"add {ctx.payload.n}", ctx.payload.n)
        return Total(ctx.payload.n)

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await work(f"say {ctx.payload.text}", int(ctx.payload.text))

    async def work(what: str, seconds: float) -> None:
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            log.append(f"cancelled {what}")
            raise
        log.append(f"end {what}")

    return router


class Drained:
    report: DrainReport | None = None

    async def run(self, house: House, seconds: float, **options: Any) -> None:
        self.report = await house.app.drain(seconds, **options)


async def begin(house: House, seconds: float, **options: Any) -> Drained:
    drained = Drained()

    async def run() -> None:
        await drained.run(house, seconds, **options)

    await trio.sleep(0.01)  # what was sent has come
    house.nursery.start_soon(run)
    await trio.sleep(0.01)
    return drained


async def test_what_runs_finishes_and_then_everybody_is_sent_away(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(slow(log)) as house:
        client, idle = await house.connect(), await house.connect()
        client.send("ADD", {"n": 5}, call_id="1")
        client.say("3")
        start = trio.current_time()
        drained = await begin(house, 10)
        assert not house.app.ready
        assert [one["type"] for one in [await client.receive()]] == ["TOTAL"]
        assert trio.current_time() - start == pytest.approx(5)
        for one in (client, idle):
            assert await one.closed() == (1012, "shutting down")
        await trio.sleep(1)
        assert drained.report == DrainReport(finished=2, cancelled=0, refused=0, closed=2)
        assert log == ["end say 3", "end add 5"]


async def test_what_is_not_done_in_time_is_cancelled_and_told_so_before_the_close(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(slow(log)) as house:
        client = await house.connect()
        client.send("ADD", {"n": 2}, call_id="1")
        client.send("ADD", {"n": 50}, call_id="2")
        drained = await begin(house, 10, code=1001)
        await trio.sleep(20)
        heard = await client.heard()
        assert [one["meta"]["correlationId"] for one in heard] == ["1", "2"]
        assert error_of(heard[1]) == "CANCELLED"
        assert await client.closed() == (1001, "shutting down")
        assert drained.report == DrainReport(finished=1, cancelled=1, refused=0, closed=1)


async def test_new_work_is_refused_and_clients_come_back_at_different_times(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with open_house(slow(log)) as house:
        client = await house.connect()
        client.send("ADD", {"n": 5}, call_id="0")
        client.say("5")
        await trio.sleep(0.1)
        client.say("1")  # it waits behind the other when the drain begins
        drained = await begin(house, 10, spread=3)
        for n in range(1, 20):
            client.send("ADD", {"n": 1}, call_id=str(n))
        client.send("NEVER_HEARD_OF", call_id="x")
        await trio.sleep(6)
        heard = await client.heard()
        refused = [one for one in heard if one["type"] != "TOTAL"]
        codes = [error_of(one) for one in refused]
        assert sorted(set(codes)) == ["UNAVAILABLE", "UNIMPLEMENTED"]
        assert codes.count("UNAVAILABLE") == 20
        waits = {one["payload"]["retryAfterMs"] for one in refused if error_of(one) == "UNAVAILABLE"}
        assert len(waits) > 10
        assert all(1_000 <= wait <= 4_000 for wait in waits)
        assert drained.report is not None
        assert drained.report.refused == 20
        assert log == ["end add 5", "end say 5"] or log == ["end say 5", "end add 5"]


async def test_new_handshakes_get_503_with_retry_after(autojump_clock: MockClock) -> None:
    async with open_house(slow([])) as house:
        client = await house.connect()
        client.send("ADD", {"n": 5}, call_id="1")
        await begin(house, 10)
        late = await house.connect()
        assert late.refused is not None
        assert late.refused.status == 503
        assert 1 <= int(late.refused.headers["Retry-After"]) <= 5
        await trio.sleep(10)
        await client.heard()


async def test_detached_handlers_are_waited_for_too(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []

    @router.on(Say, detached=True)
    async def say(ctx: Context[Say]) -> None:
        await trio.sleep(float(ctx.payload.text))
        log.append(ctx.payload.text)

    async with open_house(router) as house:
        client = await house.connect()
        client.say("3", "50")
        await trio.sleep(1)
        await client.leave()
        drained = await begin(house, 10)
        await trio.sleep(11)
        assert drained.report == DrainReport(finished=1, cancelled=1, refused=0, closed=0)
    assert log == ["3"]


async def test_a_shield_holds_up_the_end_only_so_long(autojump_clock: MockClock) -> None:
    router = Router()
    log: list[str] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        with ctx.shield(8):
            await trio.sleep(6)
            log.append("saved")

    async with open_house(router) as house:
        client = await house.connect()
        client.say("a")
        drained = await begin(house, 1)
        assert (await client.closed())[0] == 1012
        await trio.sleep(8)
        assert drained.report == DrainReport(finished=0, cancelled=1, refused=0, closed=1)
    assert log == ["saved"]


async def test_an_idle_app_ends_at_once_and_a_second_drain_gets_the_same_report(autojump_clock: MockClock) -> None:
    async with open_house(slow([])) as house:
        client = await house.connect()
        start = trio.current_time()
        first, second = await begin(house, 100), await begin(house, 1)
        assert (await client.closed())[0] == 1012
        await trio.sleep(1)
        assert first.report == second.report == DrainReport(finished=0, cancelled=0, refused=0, closed=1)
        assert trio.current_time() - start < 3


async def test_a_drain_that_is_given_up_has_closed_nobody(autojump_clock: MockClock) -> None:
    async with open_house(slow([])) as house:
        client = await house.connect()
        client.send("ADD", {"n": 5}, call_id="1")
        await trio.sleep(1)
        with trio.move_on_after(1):
            await house.app.drain(100)
        client.send("ADD", {"n": 5}, call_id="2")
        await trio.sleep(5)
        first, second = await client.heard()
        assert (error_of(first), second["type"]) == ("UNAVAILABLE", "TOTAL")
        assert client.session.close_code is None
        with pytest.raises(RuntimeError, match="given up"):
            await house.app.drain(1)


@pytest.mark.parametrize("options", [{"seconds": -1}, {"seconds": 1, "code": 1000}, {"seconds": 1, "spread": -1}])
async def test_what_means_nothing_is_refused(autojump_clock: MockClock, options: dict[str, Any]) -> None:
    async with open_app(App(Router())) as app:
        with pytest.raises(ConfigError):
            await app.drain(**options)
        assert app.ready


async def test_an_app_that_is_not_open_cannot_drain_and_one_that_has_may_open_again(autojump_clock: MockClock) -> None:
    app = App(Router())
    with pytest.raises(RuntimeError, match="not open"):
        await app.drain(1)
    async with open_app(app):
        await app.drain(1)
    async with open_app(app):
        assert app.ready


async def test_a_client_that_leaves_while_the_app_drains_counts_as_cancelled(autojump_clock: MockClock) -> None:
    async with open_house(slow([])) as house:
        client = await house.connect()
        client.send("ADD", {"n": 50}, call_id="1")
        drained = await begin(house, 10)
        await client.leave()
        await trio.sleep(1)
        assert drained.report == DrainReport(finished=0, cancelled=1, refused=0, closed=0)


# --- signals, in real time -------------------------------------------------------------------------------------------


@pytest.mark.e2e
@pytest.mark.parametrize("second", [None, signal.SIGTERM, signal.SIGINT])
async def test_sigterm_drains_and_a_second_signal_ends_at_once(second: signal.Signals | None) -> None:
    log: list[str] = []
    app = App(slow(log), limits=Limits(close_timeout=0.5))

    async with trio.open_nursery() as nursery:

        async def run(*, task_status: Any) -> None:
            async with serving(app, handle_signals=True, drain_seconds=5, shutdown_code=1012) as server:
                task_status.started(server)
                await trio.sleep_forever()

        server = await nursery.start(run)
        await trio.sleep(0.05)
        client = await connect(server)
        await client.send("ADD", {"n": 1 if second is None else 60}, call="1")
        await until(lambda: app.sessions)
        await trio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: not app.ready)
        with pytest.raises(Refused) as late:
            await connect(server)
        assert late.value.status == 503
        if second is not None:
            os.kill(os.getpid(), second)
        with trio.fail_after(5):
            if second is None:
                assert (await client.receive())["type"] == "TOTAL"
            await until(lambda: not app.sessions)
        assert log == (["end add 1"] if second is None else ["cancelled add 60"])
        await trio.aclose_forcefully(client.stream)
        nursery.cancel_scope.cancel()
