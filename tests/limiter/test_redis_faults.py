"""What a caller is told when the server is gone, stopped, restarted, full, or cut off in the middle of a call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path
from typing import final

import pytest
import trio
import trio.testing
from coredis import RedisCluster
from coredis.retry import NoRetryPolicy

from tests.valkey import COREDIS_RUBBISH, Server, free_port
from trio_wskit.errors import WsKitError
from trio_wskit.limiter import Decision, Policy
from trio_wskit.limiter.redis import RedisRateLimiter, open_redis_limiter

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]

POLICY = Policy(10, Fraction(1, 1000))
MAX_WAIT = 0.25


@asynccontextmanager
async def at_most(seconds: float) -> AsyncGenerator[None]:
    start = trio.current_time()
    yield
    assert trio.current_time() - start < seconds


async def recover(limiter: RedisRateLimiter) -> Decision:
    """Ask until the store answers; a few seconds are enough, whatever the machine does besides."""
    with trio.fail_after(10):
        while True:
            try:
                return await limiter.consume("k", 0)
            except WsKitError:
                await trio.sleep(0.02)


async def unavailable(limiter: RedisRateLimiter) -> WsKitError:
    with pytest.raises(WsKitError) as caught:
        await limiter.consume("k")
    assert caught.value.code == "UNAVAILABLE"
    return caught.value


# --- nobody there ---


async def test_it_opens_without_a_server_and_says_so_when_asked() -> None:
    async with open_redis_limiter(f"redis://127.0.0.1:{free_port()}", POLICY, breaker_failures=2) as limiter:
        for _ in range(2):
            await unavailable(limiter)
        error = await unavailable(limiter)
        assert error.retry_after is not None
        assert 0 < error.retry_after <= 1.0
        with pytest.raises(WsKitError, match="UNAVAILABLE"):
            await limiter.reset("k")
        statistics = limiter.statistics()
        assert (statistics.calls, statistics.store_errors, statistics.breaker_openings) == (2, 4, 1)


async def test_deny_refuses_and_says_when_to_come_back() -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    async with open_redis_limiter(url, POLICY, on_store_error="deny", breaker_failures=2, max_wait=MAX_WAIT) as limiter:
        assert await limiter.consume("k") == Decision(False, 0, MAX_WAIT)
        await limiter.consume("k")
        refused = await limiter.consume("k")
        assert not refused.allowed
        assert refused.retry_after is not None
        assert 0 < refused.retry_after <= 1.0
        assert await limiter.consume("k", 0) == Decision(True, 0, 0.0)
        assert await limiter.consume("k", 11) == Decision(False, 0, None)
        many = await limiter.consume_many([("a", 1), ("b", 0)])
        assert not many
        with pytest.raises(WsKitError, match="RESOURCE_EXHAUSTED"):
            async with limiter.reserve("k"):
                pytest.fail("it was entered")


async def test_allow_lets_everything_pass_that_is_possible() -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    async with open_redis_limiter(url, POLICY, on_store_error="allow", breaker_failures=1) as limiter:
        assert await limiter.consume("k") == Decision(True, 0, 0.0)
        assert await limiter.consume("k", 11) == Decision(False, 0, None)
        assert await limiter.wait("k") == Decision(True, 0, 0.0)
        assert await limiter.consume_many([("a", 1), ("b", 1)])
        async with limiter.reserve("k", 3) as reservation:
            reservation.settle(1)
        await trio.testing.wait_all_tasks_blocked()
        assert limiter.statistics().lost_settlements == 1
        assert limiter.statistics().calls == 1


# --- killed, restarted, paused ---


async def test_a_killed_server_is_unavailable_and_a_restarted_one_starts_with_full_buckets(own_server: Server) -> None:
    async with open_redis_limiter(own_server.url, POLICY, breaker_failures=2, breaker_seconds=0.05) as limiter:
        await limiter.consume("k", 7)
        own_server.kill()
        async with at_most(5):
            for _ in range(20):
                await unavailable(limiter)
        own_server.start()
        assert await recover(limiter) == Decision(True, 10, 0.0)
        assert await limiter.consume("k", 7) == Decision(True, 3, 0.0)


async def test_callers_of_a_server_that_is_killed_under_them_are_all_answered(own_server: Server) -> None:
    answers: list[Decision | str] = []
    under_way = trio.Event()

    async def call(limiter: RedisRateLimiter, number: int) -> None:
        for turn in range(20):
            if turn == 5:
                under_way.set()
            try:
                answers.append(await limiter.consume(f"k{number}"))
            except WsKitError as error:
                answers.append(error.code)

    async with open_redis_limiter(own_server.url, POLICY, breaker_seconds=0.05, deny_cache=0) as limiter:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(call, limiter, number)
                await under_way.wait()
                own_server.kill()
        assert len(answers) == 200
        assert "UNAVAILABLE" in answers


async def test_a_paused_server_holds_nobody_for_longer_than_was_said(own_server: Server) -> None:
    async with open_redis_limiter(own_server.url, POLICY, max_wait=MAX_WAIT, breaker_seconds=0.1) as limiter:
        await limiter.consume("k")
        own_server.pause()
        async with at_most(3 * MAX_WAIT + 2):
            for _ in range(3):
                await unavailable(limiter)
        async with at_most(0.1 + MAX_WAIT):
            for _ in range(50):
                await unavailable(limiter)
        own_server.resume()
        # What was sent while it slept may have been done or not.
        left = (await recover(limiter)).remaining
        assert 9 - 3 - 50 <= left <= 9
        assert await limiter.consume("k", 0) == Decision(True, left, 0.0)


async def test_a_caller_cancelled_while_the_server_sleeps_is_gone_in_time(own_server: Server) -> None:
    async with open_redis_limiter(own_server.url, POLICY, max_wait=MAX_WAIT, on_store_error="deny") as limiter:
        await limiter.consume("k")
        own_server.pause()
        async with at_most(MAX_WAIT + 2):
            with trio.move_on_after(0.05) as scope:
                await limiter.consume("k")
        assert scope.cancel_called
        async with at_most(MAX_WAIT + 2):
            with trio.move_on_after(0.05) as scope:
                await limiter.wait("k")
        assert scope.cancelled_caught
        own_server.resume()
        # Whoever comes next is served.
        await limiter.reset("other")


async def test_the_block_ends_in_time_though_the_server_sleeps(own_server: Server) -> None:
    async with (
        at_most(4 * MAX_WAIT + 2),
        open_redis_limiter(own_server.url, POLICY, max_wait=MAX_WAIT) as limiter,
        limiter.reserve("k", 5),
    ):
        own_server.pause()
    assert limiter.statistics().lost_settlements == 1


async def test_who_waits_for_tokens_goes_on_when_the_server_is_back(own_server: Server) -> None:
    async with open_redis_limiter(
        own_server.url, Policy(1, 20), on_store_error="deny", max_wait=MAX_WAIT, breaker_seconds=0.05
    ) as limiter:
        await limiter.consume("k")
        own_server.kill()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(limiter.wait, "k")
                await trio.sleep(0.2)
                own_server.start()
        assert limiter.statistics().questions == 2
        assert limiter.statistics().store_errors > 0


async def test_a_cluster_that_is_gone_is_unavailable_slot_by_slot(tmp_path: Path) -> None:
    with Server(tmp_path, cluster_enabled="yes", cluster_port=str(free_port())) as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        server.wait_for_cluster()
        async with (
            RedisCluster("127.0.0.1", server.port, retry_policy=NoRetryPolicy()) as client,
            open_redis_limiter(client, POLICY, max_wait=MAX_WAIT) as limiter,
        ):
            await limiter.consume("k")
            server.kill()
            async with at_most(3 * MAX_WAIT + 2), trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(unavailable, limiter)
            assert limiter.statistics().store_errors == 3


# --- a server that answers, but not with a decision ---


async def test_a_server_without_memory_is_unavailable_and_asked_again(own_server: Server) -> None:
    async with open_redis_limiter(own_server.url, POLICY) as limiter:
        await limiter.consume("k")
        own_server.command("CONFIG", "SET", "maxmemory", "1")
        for _ in range(5):
            assert "OOM" in str((await unavailable(limiter)).__cause__)
        own_server.command("CONFIG", "SET", "maxmemory", "0")
        assert await limiter.consume("k") == Decision(True, 8, 0.0)
        assert limiter.statistics().breaker_openings == 0


async def test_a_server_that_may_not_write_is_unavailable(own_server: Server) -> None:
    async with open_redis_limiter(own_server.url, POLICY) as limiter:
        await limiter.consume("k")
        own_server.command("REPLICAOF", "127.0.0.1", str(free_port()))
        assert "READONLY" in str((await unavailable(limiter)).__cause__)
        own_server.command("REPLICAOF", "NO", "ONE")
        assert (await recover(limiter)).remaining == 9


# --- cut in the middle ---


@final
class Wire:
    """A link to the server that can be cut: before the next request goes out, or before its answer comes in."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.cut_request = False
        self.cut_answer = False
        self.port = 0
        self.cuts = 0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = int(listeners[0].socket.getsockname()[1])
        task_status.started()
        await trio.serve_listeners(self._link, listeners)

    async def _link(self, client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", self._server.port)
        async with client, server, trio.open_nursery() as nursery:

            async def pump(source: trio.SocketStream, sink: trio.SocketStream, is_cut: Callable[[], bool]) -> None:
                try:
                    async for data in source:
                        if is_cut():
                            self.cuts += 1
                            break
                        await sink.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(pump, client, server, lambda: self.cut_request)
            nursery.start_soon(pump, server, client, lambda: self.cut_answer)


@asynccontextmanager
async def wired(server: Server) -> AsyncGenerator[tuple[Wire, RedisRateLimiter]]:
    wire = Wire(server)
    async with trio.open_nursery() as nursery:
        await nursery.start(wire.run)
        async with open_redis_limiter(f"redis://127.0.0.1:{wire.port}", POLICY, breaker_failures=100) as limiter:
            yield wire, limiter
        nursery.cancel_scope.cancel()


async def test_a_request_whose_answer_is_lost_is_paid_once(own_server: Server) -> None:
    async with wired(own_server) as (wire, limiter):
        assert (await limiter.consume("k", 1)).remaining == 9
        wire.cut_answer = True
        with pytest.raises(WsKitError, match="UNAVAILABLE"):
            await limiter.consume("k", 2)
        wire.cut_answer = False
        assert (await recover(limiter)).remaining == 7
        assert wire.cuts == 1


async def test_a_request_that_never_arrived_is_not_paid(own_server: Server) -> None:
    async with wired(own_server) as (wire, limiter):
        assert (await limiter.consume("k", 1)).remaining == 9
        wire.cut_request = True
        with pytest.raises(WsKitError, match="UNAVAILABLE"):
            await limiter.consume("k", 2)
        wire.cut_request = False
        assert (await recover(limiter)).remaining == 9


async def test_a_settlement_whose_call_is_cut_is_counted_as_lost_and_all_is_paid(own_server: Server) -> None:
    async with wired(own_server) as (wire, limiter):
        async with limiter.reserve("k", 6) as reservation:
            reservation.settle(1)
            wire.cut_request = True
        with pytest.raises(WsKitError, match="UNAVAILABLE"):
            await limiter.consume("k", 0)
        assert limiter.statistics().lost_settlements == 1
        wire.cut_request = False
        assert (await recover(limiter)).remaining == 4
