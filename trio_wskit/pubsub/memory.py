"""The driver of a single process: an index, and nothing else."""

from __future__ import annotations

from collections.abc import Collection
from typing import final

from trio_wskit._core.publishing import PublishEnvelope, PublishResult
from trio_wskit._core.topics import TopicIndex

__all__ = ["MemoryPubSub"]


@final
class MemoryPubSub:
    """Topics within one process. Its figures are exact."""

    def __init__(self) -> None:
        self._index = TopicIndex()

    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        """Nothing leaves this process; tell how many subscribers there are. Never waits."""
        subscribers = self._index.subscribers(envelope.topic)
        matched = len(subscribers) - (envelope.exclude in subscribers)
        return PublishResult(ok=True, capability="exact", matched_local=matched)

    async def subscribe(self, client_id: str, topic: str) -> None:
        """Add to the index; no change where it is there. Never waits."""
        self._index.add(client_id, topic)

    async def unsubscribe(self, client_id: str, topic: str) -> None:
        """Remove from the index; no change where it is not there. Never waits."""
        self._index.remove(client_id, topic)

    def local_subscribers(self, topic: str) -> Collection[str]:
        """A live view of the client ids, in the order in which they subscribed."""
        return self._index.subscribers(topic)

    def list_topics(self) -> tuple[str, ...]:
        """Every topic that has a subscriber."""
        return tuple(self._index.topics())

    def has_topic(self, topic: str) -> bool:
        """True where the topic has a subscriber."""
        return topic in self._index

    async def aclose(self) -> None:
        """There is nothing to close."""
