from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trio_wskit.limiter._batch import MOST_TOGETHER, Batcher, Question, StoreError
from trio_wskit.limiter._breaker import Breaker

MAX_WAIT = 0.5


class FakeStore:
    """Answers with the number of the call, after `delay` seconds, or fails."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.error: StoreError | None = None
        self.silent: set[str] = set()
        self.calls: list[list[str]] = []
        self.dropped = 0

    async def call(self, questions: Sequence[Question]) -> None:
        self.calls.append([question.words for question in questions])
        number = len(self.calls)
        await trio.sleep(self.delay)
        if self.error:
            raise self.error
        for question in questions:
            if question.words in self.silent:
                question.fail(StoreError("not this one"))
            else:
                question.answer([number])

    def drop(self) -> None:
        self.dropped += 1


@asynccontextmanager
async def running(store: FakeStore, breaker: Breaker | None = None) -> AsyncGenerator[Batcher]:
    batcher = Batcher(store, MAX_WAIT, breaker or Breaker(3, 10.0))
    async with trio.open_nursery() as nursery:
        await nursery.start(batcher.run)
        yield batcher
        nursery.cancel_scope.cancel()


def asking(words: str) -> Question:
    return Question((words,), words, 1)


async def test_all_that_is_asked_in_one_pass_goes_in_one_call_in_order(autojump_clock: trio.testing.MockClock) -> None:
    store = FakeStore()
    answers: list[Sequence[int]] = []

    async def ask(batcher: Batcher, words: str) -> None:
        answers.append(await batcher.ask(asking(words)))

    async with running(store) as batcher:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(ask, batcher, str(number))
        assert sorted(store.calls[0]) == [str(number) for number in range(10)]
        assert answers == [[1]] * 10
        assert batcher.calls == 1


async def test_what_comes_while_a_call_is_under_way_goes_in_the_next(autojump_clock: trio.testing.MockClock) -> None:
    store = FakeStore()
    store.delay = 0.1
    async with running(store) as batcher, trio.open_nursery() as nursery:
        nursery.start_soon(batcher.ask, asking("a"))
        await trio.sleep(0.05)
        nursery.start_soon(batcher.ask, asking("b"))
        await trio.sleep(0.01)
        nursery.start_soon(batcher.ask, asking("c"))
    assert store.calls == [["a"], ["b", "c"]]
    assert trio.current_time() == 0.2


async def test_a_call_carries_no_more_than_the_bound(autojump_clock: trio.testing.MockClock) -> None:
    store = FakeStore()
    async with running(store) as batcher, trio.open_nursery() as nursery:
        for number in range(MOST_TOGETHER + 1):
            nursery.start_soon(batcher.ask, asking(str(number)))
    assert [len(call) for call in store.calls] == [MOST_TOGETHER, 1]


async def test_a_question_cancelled_while_it_waits_is_never_sent(autojump_clock: trio.testing.MockClock) -> None:
    store = FakeStore()
    store.delay = 0.1
    async with running(store) as batcher, trio.open_nursery() as nursery:
        nursery.start_soon(batcher.ask, asking("a"))
        await trio.sleep(0.05)
        with trio.move_on_after(0.01) as scope:
            await batcher.ask(asking("b"))
        assert scope.cancelled_caught
        nursery.start_soon(batcher.ask, asking("c"))
    assert store.calls == [["a"], ["c"]]


async def test_a_question_cancelled_before_it_is_asked_is_never_sent(autojump_clock: trio.testing.MockClock) -> None:
    store = FakeStore()
    async with running(store) as batcher:
        with trio.CancelScope() as scope:
            scope.cancel()
            await batcher.ask(asking("a"))
        assert scope.cancelled_caught
        await trio.sleep(1)
    assert store.calls == []


async def test_when_all_that_waits_is_cancelled_nothing_is_called(autojump_clock: trio.testing.MockClock) -> None:
    store = FakeStore()
    store.delay = 0.1
    async with running(store) as batcher, trio.open_nursery() as nursery:
        nursery.start_soon(batcher.ask, asking("a"))
        await trio.sleep(0.05)
        with trio.move_on_after(0.01):
            await batcher.ask(asking("b"))
        await trio.sleep(1)
        assert store.calls == [["a"]]
        assert await batcher.ask(asking("c")) == [2]


async def test_a_question_that_was_sent_is_answered_and_not_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    store = FakeStore()
    store.delay = 0.1
    async with running(store) as batcher:
        with trio.move_on_after(0.05) as scope:
            assert await batcher.ask(asking("a")) == [1]
        assert not scope.cancelled_caught
        assert scope.cancel_called
        assert trio.current_time() == 0.1


async def test_a_store_that_says_nothing_fails_within_its_time(autojump_clock: trio.testing.MockClock) -> None:
    store = FakeStore()
    store.delay = 1000.0
    async with running(store) as batcher:
        with pytest.raises(StoreError, match=r"not answered within 0\.5 s"):
            await batcher.ask(asking("a"))
        assert trio.current_time() == MAX_WAIT
        assert (store.dropped, batcher.failures) == (1, 1)


async def test_an_open_breaker_answers_at_once_and_says_when_to_come_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = FakeStore()
    store.error = StoreError("down")
    async with running(store, Breaker(2, 10.0)) as batcher:
        for _ in range(2):
            with pytest.raises(StoreError, match="down"):
                await batcher.ask(asking("a"))
        await trio.sleep(4)
        with pytest.raises(StoreError, match="not answered of late") as caught:
            await batcher.ask(asking("b"))
        assert caught.value.retry_after == 6.0
        assert len(store.calls) == 2
        store.error = None
        await trio.sleep(6)
        assert await batcher.ask(asking("c")) == [3]


async def test_whoever_waits_behind_the_call_that_opens_the_breaker_fails_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = FakeStore()
    store.delay = 1000.0
    failed: list[float] = []

    async def ask(batcher: Batcher) -> None:
        with pytest.raises(StoreError) as caught:
            await batcher.ask(asking("x"))
        assert caught.value.retry_after == 10.0
        failed.append(trio.current_time())

    async with running(store, Breaker(1, 10.0)) as batcher, trio.open_nursery() as nursery:
        nursery.start_soon(ask, batcher)
        await trio.sleep(0.1)
        nursery.start_soon(ask, batcher)
    assert failed == [MAX_WAIT, MAX_WAIT]
    assert len(store.calls) == 1


async def test_while_one_call_tries_whether_the_store_is_back_others_do_not_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = FakeStore()
    store.error = StoreError("down")
    async with running(store, Breaker(1, 10.0)) as batcher, trio.open_nursery() as nursery:
        with pytest.raises(StoreError):
            await batcher.ask(asking("a"))
        await trio.sleep(10)
        store.error, store.delay = None, 0.2
        nursery.start_soon(batcher.ask, asking("b"))
        await trio.sleep(0.1)
        with pytest.raises(StoreError):
            await batcher.ask(asking("c"))
        await trio.sleep(0.2)
        assert await batcher.ask(asking("d")) == [3]
    assert store.calls == [["a"], ["b"], ["d"]]


async def test_one_question_that_fails_spoils_no_other(autojump_clock: trio.testing.MockClock) -> None:
    store = FakeStore()
    store.silent = {"bad"}
    failed: list[str] = []

    async def ask(batcher: Batcher, words: str) -> None:
        try:
            await batcher.ask(asking(words))
        except StoreError as error:
            failed.append(f"{words}: {error}")

    async with running(store) as batcher:
        async with trio.open_nursery() as nursery:
            for words in ("good", "bad", "better"):
                nursery.start_soon(ask, batcher, words)
        assert failed == ["bad: not this one"]
        assert len(store.calls) == 1
        assert batcher.failures == 0


async def test_what_is_told_is_done_before_what_is_asked_later(autojump_clock: trio.testing.MockClock) -> None:
    store = FakeStore()
    async with running(store) as batcher:
        batcher.tell(asking("settle"))
        await batcher.ask(asking("ask"))
        assert store.calls == [["settle", "ask"]]
        assert batcher.lost == 0


async def test_what_is_told_in_vain_is_counted(autojump_clock: trio.testing.MockClock) -> None:
    store = FakeStore()
    store.error = StoreError("down")
    async with running(store, Breaker(1, 10.0)) as batcher:
        batcher.tell(asking("one"))
        await trio.sleep(0.1)
        batcher.tell(asking("two"))
        await trio.sleep(0.1)
        batcher.close()
        batcher.tell(asking("three"))
        assert batcher.lost == 3
    assert store.calls == [["one"]]


async def test_closed_it_sends_what_waits_and_takes_no_more(autojump_clock: trio.testing.MockClock) -> None:
    store = FakeStore()
    store.delay = 0.1
    async with running(store) as batcher:
        batcher.tell(asking("a"))
        await trio.sleep(0.05)
        batcher.tell(asking("b"))
        batcher.close()
        with pytest.raises(trio.ClosedResourceError):
            await batcher.ask(asking("c"))
        await batcher.drain()
        assert store.calls == [["a"], ["b"]]
        assert trio.current_time() == 0.2


async def test_draining_takes_no_longer_than_a_call_may(autojump_clock: trio.testing.MockClock) -> None:
    store = FakeStore()
    store.delay = 0.4
    async with running(store) as batcher:
        for number in range(3 * MOST_TOGETHER):
            batcher.tell(asking(str(number)))
        await batcher.drain()
        assert trio.current_time() == MAX_WAIT


async def test_who_waits_when_it_ends_is_told_so(autojump_clock: trio.testing.MockClock) -> None:
    store = FakeStore()
    store.delay = 0.4
    failed: list[str] = []

    async def ask(batcher: Batcher) -> None:
        with pytest.raises(StoreError) as caught:
            await batcher.ask(asking("x"))
        failed.append(str(caught.value))

    async with trio.open_nursery() as nursery, running(store) as batcher:
        nursery.start_soon(ask, batcher)
        await trio.sleep(0.1)
        nursery.start_soon(ask, batcher)
        await trio.sleep(0.1)
    assert sorted(failed) == ["the rate limiter is closed", "the rate limiter was closed while it asked"]
