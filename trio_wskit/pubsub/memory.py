"""The driver of a single process: an index, and nothing else."""

from __future__ import annotations

from collections.abc import Collection
from typing import final

from trio_wskit._core.patterns import SubscriptionIndex
from trio_wskit._core.publishing import PublishEnvelope, PublishResult

__all__ = ["MemoryPubSub"]


@final
class MemoryPubSub:
    """Topics within one process. Its figures are exact."""

    def __init__(self) -> None:
        self._index = SubscriptionIndex()

    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        """Nothing leaves this process; tell how many subscribers there are. Never waits."""
        subscribers, matching = self._index.match(envelope.topic)
        matched = len(subscribers) - (envelope.exclude in subscribers)
        return PublishResult(ok=True, capability="exact", matched_local=matched, matching=matching)

    async def subscribe(self, client_id: str, topic: str) -> None:
        """Add to the index; no change where it is there. Never waits."""
        self._index.add(client_id, topic)

    async def unsubscribe(self, client_id: str, topic: str) -> None:
        """Remove from the index; no change where it is not there. Never waits."""
        self._index.remove(client_id, topic)

    def local_subscribers(self, topic: str) -> Collection[str]:
        """The client ids, those of the topic itself in the order in which they subscribed. It may be a live view."""
        return self._index.subscribers(topic)

    def list_topics(self) -> tuple[str, ...]:
        """Every topic and pattern that has a subscriber."""
        return tuple(self._index.names())

    def has_topic(self, topic: str) -> bool:
        """True where somebody subscribes to this very topic or pattern."""
        return topic in self._index

    async def aclose(self) -> None:
        """There is nothing to close."""
