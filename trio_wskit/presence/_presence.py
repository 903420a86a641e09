"""Presence as an App has it: who is there, who comes and goes. What the store hears of it is in `_beats`."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar, final

import trio

from trio_wskit._core.json_text import dumps, is_json, loads
from trio_wskit.abc import PresenceStore
from trio_wskit.errors import ConfigError, WsKitError
from trio_wskit.presence._beats import Beats, PresenceStatistics, Publish, Refuse
from trio_wskit.presence._client import ClientPresence
from trio_wskit.presence._guard import guard
from trio_wskit.presence._messages import PresenceList, PresenceMember
from trio_wskit.presence.memory import MemoryPresence

if TYPE_CHECKING:
    from trio_wskit._session import Session
    from trio_wskit.pubsub._policy import PubSubPolicy

__all__ = ["Presence", "TopicNames"]

T = TypeVar("T")

_MAX_IDENTITY: Final = 256  # characters
_MEMBERS_PER_PASS: Final = 500  # a long list lets others run this often

_Members: TypeAlias = "list[PresenceMember]"  # a method here is called `list`


class TopicNames(Protocol):
    """What presence needs to know about topics."""

    def normalise(self, topic: str) -> str:
        """The name that the topic is known by."""
        ...

    def check(self, topic: str) -> None:
        """Refuse what is no topic, with a PubSubError."""
        ...


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
        given: object = store
        if given is not None and not callable(getattr(given, "beat", None)):
            raise ConfigError(f"Presence(store) takes a store, not {given!r}: open_redis_presence(url) opens one")
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
        self._beats = Beats(
            self._store, debounce=debounce, linger=linger, ttl=ttl, max_members=max_members, topic_of=self.topic_of
        )
        self._max_members = max_members
        self._max_state_bytes = max_state_bytes
        self._max_places = max_places
        self._prefix = prefix
        self._subscribers = subscribers
        self._names: TopicNames | None = None  # there while it runs
        self._questions = count()
        self._turns: dict[str, _Turn] = {}  # the topics of which somebody asks for the list
        self._blocks = 0

    def statistics(self) -> PresenceStatistics:
        """What it has done so far."""
        return self._beats.statistics()

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
        """Who is there, in no order; those who have just come to this process, too. Waits for the store.

        Raises:
            WsKitError: UNAVAILABLE: the store does not answer. INVALID_TOPIC as a PubSubError.

        Cancelled: nothing has happened.
        """
        members = {member.id: member for member in (await self.snapshot(topic)).members}
        if self._names is not None:
            for identity, state in self._beats.book.pending(self._names.normalise(topic)).items():
                members[identity] = PresenceMember(identity, loads(state))
        return [*members.values()]

    async def snapshot(self, topic: str) -> PresenceList:
        """Who is there, and the version of this list, as a message that a client can take.

        Whoever has just come or gone follows in the next change: what is taken back before that is never seen. Those
        who ask at the same time share one answer, for which the store was asked after the last of them.

        Raises, Cancelled: as `list`.
        """
        name = self._name(topic)
        self._beats.in_use()
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
        return PresenceList(name, snapshot.version, await self._ask(self._members(snapshot.members)))

    async def _members(self, states: Mapping[str, bytes]) -> _Members:
        members: list[PresenceMember] = []
        for number, (identity, state) in enumerate(states.items(), 1):
            members.append(PresenceMember(identity, loads(state)))
            if number % _MEMBERS_PER_PASS == 0:
                await trio.lowlevel.checkpoint()
        return members

    async def count(self, topic: str) -> int:
        """How many are there, without a list of them; those who have just come to this process, too.

        Each counts once, on how many processes it may be. Waits for the store, for one call.

        Raises, Cancelled: as `list`.
        """
        name = self._name(topic)
        self._beats.in_use()
        return await self._ask(self._store.count(name, self._beats.book.unconfirmed(name)))

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
        book = self._beats.book
        if not book.is_present(client_id, name, block) and book.places(client_id) >= self._max_places:
            self._too_many("a connection", "places", self._max_places, book.places(client_id) + 1)
        if not book.has(name, identity) and book.members(name) >= self._max_members:
            self._too_many(f"the topic {name!r}", "members", self._max_members, book.members(name) + 1)
        book.join(client_id, name, identity, told, trio.current_time(), block)
        self._beats.in_use()

    def exit(self, client_id: str, topic: str, block: int = 0) -> None:
        """A connection is not there any more; no change where it was not."""
        if self._names is not None and self._beats.book.leave(
            client_id, self._names.normalise(topic), trio.current_time(), block
        ):
            self._beats.look()

    def gone(self, client_id: str) -> None:
        """A connection is gone: it is nowhere any more."""
        self._beats.book.leave_all(client_id, trio.current_time())
        self._beats.look()

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
        publish: Publish,
        refuse: Refuse,
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
        self._names = names
        try:
            await self._beats.run(publish, refuse, task_status)
        finally:
            self._names = None
