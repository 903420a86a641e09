"""Streams of messages, and subscriptions, as scopes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar, final

import trio

from trio_wskit._core.schema import spec_of
from trio_wskit.client._lifecycle import Lifecycle
from trio_wskit.client._receive import Receiver
from trio_wskit.client._streams import Bell, Overflow, Stream
from trio_wskit.client._subscriptions import Gap, Subscriptions

__all__ = ["Listening"]

M = TypeVar("M")


@final
class Listening:
    """Opens streams for one client.

    Args:
        life: knows whether there is an end.
        receiver: puts into them what comes.
        subscriptions: what the server is asked for.
        bell: rung where there is room again.
    """

    def __init__(self, life: Lifecycle, receiver: Receiver, subscriptions: Subscriptions, bell: Bell) -> None:
        self._life = life
        self._receiver = receiver
        self._subscriptions = subscriptions
        self._bell = bell

    @asynccontextmanager
    async def messages(
        self, cls: type[M], where: Callable[[M], bool] | None, capacity: int, overflow: Overflow
    ) -> AsyncGenerator[Stream[M]]:
        """See `Client.messages`."""
        stream: Stream[M] = Stream(capacity, overflow, on_room=self._bell.ring)
        with self._tap(cls, stream, where):
            await trio.lowlevel.checkpoint()
            yield stream

    @contextmanager
    def _tap(self, cls: type[Any], stream: Stream[Any], where: Callable[[Any], bool] | None) -> Generator[None]:
        if self._life.closed is not None:
            stream.end(self._life.closed if self._life.gave_up else None)
        remove = self._receiver.add_stream(spec_of(cls), stream, where)
        try:
            yield
        finally:
            remove()
            stream.close()

    @asynccontextmanager
    async def subscribed(
        self,
        topic: str,
        cls: type[M],
        where: Callable[[M], bool] | None,
        subscribe: Callable[[str], object],
        unsubscribe: Callable[[str], object] | None,
        capacity: int,
        overflow: Overflow,
    ) -> AsyncGenerator[Stream[M | Gap]]:
        """See `Client.subscribed`."""

        def gap(lost: int) -> M | Gap:
            return Gap(topic, "overflow", lost)

        stream: Stream[M | Gap] = Stream(capacity, overflow, on_room=self._bell.ring, gap=gap)
        self._life.check()
        with self._tap(cls, stream, where):
            wanted = self._subscriptions.want(topic, subscribe, unsubscribe)
            try:
                wanted.on_gap.append(stream.put)
                wanted.on_failed.append(stream.end)
                try:
                    await wanted.wait()
                    yield stream
                finally:
                    wanted.on_gap.remove(stream.put)
                    wanted.on_failed.remove(stream.end)
            finally:
                self._subscriptions.leave(wanted)
