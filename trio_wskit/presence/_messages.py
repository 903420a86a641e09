"""What goes over the wire about presence, and how a client keeps a list of its own with it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Final, final

import attrs

from trio_wskit._core.json_text import loads
from trio_wskit._core.presence import TopicDiff
from trio_wskit._core.schema import message

__all__ = ["PresenceDiff", "PresenceList", "PresenceMember", "PresenceView", "messages_of"]

_ENTRIES: Final = 500  # of one message
_BYTES: Final = 64 * 1024  # of the states in one message; a single one may be larger


@final
@attrs.frozen
class PresenceMember:
    """One who is there.

    Attributes:
        id: the identity.
        state: what was told with it: any JSON.
    """

    id: str
    state: Any = None


@message("PRESENCE")
class PresenceDiff:
    """What has changed in a topic: see `PresenceView` for how to read it.

    Attributes:
        topic: where.
        previous: the version that this follows; 0: nobody was there before.
        version: the version after it. Versions only rise.
        count: how many are there now.
        joins: who is there now and was not, or has another state.
        leaves: who is not there any more.
    """

    topic: str
    previous: int
    version: int
    count: int
    joins: list[PresenceMember]
    leaves: list[str]


@message("PRESENCE_LIST")
class PresenceList:
    """Everybody in a topic.

    Attributes:
        topic: where.
        version: of this list; diffs up to this version are in it.
        members: who is there.
    """

    topic: str
    version: int
    members: list[PresenceMember]


@final
class PresenceView:
    """A client's own list of who is in a topic, kept with diffs.

    Args:
        start: what the server gave.

    Attributes:
        topic: where.
        version: of this list.
        members: state by identity.
    """

    def __init__(self, start: PresenceList) -> None:
        self.topic: str = start.topic
        self.version: int = start.version
        self.members: dict[str, Any] = {member.id: member.state for member in start.members}

    def apply(self, diff: PresenceDiff) -> bool:
        """Change the list; a diff that is in it already, or of another topic, changes nothing.

        Returns:
            False where a diff is missing in between: ask for the list again.
        """
        if diff.topic != self.topic or diff.version <= self.version:
            return True
        if diff.previous == 0:
            self.members.clear()
        elif diff.previous != self.version:
            return False
        for member in diff.joins:
            self.members[member.id] = member.state
        for identity in diff.leaves:
            self.members.pop(identity, None)
        self.version = diff.version
        return True


def messages_of(diff: TopicDiff) -> Iterator[PresenceDiff]:
    """Cut a diff into messages of a bounded size, which are a chain too."""
    left = len(diff.joins) + len(diff.leaves)
    previous = diff.previous
    entries: Iterator[tuple[str, bytes | None]] = chain(diff.joins, ((identity, None) for identity in diff.leaves))
    joins: list[PresenceMember] = []
    leaves: list[str] = []
    size = 0
    for identity, state in entries:
        if state is None:
            leaves.append(identity)
        else:
            joins.append(PresenceMember(identity, loads(state)))
            size += len(state)
        left -= 1
        if not left or len(joins) + len(leaves) == _ENTRIES or size >= _BYTES:
            version = diff.version - left  # a diff's version is higher than the one before by its entries, or more
            yield PresenceDiff(diff.topic, previous, version, diff.count, joins, leaves)
            previous, joins, leaves, size = version, [], [], 0
