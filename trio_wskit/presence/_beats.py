"""What a process tells the store, when, and what it does with the answers.

Rules
- One beat at a time. It carries what the book has to tell, when that is due; without that, it renews the lease.
- A beat that fails is told again, after a pause that doubles. Nothing is lost meanwhile: the book keeps what is wanted.
- A store that does not know this process, has not got as far as its last answer, or counts other than it does, is told
  everything, under a new name. What it keeps under the old one ends soon.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias, final

import attrs
import trio

from trio_wskit._core.presence import PresenceAnswer, PresenceBeat, PresenceChange, TopicDiff
from trio_wskit._core.presence_book import PresenceBook
from trio_wskit._core.publishing import PublishResult
from trio_wskit.abc import PresenceStore
from trio_wskit.errors import WsKitError
from trio_wskit.presence._messages import PresenceDiff, messages_of

__all__ = ["Beats", "PresenceStatistics", "Publish", "Refuse"]

logger = logging.getLogger("trio_wskit")

_LEAVE_SECONDS: Final = 1.0  # for the store to hear that this process goes
_LONGEST_PAUSE: Final = 5.0  # seconds between two tries at a store that does not answer

Publish: TypeAlias = "Callable[[str, PresenceDiff], Awaitable[PublishResult]]"
Refuse: TypeAlias = "Callable[[str, WsKitError], object]"


@final
@attrs.frozen
class PresenceStatistics:
    """What a `Presence` has done so far.

    Attributes:
        beats: calls to the store that it answered.
        failures: calls that it did not answer.
        diffs: messages published.
        unpublished: messages of which the publish failed.
        lost: how often this process had to tell the store everything again.
    """

    beats: int
    failures: int
    diffs: int
    unpublished: int
    lost: int


@final
class Beats:
    """One process, as the store knows it.

    Args:
        store: whom to tell.
        debounce: as `Presence` has them, and the others.
        topic_of: where the changes of a topic are published.

    Attributes:
        book: who is here.
    """

    def __init__(
        self,
        store: PresenceStore,
        *,
        debounce: float,
        linger: float,
        ttl: float,
        max_members: int,
        topic_of: Callable[[str], str],
    ) -> None:
        self._store = store
        self._debounce = debounce
        self._linger = linger
        self._ttl = ttl
        self._max_members = max_members
        self._topic_of = topic_of
        self._beats = self._failures = self._diffs = self._unpublished = self._lost = 0
        self._begin()

    def _begin(self) -> None:
        self.book: PresenceBook = PresenceBook(self._debounce, self._linger)
        self._node = secrets.token_hex(8)
        self._number = self._answered = 0
        self._known = False  # the store has heard of this node
        self._next_beat = math.inf  # when the lease is to be renewed; never, as long as nobody asks for presence
        self._not_before = -math.inf  # the store has failed; leave it alone until then
        self._failed_in_a_row = 0
        self._changed = trio.Event()
        self._asleep_until = -math.inf

    def statistics(self) -> PresenceStatistics:
        """What it has done so far."""
        return PresenceStatistics(self._beats, self._failures, self._diffs, self._unpublished, self._lost)

    def in_use(self) -> None:
        """Somebody asks for presence: have a lease from now on, and look at the book."""
        if self._next_beat == math.inf:
            self._next_beat = trio.current_time() + self._debounce
        self.look()

    def look(self) -> None:
        """The book has changed: maybe there is something to tell sooner."""
        if self._due() < self._asleep_until:
            self._asleep_until = -math.inf
            self._changed.set()

    async def run(self, publish: Publish, refuse: Refuse, task_status: trio.TaskStatus[None]) -> None:
        """Beat until cancelled; then give the lease back."""
        self._begin()
        try:
            task_status.started()
            while True:
                await self._wait()
                await self._beat(publish, refuse)
        finally:
            if self._known:
                patience = trio.CancelScope(shield=True, deadline=trio.current_time() + _LEAVE_SECONDS)
                with patience, suppress(Exception):  # otherwise the lease ends by itself
                    await self._store.retire(self._node, self._linger)

    def _due(self) -> float:
        return max(min(self.book.due(), self._next_beat), self._not_before)

    async def _wait(self) -> None:
        await trio.lowlevel.checkpoint()
        while (due := self._due()) > trio.current_time():
            self._changed = trio.Event()
            self._asleep_until = due
            with trio.CancelScope(deadline=due):
                await self._changed.wait()
        self._asleep_until = -math.inf

    async def _beat(self, publish: Publish, refuse: Refuse) -> None:
        changes, doubtful = self.book.take(trio.current_time())
        self._number += 1
        beat = PresenceBeat(
            node=self._node,
            number=self._number,
            answered=self._answered,
            first=not self._known,
            changes=changes,
            doubtful=doubtful,
            ttl=self._ttl,
            max_members=self._max_members,
        )
        try:
            answer = await self._store.beat(beat)
        except Exception as error:
            self._failed(changes, error)
            return
        self._beats += 1
        if self._failed_in_a_row:
            logger.warning("the presence store answers again, after %d failures", self._failed_in_a_row)
        self._failed_in_a_row = 0
        now = trio.current_time()
        self._next_beat = now if answer.more else now + self._ttl / 3
        agreed = answer.known and self._settle(changes, answer, refuse, now)
        self._known = agreed
        self._answered = beat.number
        if not agreed:
            await self._call_again(now)
        for diff in answer.diffs:
            try:
                await self._tell(diff, publish)
            except Exception:  # what others have put into the store shall not end this process
                self._unpublished += 1
                logger.exception("a change of presence in %s was not published", diff.topic)

    def _settle(self, changes: Sequence[PresenceChange], answer: PresenceAnswer, refuse: Refuse, now: float) -> bool:
        """The store has carried out a beat. False where it has not all of us: it has lost its last memories."""
        book = self.book
        for client, topic in book.confirm(changes, set(answer.refused), now):
            error = WsKitError(
                "RESOURCE_EXHAUSTED",
                f"the topic {topic!r} has at most {self._max_members} members",
                {"limit": self._max_members, "topic": topic},
                retryable=False,
            )
            refuse(client, error)
        return bool(book.doubts) or book.held == answer.held

    def _failed(self, changes: Sequence[PresenceChange], error: Exception) -> None:
        now = trio.current_time()
        self._failures += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row == 1:
            foreign = None if isinstance(error, WsKitError) else error  # a bug maybe; not just a server that is away
            why = str(error.__cause__ or error)
            logger.warning("the presence store failed, and will be told again: %s", why, exc_info=foreign)
        self.book.doubt(changes, now)
        pause = min(0.1 * 2 ** min(self._failed_in_a_row, 10), _LONGEST_PAUSE, self._ttl / 3)
        self._not_before = now + max(pause, self._debounce)
        self._next_beat = self._not_before

    async def _call_again(self, now: float) -> None:
        logger.warning("the presence store does not know this process any more; it will be told everything")
        self._lost += 1
        old, self._node = self._node, secrets.token_hex(8)
        self._answered = 0
        self.book.start_again(now)
        with suppress(
            Exception
        ):  # otherwise that lease ends by itself; nobody leaves, if all is told before it is over
            await self._store.retire(old, self._debounce + self._linger)

    async def _tell(self, diff: TopicDiff, publish: Publish) -> None:
        for message in messages_of(diff):
            await trio.lowlevel.checkpoint()  # a message takes a millisecond to make
            result = await publish(self._topic_of(diff.topic), message)
            self._diffs += 1
            if not result.ok:
                self._unpublished += 1
                logger.warning("a change of presence in %s was not published: %s", diff.topic, result.error)
