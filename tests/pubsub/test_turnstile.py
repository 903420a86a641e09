"""One after the other, one in a pass."""

from __future__ import annotations

import gc

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wskit.pubsub._turnstile import Turnstile


async def test_all_go_through_in_the_order_in_which_they_came_and_one_in_a_pass(autojump_clock: MockClock) -> None:
    stile, through = Turnstile(), list[tuple[int, int]]()
    passes = 0

    class Passes(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            nonlocal passes
            passes += 1

    async def go(number: int) -> None:
        await trio.sleep(number / 1000)
        await stile.turn()
        through.append((number, passes))
        stile.next()

    await stile.turn()
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(go, number)
        await trio.sleep(1)
        trio.lowlevel.add_instrument(instrument := Passes())
        stile.next()
    trio.lowlevel.remove_instrument(instrument)
    assert [number for number, _ in through] == [0, 1, 2, 3, 4]
    assert [at - through[0][1] for _, at in through] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("waits", [False, True], ids=["at the gate", "in the line"])
async def test_who_is_cancelled_holds_up_nobody(autojump_clock: MockClock, waits: bool) -> None:
    stile = Turnstile()
    with trio.fail_after(1):
        if waits:
            await stile.turn()
        with trio.CancelScope() as scope:
            scope.cancel()
            await stile.turn()
        assert scope.cancelled_caught
        if waits:
            stile.next()
        await stile.turn()
        stile.next()


async def test_whose_turn_has_come_has_it_though_cancelled_then(autojump_clock: MockClock) -> None:
    stile, through = Turnstile(), list[str]()

    async def go() -> None:
        await stile.turn()
        through.append("through")
        stile.next()

    with trio.fail_after(1):
        await stile.turn()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go)
            await wait_all_tasks_blocked()
            stile.next()
            nursery.cancel_scope.cancel()
        assert through == ["through"]
        await stile.turn()


async def test_who_waits_keeps_no_exception(autojump_clock: MockClock) -> None:
    def kept() -> list[object]:
        return [one for one in gc.get_objects() if type(one) is trio.WouldBlock]

    stile = Turnstile()
    await stile.turn()
    async with trio.open_nursery() as nursery:
        before = kept()  # by other tests
        for _ in range(10):
            nursery.start_soon(stile.turn)
        await wait_all_tasks_blocked()
        assert not [one for one in kept() if not any(one is other for other in before)]
        nursery.cancel_scope.cancel()
