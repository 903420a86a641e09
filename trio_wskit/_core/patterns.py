"""Patterns of topics, and an index that finds those that match one topic.

A topic is read as segments between colons. In a pattern ``*`` stands for exactly one segment, and ``**``, which can
only be the last, for one or more. ``room:*`` matches ``room:1``, and neither ``room`` nor ``room:1:typing``.

The index is a tree of segments, and to look up is to walk down it with the topic: at each node there are at most two
ways on, the segment itself and ``*``. So patterns that do not match cost nothing, however many there are; and since a
pattern has at most `MAX_SEGMENTS` segments, the walk has an end that nobody can move.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, KeysView
from typing import Final, final

from trio_wskit._core.publishing import Matching
from trio_wskit._core.topics import TopicIndex

__all__ = ["MAX_SEGMENTS", "SubscriptionIndex", "TopicPattern", "pattern_fault", "pattern_matches"]

MAX_SEGMENTS: Final = 8
_NOBODY: Final[dict[str, None]] = {}


@final
class TopicPattern(str):
    """A pattern to subscribe to: ``await ctx.topics.subscribe(TopicPattern("room:*"))``.

    A type of its own, for a plain text with a star is never a pattern: otherwise a client whose room is called ``*``
    would be in all of them.
    """

    __slots__ = ()


def pattern_fault(pattern: str) -> str | None:
    """What is wrong with a pattern's stars, or None. Its other segments are looked at by the rules for topics."""
    segments = pattern.split(":")
    if len(segments) > MAX_SEGMENTS:
        return f"a pattern has at most {MAX_SEGMENTS} segments"
    if "**" in segments[:-1]:
        return "only the last segment of a pattern may be **"
    if any("*" in segment and segment not in ("*", "**") for segment in segments):
        return "a segment of a pattern is *, ** or plain"
    return None


def pattern_matches(pattern: str, topic: str) -> bool:
    """Whether this very pattern matches. For many patterns there is the index."""
    wanted = pattern.split(":")
    segments = topic.split(":")
    if wanted[-1] == "**":
        wanted.pop()
        if len(segments) <= len(wanted):
            return False
    elif len(segments) != len(wanted):
        return False
    return all(want in ("*", segment) for want, segment in zip(wanted, segments, strict=False))


@final
class _Node:
    __slots__ = ("children", "here", "rest")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.here: dict[str, None] = {}  # clients whose pattern ends here
        self.rest: dict[str, None] = {}  # clients whose pattern goes on with **

    def is_empty(self) -> bool:
        return not (self.children or self.here or self.rest)


@final
class SubscriptionIndex:
    """Subscriptions to topics and to patterns. Nothing is kept for what nobody subscribes to.

    A name with a star in it is a pattern; no topic has one. Patterns are expected to be well formed.
    """

    __slots__ = ("_exact", "_patterns", "_root")

    def __init__(self) -> None:
        self._exact = TopicIndex()
        self._root = _Node()
        self._patterns: dict[str, dict[str, None]] = {}  # the leaves of the tree, by name

    def add(self, client_id: str, name: str) -> bool:
        """Subscribe; False where it was so already."""
        if "*" not in name:
            return self._exact.add(client_id, name)
        clients = self._patterns.get(name)
        if clients is None:
            clients = self._patterns[name] = self._grow(name)
        if client_id in clients:
            return False
        clients[client_id] = None
        return True

    def _grow(self, name: str) -> dict[str, None]:
        node = self._root
        for segment in name.split(":"):
            if segment == "**":
                return node.rest
            child = node.children.get(segment)
            if child is None:
                child = node.children[segment] = _Node()
            node = child
        return node.here

    def remove(self, client_id: str, name: str) -> bool:
        """Unsubscribe; False where there was nothing to remove."""
        if "*" not in name:
            return self._exact.remove(client_id, name)
        clients = self._patterns.get(name)
        if clients is None or client_id not in clients:
            return False
        del clients[client_id]
        if not clients:
            del self._patterns[name]
            path = name.split(":")
            if path[-1] == "**":
                path.pop()
            self._prune(self._root, path)
        return True

    def _prune(self, node: _Node, path: list[str]) -> None:
        if not path:
            return
        child = node.children[path[0]]
        self._prune(child, path[1:])
        if child.is_empty():
            del node.children[path[0]]

    def subscribers(self, name: str) -> Collection[str]:
        """Who gets what is published to this topic, each once; of a pattern, who subscribes to that very pattern.

        A live view where no pattern matches: copy it before anything may change.
        """
        if not self._patterns:
            return self._exact.subscribers(name)
        return self.match(name)[0]

    def match(self, name: str) -> tuple[Collection[str], Matching]:
        """`subscribers`, and how the widest of their subscriptions matched.

        ``prefix`` is a pattern whose only star is the ``**`` at its end; ``pattern`` any other.
        """
        exact: KeysView[str] = self._exact.subscribers(name)
        if not self._patterns:
            return exact, "exact"
        if "*" in name:
            return self._patterns.get(name, _NOBODY).keys(), "pattern"
        found: dict[str, None] | None = None
        matching: Matching = "exact"
        for clients, mode in self._walk(name.split(":")):
            if found is None:
                found = dict.fromkeys(exact)
            found.update(clients)
            if matching != "pattern":
                matching = mode
        return (exact if found is None else found.keys()), matching

    def _walk(self, segments: list[str]) -> Iterator[tuple[dict[str, None], Matching]]:
        nodes: list[tuple[_Node, Matching]] = [(self._root, "prefix")]
        for segment in segments:
            further: list[tuple[_Node, Matching]] = []
            for node, mode in nodes:
                if node.rest:
                    yield node.rest, mode
                child = node.children.get(segment)
                if child is not None:
                    further.append((child, mode))
                star = node.children.get("*")
                if star is not None:
                    further.append((star, "pattern"))
            nodes = further
            if not nodes:
                return
        for node, mode in nodes:
            if node.here:
                yield node.here, mode

    def names(self) -> Collection[str]:
        """Every topic and pattern that has a subscriber."""
        return (*self._exact.topics(), *self._patterns)

    def __contains__(self, name: object) -> bool:
        return name in self._exact or name in self._patterns

    def __len__(self) -> int:
        """The number of subscriptions."""
        return len(self._exact) + sum(map(len, self._patterns.values()))
