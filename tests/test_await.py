from __future__ import annotations

import types
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import pytest
import trio
from trio.testing import MockClock

from trio_wskit._await import run_until_wait


def watched() -> tuple[list[float], Callable[[], None]]:
    """A list of the times at which the function was called."""
    calls: list[float] = []
    return calls, lambda: calls.append(trio.current_time())


async def test_what_never_waits_gives_its_value_and_nobody_is_told() -> None:
    async def never() -> int:
        return 5

    calls, tell = watched()
    assert await run_until_wait(never(), tell) == 5
    assert calls == []


async def test_the_first_wait_is_told_once_before_it_happens(autojump_clock: MockClock) -> None:
    calls, tell = watched()
    seen: list[int] = []

    async def twice() -> str:
        seen.append(len(calls))
        await trio.sleep(1)
        seen.append(len(calls))
        await trio.sleep(1)
        return "done"

    assert await run_until_wait(twice(), tell) == "done"
    assert calls == [0.0]
    assert seen == [0, 1]
    assert trio.current_time() == 2


@pytest.mark.parametrize("waits", [0, 1, 3])
async def test_what_is_raised_comes_out(autojump_clock: MockClock, waits: int) -> None:
    async def fail() -> NoReturn:
        for _ in range(waits):
            await trio.sleep(1)
        raise KeyError("x")

    calls, tell = watched()
    with pytest.raises(KeyError, match="x"):
        await run_until_wait(fail(), tell)
    assert len(calls) == min(waits, 1)


@pytest.mark.parametrize("before", [0, 2])
async def test_a_cancellation_goes_in_and_comes_out(autojump_clock: MockClock, before: int) -> None:
    log: list[str] = []

    async def forever() -> None:
        try:
            await trio.sleep(before)
            await trio.sleep_forever()
        except trio.Cancelled:
            log.append("cancelled")
            raise
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            log.append("cleaned up")

    with trio.move_on_after(5) as scope:
        await run_until_wait(forever(), lambda: None)
    assert scope.cancelled_caught
    assert log == ["cancelled", "cleaned up"]
    assert trio.current_time() == 6


async def test_a_cancellation_that_is_swallowed_gives_the_value(autojump_clock: MockClock) -> None:
    async def stubborn() -> int:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return 7
        raise AssertionError

    with trio.move_on_after(1) as scope:
        assert await run_until_wait(stubborn(), lambda: None) == 7
    assert not scope.cancelled_caught


async def test_a_scope_cancelled_by_who_is_told_cancels_that_very_wait() -> None:
    with trio.CancelScope() as scope:
        await run_until_wait(trio.sleep_forever(), scope.cancel)  # noqa: ASYNC105 - that awaits it
    assert scope.cancelled_caught


async def test_a_wait_that_fails_at_once_can_be_caught_inside(autojump_clock: MockClock) -> None:
    async def outer() -> str:
        try:
            with trio.fail_after(1):
                await trio.sleep_forever()
        except trio.TooSlowError:
            await trio.sleep(1)
            return "slow"
        raise AssertionError

    assert await run_until_wait(outer(), lambda: None) == "slow"


async def test_nurseries_and_context_managers_work_inside(autojump_clock: MockClock) -> None:
    log: list[str] = []

    @asynccontextmanager
    async def room() -> AsyncGenerator[None]:
        await trio.sleep(1)
        yield
        await trio.sleep(1)
        log.append("left")

    async def work(name: str) -> None:
        await trio.sleep(1)
        log.append(name)

    async def all_of_it() -> None:
        async with room(), trio.open_nursery() as nursery:
            nursery.start_soon(work, "a")
            nursery.start_soon(work, "b")

    await run_until_wait(all_of_it(), lambda: None)
    assert sorted(log[:2]) == ["a", "b"]
    assert log[2:] == ["left"]


def test_a_coroutine_that_is_closed_closes_what_it_awaits() -> None:
    log: list[str] = []

    async def inner() -> None:
        try:
            await trio.sleep_forever()
        finally:
            log.append("closed")

    async def outer() -> None:
        await run_until_wait(inner(), lambda: None)

    async def main() -> None:
        coroutine: Coroutine[Any, Any, None] = outer()
        coroutine.send(None)  # it waits
        coroutine.close()

    trio.run(main)
    assert log == ["closed"]


@types.coroutine
def trap(name: str) -> Generator[str, object, object]:
    return (yield name)


def test_what_a_scheduler_throws_arrives_where_the_coroutine_waits() -> None:
    async def inner() -> str:
        try:
            await trap("first")
        except KeyError:
            answer = await trap("second")
        else:
            raise AssertionError
        try:
            await trap("third")
        except KeyError:
            return f"got {answer}"
        raise AssertionError

    async def outer() -> str:
        return await run_until_wait(inner(), lambda: None)

    coroutine = outer()
    assert coroutine.send(None) == "first"
    assert coroutine.throw(KeyError()) == "second"
    assert coroutine.send("an answer") == "third"
    with pytest.raises(StopIteration) as finished:
        coroutine.throw(KeyError())
    assert finished.value.value == "got an answer"
