"""State channels: clients number what they send, the server what it tells. Nothing is done twice, and a gap shows.

The server keeps a `StateChannel`, a client a `StateReplica`. The state belongs to one process. See
docs/howto/patterns.md.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar, final

import trio

from trio_wskit import ConfigError, Context, message

__all__ = ["CatchUpRequest", "SequenceGap", "StateChannel", "StateReplica", "StateSync", "StateUpdate"]

S = TypeVar("S")


@message("STATE_SYNC")
class StateSync:
    """The whole state, and the number of the last update in it; 0 for none."""

    topic: str
    seq: int
    state: Any


@message("STATE_UPDATE")
class StateUpdate:
    """One update, by the server's number; the first is 1."""

    topic: str
    seq: int
    data: Any


@message("SEQUENCE_GAP")
class SequenceGap:
    """To a client: what you sent was carried out, but something before it has never come.

    Attributes:
        topic: of the channel.
        expected_seq: the client's number that should have come.
        received_seq: the one that came.
        resume_from: the server's next number: ask for it to see what others do meanwhile.
    """

    topic: str
    expected_seq: int
    received_seq: int
    resume_from: int


@message("CATCH_UP_REQUEST")
class CatchUpRequest:
    """From a client: tell me again from this number of yours on."""

    topic: str
    from_seq: int


@final
class StateChannel(Generic[S]):
    """The server's side.

    Args:
        topic: to which updates are published.
        state: before the first update. JSON.
        apply: ``def (state, data)`` returns the next state, and leaves the old one as it is. What it raises refuses the
            update.
        history: updates that are kept; above 0.
        max_clients: whose numbers are remembered; those that have been silent longest are forgotten first.

    Attributes:
        topic: as given.
        state: after update `seq`.
        seq: the number of the last update.
    """

    def __init__(
        self, topic: str, state: S, apply: Callable[[S, Any], S], *, history: int = 1000, max_clients: int = 10_000
    ) -> None:
        if history < 1 or max_clients < 1:
            raise ConfigError("StateChannel takes whole numbers above 0 for history and max_clients")
        self.topic: str = topic
        self.state: S = state
        self.seq: int = 0
        self._apply = apply
        self._history: deque[StateUpdate] = deque(maxlen=history)
        self._heard: OrderedDict[str, int] = OrderedDict()  # the last number of each identity
        self._max_clients = max_clients
        self._turn = trio.Lock()  # updates are published in the order of their numbers

    async def join(self, ctx: Context[Any]) -> None:
        """Subscribe a client, and tell it the state.

        Raises, Cancelled: as `Topics.subscribe` and `Context.send`; a second call mends it.
        """
        await ctx.topics.subscribe(self.topic)
        await ctx.send(StateSync(self.topic, self.seq, self.state))

    def expected(self, identity: str) -> int:
        """The number that an identity's next message should have."""
        return self._heard.get(identity, 0) + 1

    async def receive(self, ctx: Context[Any], seq: int, data: Any) -> bool:
        """Carry out what a client has sent under a number of its own, and tell all who have joined.

        Numbers belong to the client's identity, so that what it sends again after a reconnection is not done twice. A
        client whose numbers leave one out gets a `SequenceGap`; what it has sent is carried out all the same.

        Args:
            ctx: of the client's message.
            seq: above 0.
            data: any JSON.

        Returns:
            False where this number was carried out before.

        Raises:
            ValueError: the number is not above 0.
            Exception: what `apply` raises; nothing has happened, and the number is still expected.

        Cancelled: while it waits for its turn, nothing has happened; later it is carried out, and published.
        """
        if seq < 1:
            raise ValueError(f"a client's numbers begin with 1, not {seq}")
        identity = ctx.session.identity
        async with self._turn:
            expected = self.expected(identity)
            if seq < expected:
                return False
            self.state = self._apply(self.state, data)
            self.seq += 1
            update = StateUpdate(self.topic, self.seq, data)
            self._history.append(update)
            self._heard[identity] = seq
            self._heard.move_to_end(identity)
            if len(self._heard) > self._max_clients:
                self._heard.popitem(last=False)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await ctx.publish(self.topic, update)
        if seq > expected:
            await ctx.send(SequenceGap(self.topic, expected, seq, self.seq + 1))
        return True

    async def catch_up(self, ctx: Context[Any], from_seq: int) -> None:
        """Tell a client, and it alone, all updates from a number on; or the state, where they are not kept any more.

        Raises, Cancelled: as `Context.send`; a second call mends it.
        """
        if not self.seq - len(self._history) < from_seq <= self.seq + 1:
            await ctx.send(StateSync(self.topic, self.seq, self.state))
            return
        for update in [update for update in self._history if update.seq >= from_seq]:
            await ctx.send(update)


@final
class StateReplica(Generic[S]):
    """A client's side.

    Args:
        topic: of the channel.
        apply: as the server's.

    Attributes:
        expected_seq: the server's next number; 0 before it has said anything.
        state: what it has said; None before.
    """

    def __init__(self, topic: str, apply: Callable[[S, Any], S]) -> None:
        self.topic: str = topic
        self.expected_seq: int = 0
        self.state: S | None = None
        self._apply = apply
        self._sent = 0

    def next_seq(self) -> int:
        """A number for the next message to the server."""
        self._sent += 1
        return self._sent

    def take(self, told: StateSync | StateUpdate) -> CatchUpRequest | None:
        """Learn what the server says; what is known already, or is of another topic, changes nothing.

        Returns:
            What to send to the server, where updates are missing in between.
        """
        if told.topic != self.topic:
            return None
        if isinstance(told, StateSync):
            self.state, self.expected_seq = told.state, told.seq + 1
            return None
        if self.state is None or told.seq > self.expected_seq:
            return CatchUpRequest(self.topic, self.expected_seq)
        if told.seq == self.expected_seq:
            self.state = self._apply(self.state, told.data)
            self.expected_seq += 1
        return None
