"""One link that listens, and what the server at its end is subscribed to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, Protocol, final

import trio

from trio_wskit._core.sharding import slot_of
from trio_wskit.pubsub._redis_link import Command, Link, Refused, lost

__all__ = ["Ear", "Head", "Name"]

Kind = Literal["SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"]

_ON: Final[dict[Kind, bytes]] = {"SUBSCRIBE": b"SUBSCRIBE", "PSUBSCRIBE": b"PSUBSCRIBE", "SSUBSCRIBE": b"SSUBSCRIBE"}
_OFF: Final[dict[Kind, bytes]] = {
    "SUBSCRIBE": b"UNSUBSCRIBE",
    "PSUBSCRIBE": b"PUNSUBSCRIBE",
    "SSUBSCRIBE": b"SUNSUBSCRIBE",
}
_BATCH: Final = 500  # names in one go: the server does nothing else meanwhile


class Name(NamedTuple):
    """What the server is asked for: a channel, a pattern, or a channel of a shard."""

    kind: Kind
    name: str


class Head(Protocol):
    """Where the ears are: it knows what is wanted, and takes what comes."""

    wanted: set[Name]

    def is_heard(self, name: Name) -> None:
        """The server has confirmed it."""
        ...

    def refused(self, name: Name, error: Exception) -> None:
        """The server will not send it. Raises PubSubError where nobody waits who could be told."""
        ...

    def take(self, channel: bytes, data: bytes) -> None:
        """A message has come. Never waits; raises PubSubError where there is no more room."""
        ...

    def pause(self) -> None:
        """Nothing more has come just now."""
        ...


@final
class Ear:
    """One link, and what the server at its end is subscribed to.

    Args:
        link: on which nothing else is done.
        head: whose ear it is.
        by_slot: the server is a node of a cluster, where no command reaches over two slots.
        patience: seconds between pings, and how long the server may take to answer.

    Attributes:
        heard: what the server has confirmed.
        silent_since: when the server was asked for what it has not answered yet; inf where there is nothing.
    """

    def __init__(self, link: Link, head: Head, *, by_slot: bool, patience: float) -> None:
        self._link = link
        self.heard: set[Name] = set()
        self._changed: dict[Name, None] = {}
        self._wake = trio.Event()
        self._head = head
        self._patience = patience
        self._by_slot = by_slot
        self._leaving: dict[bytes, int] = {}
        self.silent_since = math.inf

    def touch(self, name: Name) -> None:
        """Look at this name again: it is wanted, or no more."""
        self._changed[name] = None
        self._wake.set()

    async def settle(self) -> None:
        """Make the server's subscriptions what is wanted.

        Raises:
            PubSubError: the link is lost, or the server refused a name for which nobody waits.
        """
        while self._changed:
            batch = list(islice(self._changed, _BATCH))
            for name in batch:
                del self._changed[name]
            wanted = self._head.wanted
            on = [name for name in batch if name in wanted and name not in self.heard]
            off = [name for name in batch if name not in wanted and name in self.heard]
            self.heard.difference_update(off)
            for name in off:
                if name.kind == "SSUBSCRIBE":
                    channel = name.name.encode()
                    self._leaving[channel] = self._leaving.get(channel, 0) + 1
            commands = [*self._commands(_OFF, off), *self._commands(_ON, on)]
            if not commands:
                continue
            errors = await self._fence(commands)
            if not errors:
                self._is_heard(on)
                continue
            for name in on:  # which of them is it?
                errors = await self._fence(self._commands(_ON, [name]))
                if errors and errors[0].moved:
                    raise lost("a slot of the cluster has moved to another node") from errors[0]
                if errors:
                    self._head.refused(name, errors[0])
                else:
                    self._is_heard([name])

    async def _fence(self, commands: Sequence[Command]) -> list[Refused]:
        self.silent_since = trio.current_time()
        errors = await self._link.fence(commands, self._patience)
        self.silent_since = math.inf
        self._head.pause()  # while an answer waited, `read` could not tell
        return errors

    def _is_heard(self, names: Iterable[Name]) -> None:
        for name in names:
            self.heard.add(name)
            self._head.is_heard(name)

    def _commands(self, by_kind: dict[Kind, bytes], names: Iterable[Name]) -> list[Command]:
        """One command for each kind, or for each slot."""
        groups: dict[tuple[Kind, int], list[str]] = {}
        for kind, name in names:
            groups.setdefault((kind, slot_of(name) if self._by_slot else 0), []).append(name)
        return [(by_kind[kind], tuple(group)) for (kind, _), group in groups.items()]

    async def tend(self) -> None:
        """Settle whenever something has changed, and ping when nothing does, until the link is lost.

        Raises:
            PubSubError: the link is lost, or the server does not answer in time.
        """
        while True:
            if not self._changed:
                self._wake = trio.Event()
                with trio.move_on_after(self._patience) as idle:
                    await self._wake.wait()
                if idle.cancelled_caught:
                    await self._fence(())
            await self.settle()

    async def read(self) -> None:
        """Take in what comes, until the link is lost.

        Raises:
            PubSubError: the link is lost, or was given up: more comes than can be delivered, or a slot has moved away.
        """
        await self._link.read(self._take, self._head.pause)

    def _take(self, push: list[Any]) -> None:
        kind: bytes = push[0]
        if kind in (b"message", b"smessage"):
            self._head.take(push[1], push[2])
        elif kind == b"pmessage":
            self._head.take(push[2], push[3])
        elif kind == b"sunsubscribe":
            channel: bytes = push[1]
            left = self._leaving.pop(channel, 0)
            if left > 1:
                self._leaving[channel] = left - 1
            elif not left:
                raise lost("a slot of the cluster has moved to another node")
