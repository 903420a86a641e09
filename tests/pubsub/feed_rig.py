"""`Feeds` in a house that is played."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from trio.testing import wait_all_tasks_blocked

from trio_wskit._core.history import Entry, Position, Replay
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit.pubsub._feeds import Arrival, Feeds

__all__ = ["Fan", "Outlet", "T", "come", "running"]

T: Final = "t"


class Fan:
    """What came of one message."""

    def __init__(self, must_wait: bool) -> None:
        self.must_wait = must_wait
        self.waited = self.ended = False

    async def wait(self) -> None:
        await trio.sleep(1)
        self.waited = True

    def end(self) -> None:
        self.ended = True


class Outlet:
    """A house with clients, and a store that a test fills."""

    def __init__(self) -> None:
        self.got: dict[str, list[object]] = {"a": []}  # offsets, and positions that were told
        self.held: set[str] = set()
        self.begun: list[tuple[str, int]] = []  # after these
        self.store: dict[int, bytes] = {}
        self.epoch = "e"
        self.newest = 0
        self.error: Exception | None = None
        self.reads = 0
        self.at_once = self.most_at_once = 0
        self.must_wait = False
        self.busy = False
        self.fans: list[Fan] = []
        self.unwanted: set[str] = set()

    def fan_out(self, arrival: Arrival, skip: Collection[str]) -> Any:
        for client, got in self.got.items():
            if client not in skip:
                got.append(arrival.position.offset)
        self.fans.append(Fan(self.must_wait))
        return self.fans[-1]

    def tell_all(self, topic: str, position: Position, skip: Collection[str]) -> None:
        for client in self.got:
            if client not in skip:
                self.tell(client, topic, position)

    def tell(self, client_id: str, topic: str, position: Position) -> None:
        self.got[client_id].append((position.epoch, position.offset))

    def begin_after(self, topic: str, position: Position) -> None:
        self.begun.append((position.epoch, position.offset))

    def is_busy(self, topic: str) -> bool:
        return self.busy

    def is_wanted(self, topic: str) -> bool:
        return topic not in self.unwanted and bool(self.got or self.held)

    def is_held(self, topic: str) -> bool:
        return bool(self.held)

    def is_live(self, client_id: str, topic: str) -> bool:
        return client_id in self.got and client_id not in self.held

    def others_are_live(self, client_id: str, topic: str) -> bool:
        return any(other != client_id and self.is_live(other, topic) for other in self.got)

    async def read_after(self, topic: str, since: Position | None) -> Replay:
        self.reads += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await trio.sleep(0.01)
        self.at_once -= 1
        if self.error is not None:
            raise self.error
        position = Position(self.epoch, self.newest)
        if since is not None and since.epoch != self.epoch:
            return Replay(position, None)
        first = 1 if since is None else since.offset + 1
        wanted = [offset for offset in self.store if offset >= first]
        if since is not None and wanted != [*range(first, self.newest + 1)]:
            return Replay(position, None)
        return Replay(position, [Entry(offset, b'{"type":"T","meta":{}}') for offset in wanted])

    def keep(self, *offsets: int) -> None:
        """The store has these."""
        self.store.update(dict.fromkeys(offsets, b""))
        self.newest = max(self.newest, *offsets)


@asynccontextmanager
async def running() -> AsyncGenerator[tuple[Feeds, Outlet]]:
    outlet = Outlet()
    feeds = Feeds(outlet)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feeds.run)
        await wait_all_tasks_blocked()
        yield feeds, outlet
        nursery.cancel_scope.cancel()


def come(feeds: Feeds, *offsets: int, epoch: str = "e", topic: str = T) -> list[Any]:
    return [feeds.arrived(Arrival(Position(epoch, offset), PublishEnvelope(topic, "T"), b"{}")) for offset in offsets]
