"""The way out over Redis: each publish is sent once, on a link that is opened when it is needed."""

from __future__ import annotations

import random
from typing import Any, Final, final

import trio

from trio_wskit._core.backoff import Backoff
from trio_wskit._core.publishing import PublishResult
from trio_wskit._core.sharding import slot_of
from trio_wskit.pubsub._redis_link import Address, Link, Refused, Servers, Slots, lost

__all__ = ["Egress"]

_BACKOFF: Final = Backoff(initial_delay=0.05, max_delay=1.0)


@final
class _Way:
    """To one server: a link, or when the next may be tried."""

    __slots__ = ("error", "failures", "link", "not_before", "opening")

    def __init__(self) -> None:
        self.link: Link | None = None
        self.opening: trio.Event | None = None
        self.failures = 0
        self.not_before = 0.0
        self.error: Exception | None = None


@final
class Egress:
    """Publishes.

    Nothing is ever sent twice: what came of a publish whose answer is lost nobody knows, and it counts as failed.

    Args:
        servers: where to.
        nursery: owns the links, and the task that opens one.
        is_sharded: by SPUBLISH, each channel to the node that has its slot.
        max_wait: seconds that a publish may take, with the opening of a link.
        max_bytes: of what is published and not answered yet.
    """

    def __init__(
        self, servers: Servers, nursery: trio.Nursery, *, is_sharded: bool, max_wait: float, max_bytes: int
    ) -> None:
        self._servers = servers
        self._nursery = nursery
        self._is_sharded = is_sharded
        self._command: bytes = b"SPUBLISH" if is_sharded else b"PUBLISH"
        self._count: bytes = b"PUBSUB SHARDNUMSUB" if is_sharded else b"PUBSUB NUMSUB"
        self._max_wait = max_wait
        self._max_bytes = max_bytes
        self._bytes = 0
        self._ways: dict[Address | None, _Way] = {}
        self._slots: Slots | None = None
        self._is_closed = False

    async def publish(self, channel: str, data: bytes, *, counted: bool) -> PublishResult | int:
        """Publish, and wait for the answer.

        Args:
            channel: where to.
            data: what.
            counted: ask as well how many links of other processes and of this one listen to the channel by its name.

        Returns:
            That number, or 0 where it was not asked for; or the failure.

        Cancelled: it may have been published.
        """
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return PublishResult.failure("CONNECTION_CLOSED", None, {"why": "the driver is closed"})
        if self._bytes + len(data) > self._max_bytes:
            await trio.lowlevel.checkpoint()
            return PublishResult.failure("BACKPRESSURE", None, {"limit": self._max_bytes})
        self._bytes += len(data)
        link: Link | None = None
        failure: Exception
        try:
            with trio.move_on_after(self._max_wait):
                # A second time only where a node of the cluster has said that another is to be asked, and done nothing.
                for is_last in (False, True):
                    link = await self._link_to(channel)
                    try:
                        return await self._ask(link, channel, data, counted)
                    except Refused as refused:
                        if is_last or not refused.moved:
                            raise
                        self._slots = None
            # Who does not answer will not be asked again: what waits there would only grow.
            if link is not None:
                link.cut()
            failure = trio.TooSlowError(f"Redis has not answered within {self._max_wait:g} s")
        except Exception as error:
            failure = error
        finally:
            self._bytes -= len(data)
        return PublishResult.failure("ADAPTER_ERROR", failure)

    async def _ask(self, link: Link, channel: str, data: bytes, counted: bool) -> int:
        await link.ask(self._command, channel, data)
        if not counted:
            return 0
        # The answer is a list of names and numbers in turn, in RESP3 too.
        found: list[Any] = await link.ask(self._count, channel)
        return int(found[1])

    def close(self) -> None:
        """Let every later publish fail, and drop the links."""
        self._is_closed = True
        for way in self._ways.values():
            if way.link is not None:
                way.link.cut()

    async def _link_to(self, channel: str) -> Link:
        address: Address | None = None
        if self._is_sharded:
            if self._slots is None:
                seed = await self._open_link(None)
                self._slots = await self._servers.slots(seed) or ()
                for gone in self._ways.keys() - {None, *(node for _, _, node in self._slots)}:
                    old = self._ways.pop(gone).link
                    if old is not None:
                        old.cut()
            slot = slot_of(channel)
            address = next((node for first, last, node in self._slots if first <= slot <= last), None)
        try:
            return await self._open_link(address)
        except Exception:
            if address is not None:
                self._slots = None  # the node may have been replaced
            raise

    async def _open_link(self, address: Address | None) -> Link:
        way = self._ways.setdefault(address, _Way())
        while way.link is None or not way.link.is_usable:
            if self._is_closed:
                raise lost("the driver is closed")
            if way.opening is None:
                wait = way.not_before - trio.current_time()
                if wait > 0:
                    raise lost(f"Redis cannot be reached; it is tried again in {wait:.2f} s") from way.error
                way.opening = trio.Event()
                self._nursery.start_soon(self._open, way, address)
            await way.opening.wait()
        return way.link

    async def _open(self, way: _Way, address: Address | None) -> None:
        """Open a link for all who wait for it; none of them that gives up takes it from the others."""
        opening = way.opening
        assert opening is not None
        try:
            way.link = await self._servers.connect(self._nursery, address)
            way.failures = 0
            way.error = None
        except Exception as error:
            way.failures += 1
            way.error = error
            way.not_before = trio.current_time() + _BACKOFF.delay(way.failures, 0.5 + random.random() / 2)
        finally:
            way.opening = None
            opening.set()
