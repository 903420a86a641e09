"""Who is present through this process, and when the store shall hear of it.

Rules
- One entry for each identity in a topic; it has as many devices as there are connections (or blocks) that say so. Its
  state is that of the device which spoke last.
- Who has lost its last device lingers: it is there still, for `linger` seconds, and whoever comes back meanwhile was
  never away.
- The first change that the store shall hear of opens a window of `debounce` seconds; at its end all go together. What
  was changed and changed back in between is no change.
- What the store was told and has not confirmed is in doubt. If it fails, it is told again, with the word that it may
  know that already.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from itertools import islice
from math import inf
from typing import Final, TypeAlias, final

from trio_wskit._core.presence import MAX_CHANGES, PresenceChange

__all__ = ["Place", "PresenceBook"]

Place: TypeAlias = tuple[str, str]
"""A topic and an identity in it."""

_Device: TypeAlias = tuple[str, int]  # a client, and which of its blocks; 0 for the one without a block


@final
class _Doubt:
    """Stands for what the store has, where nobody knows."""


_DOUBT: Final = _Doubt()


@final
class _Entry:
    __slots__ = ("devices", "stored")

    def __init__(self) -> None:
        self.devices: dict[_Device, bytes] = {}
        self.stored: bytes | _Doubt | None = None

    @property
    def wanted(self) -> bytes | None:
        """What the store should have."""
        return next(reversed(self.devices.values())) if self.devices else None


@final
class PresenceBook:
    """The members of this process. Times are seconds of one clock.

    Args:
        debounce: seconds for which changes are collected.
        linger: seconds for which one is still there who is gone.

    Attributes:
        held: entries that the store has, as it has said itself.
        doubts: entries of which nobody knows.
    """

    def __init__(self, debounce: float, linger: float) -> None:
        self._debounce = debounce
        self._linger = linger
        self._topics: dict[str, dict[str, _Entry]] = {}
        self._clients: dict[str, dict[tuple[str, int], str]] = {}  # client -> topic and block -> identity
        self._dirty: dict[Place, None] = {}
        self._leaving: OrderedDict[Place, float] = OrderedDict()  # until when they linger, the first to end first
        self._window = inf  # when the changes that wait are due
        self.held: int = 0
        self.doubts: int = 0

    def members(self, topic: str) -> int:
        """How many identities this process counts in a topic, those included that linger."""
        return len(self._topics.get(topic, ()))

    def has(self, topic: str, identity: str) -> bool:
        """True where the identity is counted in the topic."""
        return identity in self._topics.get(topic, ())

    def places(self, client: str) -> int:
        """How many topics (and blocks) a client is present in."""
        return len(self._clients.get(client, ()))

    def is_present(self, client: str, topic: str, block: int = 0) -> bool:
        """True where this device is there."""
        return (topic, block) in self._clients.get(client, ())

    def join(self, client: str, topic: str, identity: str, state: bytes, now: float, block: int = 0) -> None:
        """A device is there, from now on or with another state."""
        blocks = self._clients.setdefault(client, {})
        before = blocks.get((topic, block))
        if before is not None and before != identity:
            self.leave(client, topic, now, block)
            blocks = self._clients.setdefault(client, {})
        blocks[topic, block] = identity
        entry = self._topics.setdefault(topic, {}).setdefault(identity, _Entry())
        entry.devices.pop((client, block), None)
        entry.devices[client, block] = state
        place = (topic, identity)
        self._leaving.pop(place, None)
        self._look(place, entry, now)

    def leave(self, client: str, topic: str, now: float, block: int = 0) -> bool:
        """A device is gone. False where it was not there."""
        blocks = self._clients.get(client)
        identity = blocks.pop((topic, block), None) if blocks is not None else None
        if blocks is None or identity is None:
            return False
        if not blocks:
            del self._clients[client]
        place = (topic, identity)
        entry = self._entry(place)
        del entry.devices[client, block]
        if entry.devices:
            self._look(place, entry, now)
        elif entry.stored is None:
            self._forget(place)  # nobody has heard of it
        else:
            self._unmark(place)
            self._leaving[place] = now + self._linger
        return True

    def leave_all(self, client: str, now: float) -> None:
        """A client is gone, with all its devices."""
        for topic, block in tuple(self._clients.get(client, ())):
            self.leave(client, topic, now, block)

    def due(self) -> float:
        """When the store shall hear of something; infinite for never."""
        lingering = next(iter(self._leaving.values()), inf)
        return min(self._window, lingering + self._debounce)

    def take(self, now: float) -> tuple[list[PresenceChange], bool]:
        """What the store shall hear now: then `confirm` or `doubt` it, before anything else is taken.

        Returns:
            At most 1,000 changes; and whether the store may have carried out one of them already.
        """
        while self._leaving and len(self._dirty) < MAX_CHANGES and next(iter(self._leaving.values())) <= now:
            self._dirty[self._leaving.popitem(last=False)[0]] = None
        changes: list[PresenceChange] = []
        doubtful = False
        for place in list(islice(self._dirty, MAX_CHANGES)):
            entry = self._entry(place)
            changes.append((*place, entry.wanted))
            doubtful = doubtful or entry.stored is _DOUBT
            self._store(entry, _DOUBT)
            del self._dirty[place]
        self._window = now if self._dirty else inf
        return changes, doubtful

    def confirm(
        self, changes: Iterable[PresenceChange], refused: Collection[Place], now: float
    ) -> set[tuple[str, str]]:
        """The store has carried these out, except for those refused.

        Returns:
            The clients that are refused, each with the topic: they are not there any more.
        """
        clients: set[tuple[str, str]] = set()
        for topic, identity, state in changes:
            place = (topic, identity)
            entry = self._entry(place)
            if place in refused:
                self._store(entry, None)
                for client, block in tuple(entry.devices):
                    clients.add((client, topic))
                    self.leave(client, topic, now, block)
                if self.has(topic, identity):  # it had left by itself
                    self._forget(place)
                continue
            self._store(entry, state)
            if entry.devices:
                self._look(place, entry, now)
            elif state is None:
                self._forget(place)
        return clients

    def doubt(self, changes: Iterable[PresenceChange], now: float) -> None:
        """The store may have carried these out, or not: it is to be told again."""
        for topic, identity, _ in changes:
            if (topic, identity) not in self._leaving:
                self._mark((topic, identity), now)

    def start_again(self, now: float) -> None:
        """The store knows nothing of this process: it is to be told of all who are there."""
        for topic, entries in self._topics.items():
            for identity, entry in entries.items():
                self._store(entry, None if entry.devices else _DOUBT)
                if (topic, identity) not in self._leaving:
                    self._mark((topic, identity), now)

    def pending(self, topic: str) -> dict[str, bytes]:
        """Identities of whom the store has not heard, or not this, with their states."""
        return {
            identity: entry.wanted
            for identity, entry in self._topics.get(topic, {}).items()
            if entry.wanted is not None and entry.wanted != entry.stored
        }

    def unconfirmed(self, topic: str) -> list[str]:
        """Those of `pending` of whom the store may not have heard at all."""
        return [
            identity
            for identity, entry in self._topics.get(topic, {}).items()
            if entry.devices and not isinstance(entry.stored, bytes)
        ]

    def _entry(self, place: Place) -> _Entry:
        return self._topics[place[0]][place[1]]

    def _look(self, place: Place, entry: _Entry, now: float) -> None:
        if entry.wanted == entry.stored:
            self._unmark(place)
        else:
            self._mark(place, now)

    def _mark(self, place: Place, now: float) -> None:
        self._dirty[place] = None
        if self._window == inf:
            self._window = now + self._debounce

    def _unmark(self, place: Place) -> None:
        self._dirty.pop(place, None)
        if not self._dirty:
            self._window = inf

    def _store(self, entry: _Entry, state: bytes | _Doubt | None) -> None:
        for value, sign in ((entry.stored, -1), (state, 1)):
            if value is _DOUBT:
                self.doubts += sign
            elif value is not None:
                self.held += sign
        entry.stored = state

    def _forget(self, place: Place) -> None:
        topic, identity = place
        self._unmark(place)
        self._leaving.pop(place, None)
        entries = self._topics[topic]
        del entries[identity]
        if not entries:
            del self._topics[topic]
