"""Many towns in virtual time, whose store is down, paused, flaky, emptied, or set back to an old copy."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import MockClock

from trio_wskit import WsKitError
from trio_wskit._core.presence import PresenceTable
from trio_wskit.presence import PresenceAnswer, PresenceBeat, PresenceSnapshot
from trio_wskit.testing._presence_town import check_town

T = TypeVar("T")


class Server:
    """What all stores stand on."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.table = PresenceTable()
        self.mode = ""
        self.late: list[Callable[[], object]] = []

    async def disturb(self) -> None:
        """Some troubles, one after the other; then it works."""
        for _ in range(self.random.randrange(1, 6)):
            await trio.sleep(self.random.random() * 1.5)
            trouble = self.random.choice(["emptied", "set back", "down", "paused", "flaky"])
            if trouble == "emptied":
                self.table = PresenceTable()
            elif trouble == "set back":
                old = copy.deepcopy(self.table)
                await trio.sleep(self.random.random() * 0.6)
                self.table = old
            else:
                self.mode = trouble
                await trio.sleep(self.random.random() * 3)
                self.mode = ""
                self.random.shuffle(self.late)
                while self.late:  # what was sent to it while it was paused is carried out now, in any order
                    self.late.pop()()


class Store:
    """The store of one process."""

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def _now(self) -> int:
        return 10**6 + round(trio.current_time() * 1000)

    async def _call(self, carry_out: Callable[[], T]) -> T:
        server = self._server
        await trio.sleep(server.random.random() * 0.01)
        luck = server.random.random() if server.mode == "flaky" else 1.0
        if server.mode == "paused":
            server.late.append(carry_out)
            await trio.sleep(0.25)
        if server.mode in ("down", "paused") or luck < 0.3:
            raise WsKitError("UNAVAILABLE")
        answer = carry_out()
        if luck < 0.6:
            raise WsKitError("UNAVAILABLE", "its answer is lost")
        return answer

    async def beat(self, beat: PresenceBeat) -> PresenceAnswer:
        def carry_out() -> PresenceAnswer:
            table: Any = self._server.table
            table._version = max(table._version, 10**9 + round(trio.current_time() * 10**6))  # as a server's clock does
            answer: PresenceAnswer = table.beat(beat, self._now)
            return answer

        return await self._call(carry_out)

    async def retire(self, node: str, seconds: float) -> None:
        await self._call(lambda: self._server.table.retire(node, seconds, self._now))

    async def members(self, topic: str) -> PresenceSnapshot:
        return await self._call(lambda: self._server.table.members(topic, self._now))

    async def count(self, topic: str, besides: Sequence[str] = ()) -> int:
        return await self._call(lambda: self._server.table.count(topic, self._now, besides))


@pytest.mark.parametrize("seed", range(20))
async def test_in_the_end_everybody_knows_who_is_there(autojump_clock: MockClock, seed: int) -> None:
    server = Server(seed)
    await check_town([Store(server) for _ in range(3)], server.disturb, seed=seed)
