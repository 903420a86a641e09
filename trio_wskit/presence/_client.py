"""Presence as a handler has it: ``ctx.presence``."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias, final

from trio_wskit.errors import PubSubError
from trio_wskit.presence._messages import PresenceList, PresenceMember

if TYPE_CHECKING:
    from trio_wskit._session import Session
    from trio_wskit.presence._presence import Presence

__all__ = ["ClientPresence"]

_Members: TypeAlias = "list[PresenceMember]"  # a method here is called `list`


@final
class ClientPresence:
    """What one client can do about presence: ``ctx.presence``."""

    __slots__ = ("_client", "_presence")

    def __init__(self, presence: Presence, client: Session) -> None:
        self._presence = presence
        self._client = client

    def join(self, topic: str, state: object = None) -> None:
        """The client is there from now on, or with another state; until `leave`, or the end of its connection.

        An end of its subscription to the topic is an end of its presence too. Never waits: the store hears of it
        after the debounce. Where it then finds too many on other processes, the client gets an ERROR.

        Args:
            topic: where.
            state: any JSON that others shall see.

        Raises:
            WsKitError: RESOURCE_EXHAUSTED: the state is too large, the topic is full, the client is in too many.
                INVALID_ARGUMENT: the state is no JSON, or the identity is empty or too long.
            PubSubError: INVALID_TOPIC; CONNECTION_CLOSED when the client has left.
        """
        self._join(topic, state, 0)

    def leave(self, topic: str) -> None:
        """The client is not there any more; no change where it was not. Others hear of it after a while."""
        self._presence.exit(self._client.client_id, topic)

    @contextmanager
    def here(self, topic: str, state: object = None) -> Generator[None]:
        """The client is there as long as the block runs: ``with ctx.presence.here("room:7"):``. Blocks may overlap.

        Raises:
            WsKitError, PubSubError: as `join`.
        """
        block = self._presence.new_block()
        self._join(topic, state, block)
        try:
            yield
        finally:
            self._presence.exit(self._client.client_id, topic, block)

    async def watch(self, topic: str) -> PresenceList:
        """Who is there; and from now on the client gets every change, as a `PresenceDiff`.

        It takes one of the topics that a connection may have.

        Raises:
            PubSubError: as `Topics.subscribe`; the right to subscribe to the topic is asked for.
            WsKitError: UNAVAILABLE: the store does not answer; the client watches all the same, unless it is cancelled.

        Cancelled: the client may watch, or not.
        """
        await self._client.topics.subscribe(self._presence.watched(topic))
        return await self._presence.snapshot(topic)

    async def unwatch(self, topic: str) -> None:
        """Get no more changes.

        Raises, Cancelled: as `Topics.unsubscribe`.
        """
        await self._client.topics.unsubscribe(self._presence.topic_of(topic))

    async def list(self, topic: str) -> _Members:
        """See `Presence.list`."""
        return await self._presence.list(topic)

    async def count(self, topic: str) -> int:
        """See `Presence.count`."""
        return await self._presence.count(topic)

    def _join(self, topic: str, state: object, block: int) -> None:
        client = self._client
        if client.close_code is not None:
            raise PubSubError("CONNECTION_CLOSED", "the client has left")
        self._presence.enter(client.client_id, client.identity, topic, state, block)
