"""What leaves a client: on its link, or, while there is none, by way of the offline queue."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, final

import trio

from trio_wskit._core.envelope import ABORT, RESERVED_META
from trio_wskit._core.frames import text_frame
from trio_wskit._core.json_text import dumps
from trio_wskit._core.schema import spec_of
from trio_wskit.client._lifecycle import Lifecycle
from trio_wskit.client._link import Link
from trio_wskit.client._queue import OfflineQueue, Outgoing
from trio_wskit.client._requests import Pending, Requests
from trio_wskit.errors import ConnectionClosed, TrioWskitError

__all__ = ["Meta", "Sender"]

Meta = Mapping[str, Any]


@final
class Sender:
    """Sends for one client.

    Args:
        life: has the link.
        queue: where what is sent without one waits.
        requests: those that wait for their answers.
        wall_clock: gives seconds since 1970.
    """

    def __init__(
        self, life: Lifecycle, queue: OfflineQueue, requests: Requests, wall_clock: Callable[[], float]
    ) -> None:
        self._life = life
        self._queue = queue
        self._requests = requests
        self._wall_clock = wall_clock

    def meta(self, more: Meta | None = None, correlation_id: str | None = None) -> dict[str, Any]:
        """The meta of a message that leaves now; of `more` without what is not the caller's to say."""
        full: dict[str, Any] = {"timestamp": int(self._wall_clock() * 1000)}
        if more:
            full.update(more)
            for key in (*RESERVED_META, "correlationId"):
                full.pop(key, None)
        if correlation_id is not None:
            full["correlationId"] = correlation_id
        return full

    async def submit(self, outgoing: Outgoing) -> None:
        """Send, or queue. Waits for room in the outbox.

        Raises:
            ConnectionClosed: the client is closed, or has given up; or is not connected, and the queue is ``off``.
            WsKitError: RESOURCE_EXHAUSTED: the queue has no room.

        Cancelled: nothing was accepted.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            self._life.check()
            link = self._life.link
            if link is None:
                self._queue.add(outgoing)
                await trio.lowlevel.cancel_shielded_checkpoint()
                return
            try:
                await link.send(outgoing.encode(link.meta_keys))
            except ConnectionClosed:
                link.broke()
                continue
            if outgoing.on_sent is not None:
                outgoing.on_sent(link)
            return

    def submit_at_once(self, outgoing: Outgoing) -> bool:
        """The usual case of `submit`, without its wait; False where it must be called."""
        link = self._life.link
        if link is None or not link.offer(outgoing.encode(link.meta_keys)):
            return False
        if outgoing.on_sent is not None:
            outgoing.on_sent(link)
        return True

    def take_back(self, outgoing: Outgoing, pending: Pending) -> None:
        """Nobody wants the answer of a request any more: unqueue it, or tell the server to stop."""
        self._queue.remove(outgoing)
        link = self._life.link
        if link is not None and self._life.state == "open" and pending.sent_on is link and not pending.answered:
            link.push(text_frame(dumps({"type": ABORT, "meta": self.meta(None, pending.id)})))

    def flush(self, link: Link) -> None:
        """Send what waited, at the begin of a connection."""
        for outgoing in self._queue.take_all():
            link.push(outgoing.encode(link.meta_keys))
            if outgoing.on_sent is not None:
                outgoing.on_sent(link)

    def push(self, message: object, on_settled: Callable[[Any, Exception | None], None]) -> None:
        """See `_subscriptions.Wire`."""
        link = self._life.link
        if link is None:
            return
        try:
            spec = spec_of(type(message))
            name = None if spec.reply is None else str(uuid.uuid4())
            encoded = spec.encode(message, self.meta(None, name))
        except TrioWskitError as error:  # in the message, which is the application's own
            on_settled(None, error)
            return
        link.push(text_frame(encoded))
        if spec.reply is None:
            on_settled(None, None)
        else:
            self._requests.open(
                spec.reply, name, on_settled=lambda pending: on_settled(pending.reply, pending.error), is_limited=False
            ).sent_on = link
