"""One client's topics, as its handlers see them.

Rules
- Each operation goes: normalise, look at the names, wait for what is in flight on its topics, look whether there is
  anything to do, authorise, limits, driver, local state, hooks. What is so already asks nobody.
- The driver is asked first, and the local state follows: `has` never tells of what the driver may still refuse.
- The local state changes in one step, after the driver's last answer. Before it an operation that fails or is cancelled
  is undone in reverse order; after it nothing can stop it. A topic whose undoing failed is in doubt: the next
  operation on it asks the driver again, and so does the end of the connection.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar, final

import trio

from trio_wskit._core.history import NOT_KEPT, NoHistory, Position, Recovery, check_last, check_since
from trio_wskit._core.overflow import Overflow, check_overflow
from trio_wskit._core.terms import Terms
from trio_wskit._core.topics import TopicRules
from trio_wskit.abc import PubSubDriver
from trio_wskit.errors import PubSubError
from trio_wskit.pubsub._desk import Desk
from trio_wskit.pubsub._errand import UNDO_SECONDS, Errand
from trio_wskit.pubsub._policy import PubSubPolicy
from trio_wskit.pubsub._state import State
from trio_wskit.pubsub._state import TopicChange as TopicChange
from trio_wskit.pubsub._turns import Turn

if TYPE_CHECKING:
    from trio_wskit.pubsub._catching import Catching, Snapshot

__all__ = ["TopicChange", "TopicStatus", "Topics", "Verified"]

S = TypeVar("S")
TopicStatus = Literal["absent", "settled", "pending-subscribe", "pending-unsubscribe"]
Verified = Literal["subscribed", "unsubscribed", "error"]


@final
class Topics(AbstractSet[str]):
    """The topics that a client is subscribed to: a read-only set, iterated on a snapshot in order of subscription.

    Every operation is a cancellation point, but lets other tasks run only when it waits, or 64 topics at a time.
    """

    __slots__ = ("_client_id", "_closed", "_desk", "_state")

    def __init__(self, client_id: str, driver: PubSubDriver, desk: Desk | None = None) -> None:
        self._client_id = client_id
        self._desk = desk or Desk(driver, TopicRules(), PubSubPolicy(), lambda _: None)
        self._state: State | None = None  # made at the first operation: an idle client needs none
        self._closed = False

    # A set of str.

    def __contains__(self, topic: object) -> bool:
        return self._state is not None and topic in self._state.names

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._state.names) if self._state is not None else ())

    def __len__(self) -> int:
        return len(self._state.names) if self._state is not None else 0

    @classmethod
    def _from_iterable(cls, it: Iterable[S]) -> AbstractSet[S]:
        """What ``topics - other`` and the like give: a set that is no client's."""
        return frozenset(it)

    def has(self, topic: str) -> bool:
        """True where the client is subscribed."""
        return topic in self

    def keeps_history(self, topic: str) -> bool:
        """True where a topic keeps a history, so that one can subscribe to it from a place in that."""
        histories = self._desk.histories
        return histories is not None and histories.of(self._desk.normalise(topic)) is not None

    def local_status(self, topic: str) -> TopicStatus:
        """How the subscription stands here: ``absent``, ``settled``, or pending while the driver is at work."""
        turn = self._state.turns.about(topic) if self._state is not None else None
        if turn is None:
            return "settled" if topic in self else "absent"
        return "pending-subscribe" if topic in turn.adds else "pending-unsubscribe"

    # Operations.

    async def subscribe(
        self,
        topic: str,
        *,
        since: Position | None = None,
        last: int | None = None,
        snapshot: Snapshot | None = None,
        overflow: Overflow | None = None,
        gaps: bool = False,
    ) -> Recovery:
        """Subscribe to a topic, or to a `TopicPattern`; no change where it is so already.

        For a topic that keeps a history, say from where on, in one of three ways. What was missed is in the outbox,
        in order and complete, before anything that is published from now on; or none of it is: see the result. It must
        find room in the outbox at once.

        Args:
            topic: its name, or a pattern.
            since: from after this position on.
            last: from so many of the newest messages on, or as many as are kept; at least 1.
            snapshot: ``async def (client, topic) -> (message, position)`` gives all that there is in one message: from
                that on, and after it from after that position on.
            overflow: what happens to messages of this subscription while the client does not read fast enough; None
                for the topic's own policy. That of a topic goes before those of patterns that match it.
            gaps: tell the client by ``$ws:gap`` where messages are missing. A further `subscribe` that asks for either
                replaces both; one that asks for neither leaves them.

        Returns:
            What came of it.

        Raises:
            PubSubError: INVALID_TOPIC, ACL_SUBSCRIBE, TOPIC_LIMIT_EXCEEDED; ADAPTER_ERROR when the driver fails;
                CONNECTION_CLOSED when the client has left. Nothing has changed.
            WsKitError: FAILED_PRECONDITION: the topic keeps no history; INVALID_ARGUMENT: no position, or no number.
            TypeError: two ways at once.
            ConfigError: `overflow` is no policy.

        Cancelled before the driver is done, or before it is decided what the client gets: not subscribed, unless it was
        before.
        """
        terms: Terms | None = None
        if overflow is not None or gaps:
            terms = Terms(None if overflow is None else check_overflow(overflow), gaps)
        histories = self._desk.histories
        if histories is None:
            name = topic
            keep = None
        else:
            name = self._desk.normalise(topic)
            keep = histories.of(name)
        if (since is not None) + (last is not None) + (snapshot is not None) > 1:
            raise TypeError("subscribe() takes one of since, last and snapshot")
        if histories is None or keep is None:
            if since is not None or last is not None or snapshot is not None:
                raise NoHistory(name)
            await self._add((name,), many=False, normal=histories is not None, terms=terms)
            return NOT_KEPT
        return await self._catch_up(
            name,
            histories.catching(
                self._client_id,
                name,
                keep,
                None if since is None else check_since(since),
                0 if last is None else check_last(last),
                snapshot,
            ),
            terms,
        )

    async def subscribe_many(self, topics: Iterable[str]) -> TopicChange:
        """Subscribe to all these topics or to none.

        Raises:
            PubSubError: as `subscribe`. With ADAPTER_ERROR the details have ``rollbackFailed``, and in
                ``failedRollbackTopics`` the topics for which the driver did not undo what it had done.

        Cancelled before the driver is done: as before.
        """
        return await self._add(topics, many=True)

    async def unsubscribe(self, topic: str) -> None:
        """Unsubscribe; no change where there is nothing to undo, whatever the topic's name.

        Raises:
            PubSubError: ADAPTER_ERROR when the driver fails; the client is still subscribed.

        Cancelled before the driver is done: still subscribed.
        """
        await self._remove((topic,))

    async def unsubscribe_many(self, topics: Iterable[str]) -> TopicChange:
        """Unsubscribe from all these topics or from none; those that are not subscribed are skipped.

        Raises:
            PubSubError: ADAPTER_ERROR, with details as for `subscribe_many`.

        Cancelled before the driver is done: as before.
        """
        return await self._remove(topics)

    async def set(self, topics: Iterable[str]) -> TopicChange:
        """Have exactly these topics: unsubscribe from the others, then subscribe to the new ones, or change nothing.

        Raises:
            PubSubError: as `subscribe_many`. The limit is for what there is at the end.

        Cancelled before the driver is done: as before.
        """
        wanted = self._names_of(topics)
        for name in wanted:
            if name not in self:
                self._desk.check(name)
        return await self._replace(lambda _: wanted)

    async def update(self, change: Callable[[AbstractSet[str]], Iterable[str]]) -> TopicChange:
        """Have the topics that a function makes of those there are: ``update(lambda now: now - old | {"a"})``.

        It is called once, when everything in flight has settled, and gets a copy.

        Raises, Cancelled: as `set`; and what the function raises.
        """
        return await self._replace(lambda now: self._names_of(change(now)))

    async def clear(self) -> TopicChange:
        """Unsubscribe from everything.

        Raises, Cancelled: as `unsubscribe_many`.
        """
        return await self._replace(lambda _: ())

    @asynccontextmanager
    async def subscribed(self, *topics: str) -> AsyncGenerator[None]:
        """Be subscribed to these topics as long as the block runs: ``async with ctx.topics.subscribed("room:1"):``.

        Scopes may overlap: the last one to end unsubscribes. What was subscribed before the first stays.

        Raises:
            PubSubError: as `subscribe_many`; on the way out, ADAPTER_ERROR.

        Cancelled: on the way in, not subscribed; then, it is unsubscribed all the same, in at most 5 seconds.
        """
        names = self._names_of(topics)
        state = self._began()
        if state.scopes is None:
            state.scopes = {}
        scopes = state.scopes
        for name in names:
            count, before = scopes.get(name, (0, name in state.names))
            scopes[name] = (count + 1, before)
        try:
            await self._add(names, many=True, normal=True)
            yield
        finally:
            ended: list[str] = []
            for name in names:
                count, before = scopes.pop(name)
                if count > 1:
                    scopes[name] = (count - 1, before)
                elif not before:
                    ended.append(name)
            if ended and not self._closed:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + UNDO_SECONDS):
                    await self._remove(ended, normal=True)

    async def settle(self, topic: str | None = None) -> None:
        """Wait until what is in flight now on this topic, or on any, is over, however it ends.

        Cancelled: it goes on without you.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._state is not None:
            await self._state.turns.settle(None if topic is None else frozenset((self._desk.normalise(topic),)))

    async def verify(self, topic: str, mode: Literal["best-effort", "strict"] = "best-effort") -> Verified:
        """Wait for what is in flight on the topic, then ask the driver whether this client gets what is published.

        Args:
            topic: a topic, or a pattern.
            mode: ``strict`` raises where the driver fails, or knows otherwise than `has` does.

        Returns:
            What the driver knows; ``error`` where it failed.

        Raises:
            PubSubError: ADAPTER_ERROR, in strict mode.
        """
        await self.settle(topic)
        name = self._desk.normalise(topic)
        try:
            there = self._client_id in self._desk.driver.local_subscribers(name)
        except Exception as cause:
            if mode == "strict":
                raise PubSubError("ADAPTER_ERROR", f"the driver did not say who subscribes to {name!r}") from cause
            return "error"
        if mode == "strict" and there != (name in self):
            raise PubSubError("ADAPTER_ERROR", f"the driver knows otherwise of {name!r}", {"subscribed": there})
        return "subscribed" if there else "unsubscribed"

    async def recheck(self) -> tuple[str, ...]:
        """Ask the policy about every topic again, and unsubscribe from those it refuses now.

        Returns:
            The topics that are gone.

        Raises:
            PubSubError: ADAPTER_ERROR when the driver fails; nothing has changed. And what the policy raises that is
                no `WsKitError`.

        Cancelled before the driver is done: as before.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        state = self._state
        if state is None:
            return ()
        turn = Turn(None)
        await state.turns.begin(turn)
        try:
            turn.removes = revoked = await self._desk.revoked(self._client_id, tuple(state.names))
            if revoked:
                await self._change(state, turn, revoked, (), True)
            return tuple(revoked)
        finally:
            state.turns.end(turn)

    async def close(self) -> None:
        """Leave every topic, even where the driver fails for one of them, and take no new one.

        It does not wait for what is in flight: that finds the client gone, and undoes itself. Cancelled: the client has
        left all the same, and the driver was not told of every topic.
        """
        self._closed = True
        state = self._state
        if state is None:
            return
        names = tuple(state.names)
        errors: list[Exception] = []
        try:
            for topic in dict.fromkeys((*names, *(state.doubtful or ()))):
                try:
                    await self._desk.driver.unsubscribe(self._client_id, topic)
                except Exception as error:
                    errors.append(error)
        finally:
            left = [topic for topic in names if topic in state.names]  # what was in flight may have ended meanwhile
            state.names = {}
            state.doubtful = None
            self._desk.free_places(left)
            self._desk.tell(self._client_id, (), left)
        if errors:
            raise PubSubError("ADAPTER_ERROR", "the driver did not let go of every topic") from errors[0]

    # How it is done.

    def _began(self) -> State:
        if self._state is None:
            self._state = State()
        return self._state

    def _names_of(self, topics: Iterable[str]) -> Collection[str]:
        if isinstance(topics, str):
            raise TypeError(f"a batch takes topics, not the text {topics!r}")
        return dict.fromkeys(map(self._desk.normalise, topics))

    def _has_left(self) -> bool:
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise PubSubError("CONNECTION_CLOSED", "the client has left")

    async def _add(
        self, topics: Iterable[str], *, many: bool, normal: bool = False, terms: Terms | None = None
    ) -> TopicChange:
        names = tuple(topics if normal else self._names_of(topics))
        for name in names:
            if name not in self:  # what is subscribed was checked
                self._desk.check(name)
        await trio.lowlevel.checkpoint_if_cancelled()
        state = self._began()
        turn = Turn(frozenset(names))
        turn.adds = names
        await state.turns.begin(turn)
        try:
            adds = [name for name in names if state.is_new(name)]
            turn.adds = adds
            with self._on_terms(names, terms):
                if adds:
                    await self._change(state, turn, (), adds, many)
            return TopicChange(len(adds), 0, len(state.names))
        finally:
            state.turns.end(turn)

    @contextmanager
    def _on_terms(self, names: Iterable[str], terms: Terms | None) -> Generator[None]:
        """They hold from the first message on, and where the subscription fails those before it do."""
        if terms is None:
            yield
            return
        book = self._desk.terms
        before = [(name, book.set(self._client_id, name, terms)) for name in names]
        try:
            yield
        except BaseException:
            for name, old in before:
                book.set(self._client_id, name, None if self._closed else old)
            raise

    async def _catch_up(self, name: str, catching: Catching, terms: Terms | None) -> Recovery:
        """Subscribe, and begin with what was missed; or neither."""
        if name not in self:
            self._desk.check(name)
        await trio.lowlevel.checkpoint_if_cancelled()
        await catching.enter()
        state = self._began()
        turn = Turn(frozenset((name,)))
        turn.adds = (name,)
        await state.turns.begin(turn)
        try:
            turn.adds = adds = [name] if state.is_new(name) else []
            with self._on_terms((name,), terms), catching:
                if adds:
                    await self._change(state, turn, (), adds, False)
                try:
                    return await catching.recover()
                except BaseException:
                    if name in state.names and adds:
                        with trio.CancelScope(shield=True, deadline=trio.current_time() + UNDO_SECONDS):
                            await self._change(state, turn, adds, (), False)
                    raise
        finally:
            state.turns.end(turn)

    async def _remove(self, topics: Iterable[str], *, normal: bool = False) -> TopicChange:
        names = tuple(topics if normal else self._names_of(topics))
        await trio.lowlevel.checkpoint_if_cancelled()
        state = self._state
        if state is None:
            return TopicChange(0, 0, 0)
        turn = Turn(frozenset(names))
        turn.removes = [name for name in names if name in state.names]
        await state.turns.begin(turn)
        try:
            removes = [name for name in names if state.is_held(name)]
            turn.removes = removes
            if removes:
                await self._change(state, turn, removes, (), True)
            return TopicChange(0, len(removes), len(state.names))
        finally:
            state.turns.end(turn)

    async def _replace(self, wanted_of: Callable[[AbstractSet[str]], Collection[str]]) -> TopicChange:
        await trio.lowlevel.checkpoint_if_cancelled()
        state = self._began()
        turn = Turn(None)
        await state.turns.begin(turn)
        try:
            wanted = wanted_of(set(state.names))
            removes = [name for name in (*state.names, *(state.doubtful or ())) if name not in wanted]
            removes = list(dict.fromkeys(removes))
            adds = [name for name in wanted if state.is_new(name)]
            for name in adds:
                self._desk.check(name)
            turn.adds, turn.removes = adds, removes
            if adds or removes:
                await self._change(state, turn, removes, adds, True)
            return TopicChange(len(adds), len(removes), len(state.names))
        finally:
            state.turns.end(turn)

    def _check_limit(self, state: State, turn: Turn, fresh: int, gone: int, many: bool) -> None:
        limit = self._desk.rules.max_per_connection
        current = len(state.names)
        resulting = current + sum(other.reserved for other in state.turns.all) + fresh - gone
        if limit is not None and fresh and resulting > limit:
            details: dict[str, object] = {"limit": limit, "current": current}
            if turn.topics is None:
                details |= {"toAdd": fresh, "toRemove": gone, "resulting": resulting}
            elif many:
                details["requested"] = fresh
            raise PubSubError("TOPIC_LIMIT_EXCEEDED", f"a connection has at most {limit} topics", details)

    async def _change(
        self, state: State, turn: Turn, removes: Collection[str], adds: Collection[str], many: bool
    ) -> None:
        """Carry out what there is to do, in the turn of its topics."""
        desk = self._desk
        if adds:
            self._check_open()
            await desk.authorise(self._client_id, adds)
            self._check_open()
        fresh = [name for name in adds if name not in state.names]
        gone = [name for name in removes if name in state.names]
        self._check_limit(state, turn, len(fresh), len(gone), many)
        desk.take_places(fresh)
        turn.reserved = len(fresh)
        errand = Errand(desk.driver, self._client_id, self._has_left, many=many)
        try:
            await errand.run(removes, adds)
        except BaseException:
            desk.free_places(fresh)
            if errand.doubtful is not None:
                state.doubtful = (state.doubtful or set()) | errand.doubtful
            raise
        # The commit: nothing waits from here on.
        gone = [name for name in gone if name in state.names]  # the client may have left meanwhile
        for name in gone:
            del state.names[name]
        for name in fresh:
            state.names[name] = None
        turn.reserved = 0
        if state.doubtful is not None:
            state.doubtful.difference_update(removes, adds)
        desk.free_places(gone)
        desk.tell(self._client_id, fresh, gone)
