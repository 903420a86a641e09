from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

import pytest
import trio
from trio.testing import assert_checkpoints

from tests.sessions import settle
from trio_wskit._core.envelope import ABSENT, Envelope
from trio_wskit._inbox import WOKEN, Inbox


def batch(*names: str) -> list[Envelope]:
    return [Envelope(name, {}, ABSENT) for name in names]


def put(inbox: Inbox, *names: str, size: int = 65_537) -> None:
    """Add a batch that came in so many bytes: unless they are few, it is not joined with another."""
    inbox.put_nowait(batch(*names), [bytes(size)])


async def get(inbox: Inbox) -> list[str]:
    return [envelope.type for envelope in await inbox.get()]


def is_full(inbox: Inbox) -> bool:
    return inbox.is_full


def ignore() -> None: ...


async def test_batches_are_taken_in_the_order_in_which_they_came() -> None:
    inbox = Inbox(3, ignore)
    put(inbox, "A", "B")
    put(inbox, "C")
    assert (len(inbox), inbox.messages) == (2, 3)
    assert await get(inbox) == ["A", "B"]
    assert await get(inbox) == ["C"]
    assert (len(inbox), inbox.messages) == (0, 0)


async def test_get_waits_for_a_batch() -> None:
    inbox = Inbox(3, ignore)
    got: list[list[str]] = []

    async def reader() -> None:
        got.append(await get(inbox))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await settle()
        put(inbox, "A")
    assert got == [["A"]]


async def test_get_lets_others_run_even_where_a_batch_is_there() -> None:
    inbox = Inbox(3, ignore)
    put(inbox, "A")
    with assert_checkpoints():
        await inbox.get()


@pytest.mark.parametrize("waiting", [False, True])
async def test_a_get_that_is_cancelled_has_taken_nothing(waiting: bool) -> None:
    inbox = Inbox(3, ignore)
    if not waiting:
        put(inbox, "A")
    with trio.CancelScope() as scope:
        scope.cancel()
        await inbox.get()
    assert scope.cancelled_caught
    if waiting:
        put(inbox, "A")
    assert await get(inbox) == ["A"]


async def test_a_closed_inbox_gives_what_it_has_and_then_ends() -> None:
    inbox = Inbox(3, ignore)
    put(inbox, "A")
    inbox.close()
    assert await get(inbox) == ["A"]
    for _ in range(2):
        with pytest.raises(trio.EndOfChannel):
            await inbox.get()


async def test_a_close_wakes_the_reader() -> None:
    inbox = Inbox(3, ignore)

    async def reader() -> None:
        with pytest.raises(trio.EndOfChannel):
            await inbox.get()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await settle()
        inbox.close()


async def test_a_full_inbox_says_so_and_refuses_and_tells_when_there_is_room() -> None:
    room: list[bool] = []
    inbox = Inbox(2, lambda: room.append(True))
    put(inbox, "A")
    assert not is_full(inbox)
    put(inbox, "B")
    assert is_full(inbox)
    with pytest.raises(trio.WouldBlock):
        put(inbox, "C")
    assert await get(inbox) == ["A"]
    assert room == [True]
    assert not is_full(inbox)
    assert await get(inbox) == ["B"]
    assert room == [True]


async def test_small_batches_that_wait_are_joined_up_to_64_kib() -> None:
    inbox = Inbox(2, ignore)
    put(inbox, "first", size=10)
    for n in range(64):
        put(inbox, f"N{n}", size=1024)
    assert len(inbox) == 1
    put(inbox, "next", size=1)  # 64 KiB have been added to the first
    assert len(inbox) == 2
    assert await get(inbox) == ["first", *(f"N{n}" for n in range(64))]
    assert await get(inbox) == ["next"]


async def test_a_batch_that_is_taken_grows_no_more() -> None:
    inbox = Inbox(2, ignore)
    put(inbox, "A", size=10)
    taken = await inbox.get()
    put(inbox, "B", size=10)
    assert [envelope.type for envelope in taken] == ["A"]
    assert await get(inbox) == ["B"]


async def test_what_wakes_a_reader_serves_as_any_outcome_does_and_more_than_once() -> None:
    def echo() -> Generator[str, None, None]:
        while True:
            yield "sent"

    async def async_echo() -> AsyncGenerator[str, None]:
        while True:
            yield "sent"

    sync, asynchronous = echo(), async_echo()
    for _ in range(2):
        assert WOKEN.unwrap() is None  # type: ignore[func-returns-value]
        assert WOKEN.send(sync) == "sent"
        assert await WOKEN.asend(asynchronous) == "sent"
    await asynchronous.aclose()
