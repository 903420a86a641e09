"""What clients asked for when they subscribed, where they asked for anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, final

import attrs

from trio_wskit._core.overflow import Conflate, Overflow
from trio_wskit._core.patterns import pattern_matches

__all__ = ["Positions", "Terms", "TermsBook"]

_MAX_TOPICS: Final = 10_000


@final
@attrs.frozen
class Terms:
    """Of one subscription.

    Attributes:
        overflow: its policy; None for the topic's.
        gaps: whether the client is told of missing messages.
    """

    overflow: Overflow | None = None
    gaps: bool = False


@final
class TermsBook:
    """The terms of every client of an App. Nothing is kept for a client without any.

    Attributes:
        gaps: how many subscriptions want notices.
        conflating: how many have a policy that conflates.
    """

    __slots__ = ("_by_client", "conflating", "gaps")

    def __init__(self) -> None:
        self._by_client: dict[str, dict[str, Terms]] = {}
        self.gaps: int = 0
        self.conflating: int = 0

    def __len__(self) -> int:
        """The number of clients with terms."""
        return len(self._by_client)

    def set(self, client_id: str, name: str, terms: Terms | None) -> Terms | None:
        """Note the terms of a subscription, or forget them.

        Returns:
            What was there before.
        """
        held = self._by_client.get(client_id)
        before = held.pop(name, None) if held is not None else None
        self._count(before, -1)
        self._count(terms, 1)
        if terms is not None:
            if held is None:
                held = self._by_client[client_id] = {}
            held[name] = terms
        elif held is not None and not held:
            del self._by_client[client_id]
        return before

    def _count(self, terms: Terms | None, by: int) -> None:
        if terms is not None:
            self.gaps += by * terms.gaps
            self.conflating += by * isinstance(terms.overflow, Conflate)

    def forget(self, client_id: str, names: Iterable[str]) -> None:
        """These subscriptions have ended."""
        if client_id in self._by_client:
            for name in names:
                self.set(client_id, name, None)

    def overflow_of(self, client_id: str, topic: str) -> Overflow | None:
        """The client's own policy: that of the topic itself before those of patterns, the oldest first."""
        for _, terms in self._matching(client_id, topic):
            if terms.overflow is not None:
                return terms.overflow
        return None

    def wants_gaps(self, client_id: str, topic: str) -> bool:
        """Whether the client asked to be told what is missing of this topic."""
        return any(terms.gaps for _, terms in self._matching(client_id, topic))

    def _matching(self, client_id: str, topic: str) -> Iterator[tuple[str, Terms]]:
        held = self._by_client.get(client_id)
        if held is None:
            return
        exact = held.get(topic)
        if exact is not None:
            yield topic, exact
        for name, terms in held.items():
            if "*" in name and pattern_matches(name, topic):
                yield name, terms

    def seekers(self) -> list[tuple[str, str]]:
        """Client id and name of every subscription that wants notices."""
        return [
            (client_id, name)
            for client_id, held in self._by_client.items()
            for name, terms in held.items()
            if terms.gaps
        ]


@final
class Positions:
    """How many messages each topic had, as far as anybody wants to know: the topics of last, in a bounded number.

    Args:
        max_topics: when there is one more, that to which was published longest ago is forgotten, and begins with 1.
    """

    __slots__ = ("_last", "_max_topics")

    def __init__(self, max_topics: int = _MAX_TOPICS) -> None:
        self._last: dict[str, int] = {}
        self._max_topics = max_topics

    def next(self, topic: str) -> int:
        """The position of a new message."""
        last = self._last
        position = last.pop(topic, 0) + 1
        if len(last) >= self._max_topics:
            del last[next(iter(last))]
        last[topic] = position
        return position

    def clear(self) -> None:
        """Nobody wants to know any more."""
        self._last.clear()

    def __len__(self) -> int:
        return len(self._last)
