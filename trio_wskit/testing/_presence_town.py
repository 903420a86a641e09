"""People who come and go in several processes, of which one dies: in the end everybody knows who is there."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, final

import trio

from trio_wskit._core.presence import PresenceAnswer, PresenceBeat, PresenceSnapshot
from trio_wskit._core.publishing import PublishResult
from trio_wskit.abc import PresenceStore
from trio_wskit.errors import WsKitError
from trio_wskit.presence import Presence, PresenceDiff, PresenceList, PresenceView

__all__ = ["check_town"]

_TTL: Final = 2.0
_STEPS: Final = 60
_PAUSE: Final = 0.02  # seconds between two steps
_PATIENCE: Final = 30.0  # for all to agree in the end
_TOPICS: Final = ("square", "park")


@final
class _Mortal:
    """A store whose process may die: from then on nothing reaches it."""

    def __init__(self, real: PresenceStore) -> None:
        self._real = real
        self.dead = False

    async def _call(self, answer: Callable[[], Awaitable[Any]]) -> Any:
        if self.dead:
            await trio.lowlevel.checkpoint()
            raise OSError("this process is dead")
        return await answer()

    async def beat(self, beat: PresenceBeat) -> PresenceAnswer:
        answer: PresenceAnswer = await self._call(lambda: self._real.beat(beat))
        return answer

    async def retire(self, node: str, seconds: float) -> None:
        await self._call(lambda: self._real.retire(node, seconds))

    async def members(self, topic: str) -> PresenceSnapshot:
        answer: PresenceSnapshot = await self._call(lambda: self._real.members(topic))
        return answer

    async def count(self, topic: str, besides: Sequence[str] = ()) -> int:
        answer: int = await self._call(lambda: self._real.count(topic, besides))
        return answer


@final
class _Process:
    """One app, without its links."""

    def __init__(self, town: _Town, store: PresenceStore) -> None:
        self.store = _Mortal(store)
        self.presence = Presence(self.store, debounce=0.05, linger=0.1, ttl=_TTL)
        self.scope = trio.CancelScope()
        self.here: dict[tuple[str, str], tuple[str, int]] = {}  # client and topic -> identity and state
        self._town = town

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            await self.presence.run(self, self._town.publish, self._refuse, task_status=task_status)

    def _refuse(self, client: str, error: WsKitError) -> None:
        raise AssertionError(f"nobody is refused where there is room: {error}")

    def normalise(self, topic: str) -> str:
        return topic

    def check(self, topic: str) -> None:
        pass

    def enter(self, client: str, identity: str, topic: str, state: int) -> None:
        self.here[client, topic] = (identity, state)
        self.presence.enter(client, identity, topic, state)

    def die(self) -> None:
        self.store.dead = True
        self.scope.cancel()


@final
class _Watcher:
    """Keeps a list with diffs, and asks for a new one where one is missing."""

    def __init__(self, topic: str) -> None:
        self.view = PresenceView(PresenceList(topic, 0, []))
        self.stale = False

    def hear(self, diff: PresenceDiff) -> None:
        if not self.view.apply(diff):
            self.stale = True


@final
class _Town:
    def __init__(self, stores: Sequence[PresenceStore], seed: int) -> None:
        self.processes = [_Process(self, store) for store in stores]
        self.watchers = {topic: _Watcher(topic) for topic in _TOPICS}
        self.random = random.Random(seed)

    async def publish(self, topic: str, diff: PresenceDiff) -> PublishResult:
        await trio.lowlevel.checkpoint()
        self.watchers[topic.removeprefix("presence:")].hear(diff)
        return PublishResult(ok=True)

    def step(self) -> None:
        """Somebody comes, goes, or says something else."""
        process = self.random.choice(self.processes)
        client, topic = f"c{self.random.randrange(6)}", self.random.choice(_TOPICS)
        if self.random.random() < 0.4:
            process.here.pop((client, topic), None)
            process.presence.exit(client, topic)
        elif self.random.random() < 0.15:
            for other in _TOPICS:
                process.here.pop((client, other), None)
            process.presence.gone(client)
        else:
            identity, state = f"user-{self.random.randrange(5)}", self.random.randrange(3)
            process.enter(client, identity, topic, state)

    def truth(self, topic: str) -> dict[str, set[int]]:
        """The identities, each with the states that it may have."""
        people: dict[str, set[int]] = {}
        for process in self.processes:
            for (_, where), (identity, state) in process.here.items():
                if where == topic:
                    people.setdefault(identity, set()).add(state)
        return people

    async def refresh(self) -> None:
        """Watchers who have missed something ask for the list."""
        for topic, watcher in self.watchers.items():
            if watcher.stale:
                try:
                    view = PresenceView(await self.processes[0].presence.snapshot(topic))
                except WsKitError:
                    return
                watcher.stale = False
                watcher.view = view

    async def disagreement(self) -> str | None:
        """What is not yet as it is; None where everybody knows everything."""
        for topic in _TOPICS:
            truth = self.truth(topic)
            for number, process in enumerate(self.processes):
                try:
                    members = {one.id: one.state for one in await process.presence.list(topic)}
                    count = await process.presence.count(topic)
                except WsKitError as error:
                    return f"process {number} does not get an answer: {error}"
                if members.keys() != truth.keys() or any(members[one] not in states for one, states in truth.items()):
                    return f"process {number} thinks that {members} are in {topic!r}, and it is {truth}"
                if count != len(truth):
                    return f"process {number} counts {count} in {topic!r}, and it is {len(truth)}"
                seen = self.watchers[topic].view.members
                if seen != members:
                    return f"whoever watches {topic!r} sees {seen}, and it is {members}"
        return None


async def check_town(
    stores: Sequence[PresenceStore], disturb: Callable[[], Awaitable[object]] | None, *, seed: int = 7
) -> None:
    """See the module.

    Args:
        stores: of the processes, which share what they know; the last process dies.
        disturb: breaks and mends what they stand on, while people come and go.
        seed: of what people do.

    Raises:
        AssertionError: somebody does not know who is there.
    """
    town = _Town(stores, seed)
    undisturbed = trio.Event()

    async def disturb_all() -> None:
        if disturb is not None:
            await disturb()
        undisturbed.set()

    failure: AssertionError | None = None
    async with trio.open_nursery() as nursery:
        for number, process in enumerate(town.processes):
            await nursery.start(process.run)
            process.enter("stays", f"stays-{number}", "square", 0)  # nothing new is ever told of these
        nursery.start_soon(disturb_all)
        number = 0
        while number < _STEPS or not undisturbed.is_set():
            town.step()
            await town.refresh()
            await trio.sleep(_PAUSE)
            number += 1
            if number == _STEPS // 2:
                town.processes.pop().die()
        for topic in _TOPICS:  # a topic in which nobody is at all tells nobody that it was forgotten
            town.processes[0].enter("last", "last", topic, 0)
        deadline = trio.current_time() + _PATIENCE
        while (wrong := await town.disagreement()) is not None:
            if trio.current_time() > deadline:
                failure = AssertionError(f"in the end everybody knows who is there, but {wrong}")
                break
            await trio.sleep(0.1)
            await town.refresh()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
