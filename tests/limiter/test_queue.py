from __future__ import annotations

import pytest
import trio
import trio.testing

from trio_wskit._core.bucket import Decision, Policy
from trio_wskit.errors import WsKitError
from trio_wskit.limiter._queue import Queue

POLICY = Policy(5, 1)


async def yes(key: str, cost: int) -> Decision:
    await trio.lowlevel.checkpoint()
    return Decision(True, 0, 0.0)


async def never(key: str, cost: int) -> Decision:
    await trio.lowlevel.checkpoint()
    return Decision(False, 0, None)


async def later(key: str, cost: int) -> Decision:
    await trio.lowlevel.checkpoint()
    return Decision(False, 0, 1000.0)


async def test_nothing_is_left_of_a_line_when_all_are_served() -> None:
    queue = Queue()
    await queue.wait(yes, "k", 1, POLICY)
    assert queue.keys_waited_for() == 0


async def test_nothing_is_left_of_a_line_when_it_was_in_vain() -> None:
    queue = Queue()
    with pytest.raises(WsKitError, match="exceeds capacity"):
        await queue.wait(never, "k", 6, POLICY)
    assert queue.keys_waited_for() == 0


async def test_nothing_is_left_of_a_line_when_all_were_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    queue = Queue()
    async with trio.open_nursery() as nursery:
        for key in "aab":
            nursery.start_soon(queue.wait, later, key, 1, POLICY)
        await trio.testing.wait_all_tasks_blocked()
        assert queue.keys_waited_for() == 2
        nursery.cancel_scope.cancel()
    assert queue.keys_waited_for() == 0


async def test_only_the_first_in_line_asks(autojump_clock: trio.testing.MockClock) -> None:
    queue = Queue()
    asked: list[int] = []

    async def ask(key: str, cost: int) -> Decision:
        await trio.lowlevel.checkpoint()
        asked.append(cost)
        return Decision(trio.current_time() >= cost, 0, max(0.0, cost - trio.current_time()))

    async with trio.open_nursery() as nursery:
        for cost in (3, 2, 1):
            nursery.start_soon(queue.wait, ask, "k", cost, POLICY)
            await trio.testing.wait_all_tasks_blocked()
    assert asked == [3, 3, 2, 1]
