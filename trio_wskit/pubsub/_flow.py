"""Fan-outs of topics with a history: one at a time for each topic, and great ones let other tasks run.

Rules
- A message gets its number and begins to go out in the topic's turn (see `_hub`). While it goes out, the turn
  goes on; whoever publishes waits for it, and what comes from the store waits in its feed.
- Whoever is about to subscribe, anew or again, is served first: it then has, or will never have, what goes out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import trio

from trio_wskit.pubsub._fanout import FanOut
from trio_wskit.pubsub._hub import TopicTurns
from trio_wskit.pubsub._passes import Passes

__all__ = ["Flow"]


@final
class Flow:
    """What goes out just now.

    Args:
        turns: of all topics.
        more: sends what else there is of a topic whose turn ends.

    Attributes:
        nursery: where great fan-outs go on; while there is none, they do not let others run.
    """

    def __init__(self, turns: TopicTurns, more: Callable[[str], object]) -> None:
        self._turns = turns
        self._more = more
        self._passing: dict[str, Passes] = {}
        self._going: set[str] = set()  # topics that a task goes through
        self._acting: str | None = None  # the topic whose turn it is, where somebody acts who has waited for it
        self.nursery: trio.Nursery | None = None

    async def enter(self, topic: str) -> bool:
        """Wait while something of the topic goes out. Cancelled: nothing has begun.

        Returns:
            What `act` takes.
        """
        if topic not in self._turns:
            return False
        await self._turns.wait(topic)
        return True

    def act(self, topic: str, send: Callable[[], FanOut | None], *, has_turn: bool) -> FanOut | None:
        """Send something, in turn, and let the next one in. Never waits."""
        if not has_turn:
            return send()
        self._acting = topic
        try:
            return send()
        finally:
            if topic not in self._passing:
                self._more(topic)
            self._acting = None
            if topic not in self._passing:
                self._turns.end(topic)

    def is_busy(self, topic: str) -> bool:
        """True where something goes out, or somebody else has the turn: `more` is called when that is over."""
        return topic in self._passing or (topic in self._turns and self._acting != topic)

    def goes_out(self, topic: str) -> bool:
        """True where a message is on its way to many."""
        return topic in self._passing

    def begin(self, topic: str, passes: Passes) -> FanOut:
        """Let a fan-out go on that has begun."""
        if passes.is_over:
            return passes.fan
        nursery = self.nursery
        if nursery is None or nursery.cancel_scope.cancel_called:
            passes.go_through()
            return passes.fan
        self._passing[topic] = passes
        if topic not in self._turns:
            self._turns.take(topic)
        if topic not in self._going:
            self._going.add(topic)
            nursery.start_soon(self._go_through, topic)
        return passes.fan

    def serve(self, client_id: str, topic: str) -> None:
        """Give this client now what is on its way to it."""
        passes = self._passing.get(topic)
        if passes is not None:
            passes.serve(client_id)

    async def _go_through(self, topic: str) -> None:
        """A message that was offered to one is offered to all, whoever is cancelled."""
        with trio.CancelScope(shield=True):
            while True:
                passes = self._passing[topic]
                await trio.lowlevel.checkpoint()
                passes.go_on()
                if not passes.is_over:
                    continue
                del self._passing[topic]
                self._acting = topic
                try:
                    self._more(topic)
                finally:
                    self._acting = None
                if topic not in self._passing:
                    break
        self._going.discard(topic)
        self._turns.end(topic)
