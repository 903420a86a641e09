"""Who subscribes to what: the local index, and the rules for a topic's name."""

from __future__ import annotations

import re
from collections.abc import Collection, KeysView
from typing import Final, final

from trio_wskit.errors import PubSubError

__all__ = ["MAX_TOPIC_LENGTH", "TopicIndex", "check_topic"]

MAX_TOPIC_LENGTH: Final = 128
_TOPIC: Final = re.compile(r"[a-z0-9:_./-]+", re.IGNORECASE | re.ASCII)
_NOBODY: Final[dict[str, None]] = {}


def check_topic(topic: str, *, pattern: re.Pattern[str] = _TOPIC, max_length: int = MAX_TOPIC_LENGTH) -> None:
    """Refuse a topic whose name is too long (that is looked at first) or does not match as a whole.

    Raises:
        PubSubError: INVALID_TOPIC, its details' ``why`` is ``length`` or ``pattern``.
    """
    if len(topic) > max_length:
        raise PubSubError(
            "INVALID_TOPIC",
            f"a topic has at most {max_length} characters, not {len(topic)}",
            {"why": "length", "length": len(topic), "max": max_length},
        )
    if not pattern.fullmatch(topic):
        raise PubSubError(
            "INVALID_TOPIC", f"a topic matches {pattern.pattern}, and {topic!r} does not", {"why": "pattern"}
        )


@final
class TopicIndex:
    """Topic to client ids and back; both ways are always in step, and nothing is kept for an empty topic or client.

    Subscribers keep the order in which they came.
    """

    __slots__ = ("_by_client", "_by_topic")

    def __init__(self) -> None:
        self._by_topic: dict[str, dict[str, None]] = {}
        self._by_client: dict[str, dict[str, None]] = {}

    def add(self, client_id: str, topic: str) -> bool:
        """Subscribe; False where it was so already."""
        clients = self._by_topic.setdefault(topic, {})
        if client_id in clients:
            return False
        clients[client_id] = None
        self._by_client.setdefault(client_id, {})[topic] = None
        return True

    def remove(self, client_id: str, topic: str) -> bool:
        """Unsubscribe; False where there was nothing to remove."""
        clients = self._by_topic.get(topic)
        if clients is None or client_id not in clients:
            return False
        del clients[client_id]
        if not clients:
            del self._by_topic[topic]
        topics = self._by_client[client_id]
        del topics[topic]
        if not topics:
            del self._by_client[client_id]
        return True

    def subscribers(self, topic: str) -> KeysView[str]:
        """A live view of the topic's client ids: copy it before anything may change."""
        return self._by_topic.get(topic, _NOBODY).keys()

    def topics_of(self, client_id: str) -> KeysView[str]:
        """A live view of the client's topics."""
        return self._by_client.get(client_id, _NOBODY).keys()

    def topics(self) -> Collection[str]:
        """A live view of every topic that has a subscriber."""
        return self._by_topic.keys()

    def __contains__(self, topic: object) -> bool:
        return topic in self._by_topic

    def __len__(self) -> int:
        """The number of subscriptions."""
        return sum(map(len, self._by_topic.values()))
