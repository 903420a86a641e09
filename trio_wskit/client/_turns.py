"""What else happens when a connection comes, goes, or will never come."""

from __future__ import annotations

from typing import final

from trio_wskit.client._lifecycle import Lifecycle
from trio_wskit.client._link import Link
from trio_wskit.client._queue import OfflineQueue
from trio_wskit.client._receive import Receiver
from trio_wskit.client._requests import Requests
from trio_wskit.client._sending import Sender
from trio_wskit.client._stats import ClientStats
from trio_wskit.client._streams import Bell, again
from trio_wskit.client._subscriptions import Subscriptions
from trio_wskit.errors import ConnectionClosed

__all__ = ["Turns"]


@final
class Turns:
    """A `Listener` of one client's life; and the counters, which are of the same parts.

    Attributes:
        last_link: the present connection, or the last one.
    """

    def __init__(
        self,
        *,
        life: Lifecycle,
        requests: Requests,
        receiver: Receiver,
        sender: Sender,
        queue: OfflineQueue,
        subscriptions: Subscriptions,
        bell: Bell,
    ) -> None:
        self.last_link: Link | None = None
        self._life = life
        self._requests = requests
        self._receiver = receiver
        self._sender = sender
        self._queue = queue
        self._subscriptions = subscriptions
        self._bell = bell

    def on_open(self, link: Link) -> None:
        """Subscriptions first, then what waited."""
        self.last_link = link
        self._requests.scrub = link.scrub
        self._subscriptions.connected()
        self._sender.flush(link)

    def on_lost(self, link: Link, closed: ConnectionClosed) -> None:
        """No answer will come for what was sent on it."""
        self._requests.settle_all(lambda: again(closed), sent_on=link)

    def on_end(self, closed: ConnectionClosed, *, gave_up: bool) -> None:
        """Nothing waits any more."""
        self._queue.clear()
        self._requests.settle_all(lambda: again(closed))
        self._subscriptions.end(closed)
        self._receiver.end(closed if gave_up else None)
        self._bell.ring()

    def on_failed(self, error: Exception) -> None:
        """An attempt failed."""
        if self._receiver.on_error:
            self._receiver.failed(error)

    def stats(self, retries: int) -> ClientStats:
        """See `Client.stats`."""
        return ClientStats(
            attempts=self._life.attempts,
            connects=self._life.connects,
            pending=len(self._requests),
            queued=len(self._queue),
            queue_dropped=self._queue.dropped,
            late=self._requests.late,
            unhandled=self._receiver.unhandled,
            refused=self._receiver.refused,
            retries=retries,
        )
