"""One client's topics, as its handlers see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import TypeVar, final

from trio_wskit._core.topics import check_topic
from trio_wskit.abc import PubSubDriver
from trio_wskit.errors import PubSubError

__all__ = ["Topics"]

S = TypeVar("S")


@final
class Topics(AbstractSet[str]):
    """The topics that a client is subscribed to: a read-only set, iterated on a snapshot in order of subscription."""

    __slots__ = ("_client_id", "_closed", "_driver", "_names")

    def __init__(self, client_id: str, driver: PubSubDriver) -> None:
        self._client_id = client_id
        self._driver = driver
        self._names: dict[str, None] | None = None  # made at the first subscription: most idle clients have few
        self._closed = False

    def __contains__(self, topic: object) -> bool:
        return self._names is not None and topic in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._names or ()))

    def __len__(self) -> int:
        return len(self._names or ())

    @classmethod
    def _from_iterable(cls, it: Iterable[S]) -> AbstractSet[S]:
        """What ``topics - other`` and the like give: a frozenset, which is no client's."""
        return frozenset(it)

    def has(self, topic: str) -> bool:
        """True where the client is subscribed."""
        return topic in self

    async def subscribe(self, topic: str) -> None:
        """Subscribe; no change where it is so already.

        Raises:
            PubSubError: INVALID_TOPIC; ADAPTER_ERROR when the driver fails; CONNECTION_CLOSED when the client has left.

        Cancelled before the driver is done: not subscribed.
        """
        if topic in self:
            return
        check_topic(topic)
        self._check_open()
        try:
            await self._driver.subscribe(self._client_id, topic)
        except Exception as cause:
            raise PubSubError("ADAPTER_ERROR", f"the driver did not subscribe to {topic!r}") from cause
        try:
            self._check_open()
        except PubSubError:  # it left while the driver was at work
            await self._undo(topic)
            raise
        if self._names is None:
            self._names = {}
        self._names[topic] = None

    async def unsubscribe(self, topic: str) -> None:
        """Unsubscribe; no change where there is nothing to undo, whatever the topic's name.

        Raises:
            PubSubError: ADAPTER_ERROR when the driver fails; the client is still subscribed.
        """
        if self._names is None or topic not in self._names:
            return
        try:
            await self._driver.unsubscribe(self._client_id, topic)
        except Exception as cause:
            raise PubSubError("ADAPTER_ERROR", f"the driver did not unsubscribe from {topic!r}") from cause
        if topic in self:  # it may have left meanwhile
            del self._names[topic]

    async def _undo(self, topic: str) -> None:
        try:
            await self._driver.unsubscribe(self._client_id, topic)
        except Exception as cause:
            raise PubSubError("ADAPTER_ERROR", f"the driver did not let go of {topic!r}") from cause

    def _check_open(self) -> None:
        if self._closed:
            raise PubSubError("CONNECTION_CLOSED", "the client has left")

    async def close(self) -> None:
        """Leave every topic, even where the driver fails for one of them, and take no new one."""
        self._closed = True
        errors: list[Exception] = []
        for topic in self:
            try:
                await self._driver.unsubscribe(self._client_id, topic)
            except Exception as error:
                errors.append(error)
        self._names = None
        if errors:
            raise PubSubError("ADAPTER_ERROR", "the driver did not let go of every topic") from errors[0]
