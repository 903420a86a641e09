"""Who is present where: the leases of several processes, merged into one list for each topic.

Rules
- A *node* is one process; its lease is renewed by each of its beats, as a whole. What a node has told whose lease is
  over is swept away, whoever beats next.
- An identity is present in a topic while a living node says so. Its state is what was told last, on any node.
- Versions only rise, over all topics. A topic's diffs are a chain: each names the version before it. A topic in which
  nobody is has no version; its next diff starts from 0, and so from nobody.
- A store that has been set back to what it knew before, as a failover may do, is told so by the numbers.
- A beat is idempotent, so it can be repeated when its answer was lost; then it is doubtful, and its answer reports
  again what may have been reported before. Beats are numbered: one that was overtaken by a later one does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias, final

import attrs

from trio_wskit.errors import ConfigError

__all__ = [
    "MAX_CHANGES",
    "MAX_SWEPT",
    "PresenceAnswer",
    "PresenceBeat",
    "PresenceChange",
    "PresenceSnapshot",
    "PresenceTable",
    "TopicDiff",
]

PresenceChange: TypeAlias = tuple[str, str, "bytes | None"]
"""A topic, an identity, and its state on this node as JSON; None: it is not here any more."""

MAX_CHANGES: Final = 1000
"""Changes of one beat: so that a store that does one thing at a time is never busy with one for long."""

MAX_SWEPT: Final = 1000
"""Members of lapsed nodes that one beat sweeps away."""


def _at_most(_: object, field: attrs.Attribute[Any], value: Sequence[object]) -> None:
    if len(value) > MAX_CHANGES:
        raise ConfigError(f"a beat has at most {MAX_CHANGES} {field.name}, not {len(value)}")


@final
@attrs.frozen(kw_only=True)
class PresenceBeat:
    """What a node tells the store.

    Attributes:
        node: its name, which no other process has or had.
        number: above that of every earlier beat of this node.
        answered: the number of the last beat that was answered; 0 for none. A store that has not got so far has been
            set back, to a copy maybe, and does nothing.
        first: this node has not been heard of; otherwise a store that does not know it does nothing.
        changes: at most 1,000, none twice; what is not in there stays as it was.
        doubtful: an earlier beat with these changes may have been carried out: report them all the same.
        ttl: seconds until the node's lease is over, from now.
        max_members: identities of a topic; changes that would make it more are refused.
    """

    node: str
    number: int
    answered: int = 0
    first: bool = False
    changes: Sequence[PresenceChange] = attrs.field(default=(), validator=_at_most)
    doubtful: bool = False
    ttl: float = 30.0
    max_members: int = 10_000


@final
@attrs.frozen
class TopicDiff:
    """What a beat has changed in one topic, as seen from all nodes.

    Attributes:
        topic: where.
        previous: the version before; 0: nobody was there.
        version: the version after; greater by at least one for each entry of the diff.
        count: identities that are there now.
        joins: identities that are there now and were not, or whose state is another now, each with its state.
        leaves: identities that are not there any more.
    """

    topic: str
    previous: int
    version: int
    count: int
    joins: tuple[tuple[str, bytes], ...] = ()
    leaves: tuple[str, ...] = ()


@final
@attrs.frozen(kw_only=True)
class PresenceAnswer:
    """What the store says to a beat.

    Attributes:
        known: False: the node's lease was over, or the store has lost its memory or a part of it. Nothing was changed.
        held: entries of this node that the store has now.
        more: members of lapsed nodes are left; beat again at once.
        diffs: one for each topic in which something changed.
        refused: topic and identity of changes that would have been one member too many.
    """

    known: bool = True
    held: int = 0
    more: bool = False
    diffs: tuple[TopicDiff, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


@final
@attrs.frozen
class PresenceSnapshot:
    """Who is in a topic.

    Attributes:
        version: of this list; 0 where nobody is there.
        members: state by identity.
    """

    version: int
    members: Mapping[str, bytes]


@final
class _Node:
    __slots__ = ("expires", "held", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.expires = 0
        self.held: dict[tuple[str, str], None] = {}


@final
class _Topic:
    __slots__ = ("members", "version")

    def __init__(self) -> None:
        self.version = 0
        self.members: dict[str, dict[str, tuple[int, bytes]]] = {}  # identity -> node -> when it was told, state


def _state(told: Mapping[str, tuple[int, bytes]] | None) -> bytes | None:
    return max(told.values())[1] if told else None


@final
class PresenceTable:
    """A presence store without a clock and without a wait. Times are whole milliseconds of one clock.

    Args:
        version: all versions are above it.
    """

    def __init__(self, version: int = 0) -> None:
        self._nodes: dict[str, _Node] = {}
        self._topics: dict[str, _Topic] = {}
        self._version = version

    def __len__(self) -> int:
        """How many topics have members, those of lapsed nodes included."""
        return len(self._topics)

    def beat(self, beat: PresenceBeat, now: int) -> PresenceAnswer:
        """Renew a node's lease, carry out its changes, sweep away what lapsed nodes have left."""
        changed: dict[str, dict[str, bytes | None]] = {}
        more = self._sweep(now, changed)
        node = self._nodes.get(beat.node)
        if node is None and beat.first:
            node = self._nodes[beat.node] = _Node(beat.number - 1)
        elif node is None or node.expires <= now or node.number < beat.answered:
            return PresenceAnswer(known=False, more=more, diffs=self._diffs(changed, now))
        refused: list[tuple[str, str]] = []
        if beat.number > node.number:
            node.number = beat.number
            node.expires = now + round(beat.ttl * 1000)
            for topic, identity, state in beat.changes:
                if state is None:
                    self._remove(beat.node, topic, identity, changed, doubtful=beat.doubtful)
                elif not self._add(beat, topic, identity, state, now, changed):
                    refused.append((topic, identity))
        return PresenceAnswer(held=len(node.held), more=more, diffs=self._diffs(changed, now), refused=tuple(refused))

    def retire(self, node: str, seconds: float, now: int) -> None:
        """Let a node's lease be over so many seconds from now, if it is not over before."""
        if node in self._nodes:
            lease = self._nodes[node]
            lease.expires = min(lease.expires, now + round(seconds * 1000))

    def members(self, topic: str, now: int) -> PresenceSnapshot:
        """Who is there, without those of lapsed nodes."""
        there = self._topics.get(topic)
        if there is None:
            return PresenceSnapshot(0, {})
        lapsed = self._lapsed(now)
        states = {
            identity: _state({node: one for node, one in told.items() if node not in lapsed} if lapsed else told)
            for identity, told in there.members.items()
        }
        return PresenceSnapshot(
            there.version, {identity: state for identity, state in states.items() if state is not None}
        )

    def count(self, topic: str, now: int, besides: Iterable[str] = ()) -> int:
        """How many are there, with those named besides."""
        there = self._topics.get(topic)
        known: Mapping[str, object] = {} if there is None else there.members
        if self._lapsed(now):
            known = self.members(topic, now).members
        return len(known) + sum(identity not in known for identity in besides)

    def _lapsed(self, now: int) -> set[str]:
        return {name for name, node in self._nodes.items() if node.expires <= now}

    def _sweep(self, now: int, changed: dict[str, dict[str, bytes | None]]) -> bool:
        left = MAX_SWEPT
        for name in self._lapsed(now):
            held = self._nodes[name].held
            for topic, identity in list(held)[:left]:
                self._remove(name, topic, identity, changed, doubtful=False)
                left -= 1
            if held:
                return True
            del self._nodes[name]
        return False

    def _add(
        self,
        beat: PresenceBeat,
        topic: str,
        identity: str,
        state: bytes,
        now: int,
        changed: dict[str, dict[str, bytes | None]],
    ) -> bool:
        there = self._topics.get(topic)
        told = there.members.get(identity) if there is not None else None
        if there is None or told is None:
            if there is not None and len(there.members) >= beat.max_members:
                return False
            there = self._topics.setdefault(topic, _Topic())
            told = there.members[identity] = {}
        before = _state(told)
        told[beat.node] = (max([now, *(when + 1 for when, _ in told.values())]), state)
        self._nodes[beat.node].held[topic, identity] = None
        if before != state or beat.doubtful:
            changed.setdefault(topic, {})[identity] = state
        return True

    def _remove(
        self, node: str, topic: str, identity: str, changed: dict[str, dict[str, bytes | None]], *, doubtful: bool
    ) -> None:
        there = self._topics.get(topic)
        told = there.members.get(identity) if there is not None else None
        before = _state(told)
        if there is not None and told is not None and told.pop(node, None) is not None:
            del self._nodes[node].held[topic, identity]
            if not told:
                del there.members[identity]
        after = _state(told)
        if before != after or doubtful:
            changed.setdefault(topic, {})[identity] = after

    def _diffs(self, changed: Mapping[str, Mapping[str, bytes | None]], now: int) -> tuple[TopicDiff, ...]:
        return tuple(self._diff(topic, entries, now) for topic, entries in changed.items())

    def _diff(self, topic: str, entries: Mapping[str, bytes | None], now: int) -> TopicDiff:
        self._version = max(self._version + len(entries), now)
        there = self._topics.get(topic)
        previous = there.version if there is not None else 0
        count = len(there.members) if there is not None else 0
        if there is not None:
            there.version = self._version
            if not count:
                del self._topics[topic]
        return TopicDiff(topic, previous, self._version, count, *_sides(entries.items()))


def _sides(
    entries: Iterable[tuple[str, bytes | None]],
) -> tuple[tuple[tuple[str, bytes], ...], tuple[str, ...]]:
    joins: list[tuple[str, bytes]] = []
    leaves: list[str] = []
    for identity, state in entries:
        if state is None:
            leaves.append(identity)
        else:
            joins.append((identity, state))
    return tuple(joins), tuple(leaves)
