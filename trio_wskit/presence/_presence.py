"""Presence as an App has it: members come and go here, one task tells the store, and publishes what has changed."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar, final

import attrs
import trio

from trio_wskit._core.json_text import dumps, is_json, loads
from trio_wskit._core.presence import PresenceAnswer, PresenceBeat, PresenceChange
from trio_wskit._core.presence_book import PresenceBook
from trio_wskit._core.publishing import PublishResult
from trio_wskit.abc import PresenceStore
from trio_wskit.errors import ConfigError, WsKitError
from trio_wskit.presence._client import ClientPresence
from trio_wskit.presence._guard import guard
from trio_wskit.presence._messages import PresenceDiff, PresenceList, PresenceMember, messages_of
from trio_wskit.presence.memory import MemoryPresence

if TYPE_CHECKING:
    from trio_wskit._session import Session
    from trio_wskit.pubsub._policy import PubSubPolicy

__all__ = ["Presence", "PresenceStatistics", "TopicNames"]

logger = logging.getLogger("trio_wskit")

T = TypeVar("T")

_MAX_IDENTITY: Final = 256  # characters
_MEMBERS_PER_PASS: Final = 500  # a long list lets others run this often
_LEAVE_SECONDS: Final = 1.0  # for the store to hear that this process goes
_LONGEST_PAUSE: Final = 5.0  # seconds between two tries at a store that does not answer


_Members: TypeAlias = "list[PresenceMember]"  # a method here is called `list`
_Publish: TypeAlias = "Callable[[str, PresenceDiff], Awaitable[PublishResult]]"
_Refuse: TypeAlias = "Callable[[str, WsKitError], object]"


class TopicNames(Protocol):
    """What presence needs to know about topics."""

    def normalise(self, topic: str) -> str:
        """The name that the topic is known by."""
        ...

    def check(self, topic: str) -> None:
        """Refuse what is no topic, with a PubSubError."""
        ...


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
class _Turn:
    """Who asks for the list of one topic: one after the other, so that most find an answer that is young enough."""

    __slots__ = ("answer", "asked", "lock")

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.asked = -1
        self.answer: PresenceList | None = None


@final
class Presence:
    """Who is there: give one to an `App`. See docs/howto/presence.md.

    Args:
        store: where the processes meet; by default a `MemoryPresence` of its own, for a single one.
        debounce: seconds for which changes are collected into one message for each topic; at least 0.
        linger: seconds for which somebody is still there whose last connection is gone: who is back meanwhile has never
            left. At least 0.
        ttl: seconds after which the members of a process vanish that does not say any more that it lives; at least
            0.1, and above `linger`. It says so three times in that time.
        max_members: identities in one topic, on all processes; above 0.
        max_state_bytes: the largest state, as JSON; above 0.
        max_places: topics in which one connection can be present; above 0.
        prefix: what comes before the name of a topic in the name of that topic to which its changes are published.
        subscribers: ``def (client, topic)`` gives the state with which a client is present in a topic while it is
            subscribed to it, or None for not being present. Without it nobody is present who is not said to be. It may
            not wait; what it raises is logged.

    Raises:
        ConfigError: an argument is out of its bounds.
    """

    def __init__(
        self,
        store: PresenceStore | None = None,
        *,
        debounce: float = 0.5,
        linger: float = 3.0,
        ttl: float = 30.0,
        max_members: int = 10_000,
        max_state_bytes: int = 1024,
        max_places: int = 100,
        prefix: str = "presence:",
        subscribers: Callable[[Session, str], object] | None = None,
    ) -> None:
        for name, value, least in (("debounce", debounce, 0.0), ("linger", linger, 0.0), ("ttl", ttl, 0.1)):
            if isinstance(value, bool) or not least <= value < math.inf:
                raise ConfigError(f"Presence({name}=…) takes seconds of at least {least:g}, not {value!r}")
        if ttl <= linger:
            raise ConfigError(f"Presence(ttl=…) takes seconds above linger={linger!r}, not {ttl!r}")
        counts = (("max_members", max_members), ("max_state_bytes", max_state_bytes), ("max_places", max_places))
        for name, bound in counts:
            if isinstance(bound, bool) or bound < 1:
                raise ConfigError(f"Presence({name}=…) takes a whole number above 0, not {bound!r}")
        if not prefix or "*" in prefix:
            raise ConfigError(f"Presence(prefix=…) takes a text without a star, not {prefix!r}")
        self._store: PresenceStore = MemoryPresence() if store is None else store
        self._debounce = debounce
        self._linger = linger
        self._ttl = ttl
        self._max_members = max_members
        self._max_state_bytes = max_state_bytes
        self._max_places = max_places
        self._prefix = prefix
        self._subscribers = subscribers
        self._names: TopicNames | None = None  # there while it runs
        self._questions = count()
        self._turns: dict[str, _Turn] = {}  # the topics of which somebody asks for the list
        self._blocks = 0
        self._beats = self._failures = self._diffs = self._unpublished = self._lost = 0
        self._reset()

    def _reset(self) -> None:
        self._book = PresenceBook(self._debounce, self._linger)
        self._node = secrets.token_hex(8)
        self._number = 0
        self._known = False  # the store has heard of this node
        self._next_beat = math.inf  # when the lease is to be renewed; never, as long as nobody asks for presence
        self._not_before = -math.inf  # the store has failed; leave it alone until then
        self._failed_in_a_row = 0
        self._changed = trio.Event()
        self._asleep_until = -math.inf

    def statistics(self) -> PresenceStatistics:
        """What it has done so far."""
        return PresenceStatistics(self._beats, self._failures, self._diffs, self._unpublished, self._lost)

    def topic_of(self, topic: str) -> str:
        """Where the changes of a topic are published."""
        return self._prefix + topic

    def watched(self, topic: str) -> str:
        """What `ClientPresence.watch` subscribes to.

        Raises:
            PubSubError: INVALID_TOPIC.
        """
        return self.topic_of(self._name(topic))

    # Who is there.

    async def list(self, topic: str) -> _Members:
        """Who is there, in no order. Waits for the store.

        Raises:
            WsKitError: UNAVAILABLE: the store does not answer. INVALID_TOPIC as a PubSubError.

        Cancelled: nothing has happened.
        """
        return [*(await self.snapshot(topic)).members]

    async def snapshot(self, topic: str) -> PresenceList:
        """Who is there, and the version of this list, as a message that a client can take.

        Those who ask at the same time share one answer, for which the store was asked after the last of them.

        Raises, Cancelled: as `list`.
        """
        name = self._name(topic)
        self._in_use()
        asked = next(self._questions)
        turn = self._turns.setdefault(name, _Turn())
        try:
            async with turn.lock:
                if turn.asked < asked or turn.answer is None:
                    turn.asked, turn.answer = next(self._questions), None
                    turn.answer = await self._list(name)
                return turn.answer
        finally:
            if not turn.lock.statistics().tasks_waiting and not turn.lock.locked():
                self._turns.pop(name, None)

    async def _list(self, name: str) -> PresenceList:
        snapshot = await self._ask(self._store.members(name))
        states = {**snapshot.members, **self._book.pending(name)}
        members: list[PresenceMember] = []
        for number, (identity, state) in enumerate(states.items(), 1):
            members.append(PresenceMember(identity, loads(state)))
            if number % _MEMBERS_PER_PASS == 0:
                await trio.lowlevel.checkpoint()
        return PresenceList(name, snapshot.version, members)

    async def count(self, topic: str) -> int:
        """How many are there, without a list of them. Waits for the store.

        For a moment, one who has just come to this process and is on another one too may count twice.

        Raises, Cancelled: as `list`.
        """
        name = self._name(topic)
        self._in_use()
        stored = await self._ask(self._store.count(name))
        return stored + self._book.unheard(name)

    async def _ask(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except WsKitError:
            raise
        except Exception as error:
            raise WsKitError("UNAVAILABLE", "The presence store is unavailable") from error

    def _name(self, topic: str) -> str:
        if self._names is None:
            raise RuntimeError("presence is there while its app is open: App(router, presence=Presence())")
        name = self._names.normalise(topic)
        self._names.check(name)
        self._names.check(self.topic_of(name))
        return name

    def of(self, client: Session) -> ClientPresence:
        """What one client can do."""
        return ClientPresence(self, client)

    # What clients do: see ClientPresence.

    def enter(self, client_id: str, identity: str, topic: str, state: object, block: int = 0) -> None:
        """A connection is there, from now on or with another state. See `ClientPresence.join`."""
        name = self._name(topic)
        if not identity or len(identity) > _MAX_IDENTITY:
            raise WsKitError(
                "INVALID_ARGUMENT", f"an identity has 1 to {_MAX_IDENTITY} characters, not {len(identity)}"
            )
        if not is_json(state):
            raise WsKitError("INVALID_ARGUMENT", "the state of a member is JSON")
        told = dumps(state)
        if len(told) > self._max_state_bytes:
            self._too_many("the state of a member", "bytes", self._max_state_bytes, len(told))
        book = self._book
        if not book.is_present(client_id, name, block) and book.places(client_id) >= self._max_places:
            self._too_many("a connection", "places", self._max_places, book.places(client_id) + 1)
        if not book.has(name, identity) and book.members(name) >= self._max_members:
            self._too_many(f"the topic {name!r}", "members", self._max_members, book.members(name) + 1)
        book.join(client_id, name, identity, told, trio.current_time(), block)
        self._in_use()

    def exit(self, client_id: str, topic: str, block: int = 0) -> None:
        """A connection is not there any more; no change where it was not."""
        if self._names is not None and self._book.leave(
            client_id, self._names.normalise(topic), trio.current_time(), block
        ):
            self._wake()

    def gone(self, client_id: str) -> None:
        """A connection is gone: it is nowhere any more."""
        self._book.leave_all(client_id, trio.current_time())
        self._wake()

    def new_block(self) -> int:
        """A number for a block that is a device of its own."""
        self._blocks += 1
        return self._blocks

    @staticmethod
    def _too_many(what: str, unit: str, limit: int, observed: int) -> None:
        raise WsKitError(
            "RESOURCE_EXHAUSTED",
            f"{what} has at most {limit} {unit}, not {observed}",
            {"limit": limit, "observed": observed},
            retryable=False,
        )

    def guarded(self, policy: PubSubPolicy) -> PubSubPolicy:
        """The same rules, which now also say who may watch, and who is present by a subscription."""
        return guard(self, policy, self._prefix, self._subscribers)

    # What an app does.

    async def run(
        self,
        names: TopicNames,
        publish: _Publish,
        refuse: _Refuse,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Tell the store, and publish what it says, until cancelled; then give the lease back.

        Args:
            names: what a topic may be called.
            publish: to everybody who watches.
            refuse: tells a client, by its id, that it is not there after all.
        """
        if self._names is not None:
            raise RuntimeError("this Presence belongs to an app that is open")
        self._reset()
        self._names = names
        try:
            task_status.started()
            while True:
                await self._wait()
                await self._beat(publish, refuse)
        finally:
            self._names = None
            if self._known:
                patience = trio.CancelScope(shield=True, deadline=trio.current_time() + _LEAVE_SECONDS)
                with patience, suppress(Exception):  # otherwise the lease ends by itself
                    await self._store.retire(self._node, self._linger)

    def _in_use(self) -> None:
        if self._next_beat == math.inf:
            self._next_beat = trio.current_time() + self._debounce
        self._wake()

    def _due(self) -> float:
        return max(min(self._book.due(), self._next_beat), self._not_before)

    def _wake(self) -> None:
        if self._due() < self._asleep_until:
            self._asleep_until = -math.inf
            self._changed.set()

    async def _wait(self) -> None:
        await trio.lowlevel.checkpoint()
        while (due := self._due()) > trio.current_time():
            self._changed = trio.Event()
            self._asleep_until = due
            with trio.CancelScope(deadline=due):
                await self._changed.wait()
        self._asleep_until = -math.inf

    async def _beat(self, publish: _Publish, refuse: _Refuse) -> None:
        book = self._book
        changes, doubtful = book.take(trio.current_time())
        self._number += 1
        beat = PresenceBeat(
            node=self._node,
            number=self._number,
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
        if answer.known:
            self._known = True
            self._settle(changes, answer, refuse, now)
        else:
            self._call_again(now)
        self._next_beat = now if answer.more else now + self._ttl / 3
        for diff in answer.diffs:
            for message in messages_of(diff):
                await trio.lowlevel.checkpoint()  # a message takes a millisecond to make
                result = await publish(self.topic_of(diff.topic), message)
                self._diffs += 1
                if not result.ok:
                    self._unpublished += 1
                    logger.warning("a change of presence in %s was not published: %s", diff.topic, result.error)

    def _settle(
        self,
        changes: Sequence[PresenceChange],
        answer: PresenceAnswer,
        refuse: _Refuse,
        now: float,
    ) -> None:
        book = self._book
        refused = set(answer.refused)
        for client in book.confirm(changes, refused, now):
            topics = sorted({topic for topic, _ in refused})
            error = WsKitError(
                "RESOURCE_EXHAUSTED",
                f"a topic has at most {self._max_members} members",
                {"limit": self._max_members, "topics": topics},
                retryable=False,
            )
            refuse(client, error)
        if not book.doubts and book.held != answer.held:  # it has come back without its last memories
            self._call_again(now)

    def _failed(self, changes: Sequence[PresenceChange], error: Exception) -> None:
        now = trio.current_time()
        self._failures += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row == 1:
            foreign = None if isinstance(error, WsKitError) else error  # a bug maybe; not just a server that is away
            why = str(error.__cause__ or error)
            logger.warning("the presence store failed, and will be told again: %s", why, exc_info=foreign)
        self._book.doubt(changes, now)
        pause = min(0.1 * 2 ** min(self._failed_in_a_row, 10), _LONGEST_PAUSE, self._ttl / 3)
        self._not_before = now + max(pause, self._debounce)
        self._next_beat = self._not_before

    def _call_again(self, now: float) -> None:
        """Under another name: what the store keeps under the old one ends with its lease."""
        logger.warning("the presence store does not know this process any more; it will be told everything")
        self._lost += 1
        self._node = secrets.token_hex(8)
        self._known = False
        self._book.start_again(now)
