"""Who subscribes to what: the local index, and the rules for a topic's name."""

from __future__ import annotations

import re
from collections.abc import Collection, KeysView
from typing import Any, Final, cast, final

import attrs

from trio_wskit.errors import ConfigError, PubSubError

__all__ = ["MAX_TOPIC_LENGTH", "TopicIndex", "TopicRules", "check_topic"]

MAX_TOPIC_LENGTH: Final = 128
_TOPIC: Final = re.compile(r"[a-z0-9:_./-]+", re.IGNORECASE | re.ASCII)
_NOBODY: Final[dict[str, None]] = {}


def check_topic(topic: str, *, pattern: re.Pattern[str] = _TOPIC, max_length: int = MAX_TOPIC_LENGTH) -> None:
    """Refuse a topic whose name is too long (that is looked at first) or does not match as a whole.

    Raises:
        PubSubError: INVALID_TOPIC, its details' ``why`` is ``type``, ``length`` or ``pattern``.
    """
    if not isinstance(cast("object", topic), str):
        raise PubSubError("INVALID_TOPIC", f"a topic is a string, not {topic!r}", {"why": "type"})
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


def _count(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"TopicRules({field.name}=…) takes a whole number above 0, not {value!r}")


def _count_or_none(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if value is not None:
        _count(_, field, value)


def _regex(value: str | re.Pattern[str]) -> re.Pattern[str]:
    try:
        return re.compile(value)
    except re.error as wrong:
        raise ConfigError(f"TopicRules(pattern=…) takes a regular expression, not {value!r}: {wrong}") from wrong


@final
@attrs.frozen(kw_only=True)
class TopicRules:
    """The bounds of an App's topics.

    Attributes:
        pattern: what a topic's name must match as a whole; by default letters, digits and ``:_./-``. A star is never
            part of a name, whatever the pattern says: stars make patterns.
        max_length: characters of a name.
        max_per_connection: topics and patterns of one connection; None means no limit.
        max_subscribers: clients of this process for each topic or pattern; None means no limit.
        max_message_bytes: the largest message that may be published, in bytes of UTF-8.
        max_publishing: publishes of this process that may be under way at the same time, waiting for the driver or for
            subscribers; one more fails with BACKPRESSURE.
    """

    pattern: re.Pattern[str] = attrs.field(default=_TOPIC, converter=_regex)
    max_length: int = attrs.field(default=MAX_TOPIC_LENGTH, validator=_count)
    max_per_connection: int | None = attrs.field(default=1000, validator=_count_or_none)
    max_subscribers: int | None = attrs.field(default=None, validator=_count_or_none)
    max_message_bytes: int = attrs.field(default=1_000_000, validator=_count)
    max_publishing: int = attrs.field(default=1000, validator=_count)

    def check(self, topic: str) -> None:
        """Refuse what is no name of a topic.

        Raises:
            PubSubError: INVALID_TOPIC, as `check_topic`.
        """
        check_topic(topic, pattern=self.pattern, max_length=self.max_length)
        if "*" in topic:
            raise PubSubError("INVALID_TOPIC", f"a topic has no star, and {topic!r} has", {"why": "pattern"})

    def check_pattern(self, pattern: str, fault: str | None) -> None:
        """Refuse a pattern that is too long, has a `fault`, or whose plain segments could be in no topic.

        Raises:
            PubSubError: INVALID_TOPIC, as `check_topic`.
        """
        if fault is not None and len(pattern) <= self.max_length:
            raise PubSubError("INVALID_TOPIC", f"{fault}; {pattern!r} is none", {"why": "pattern"})
        check_topic(pattern.replace("*", "x"), pattern=self.pattern, max_length=self.max_length)


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
