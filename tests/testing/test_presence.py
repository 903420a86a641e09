"""A proof that cannot fail proves nothing: every promise of the contract is broken here once, and must be missed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from trio_wskit._core.presence import PresenceTable
from trio_wskit.abc import PresenceStore
from trio_wskit.presence import MemoryPresence, PresenceAnswer, PresenceBeat, PresenceSnapshot
from trio_wskit.testing import check_presence


class Sound:
    """Does everything as it should be done, by asking somebody who knows."""

    def __init__(self) -> None:
        self.table = PresenceTable()

    @property
    def inside(self) -> Any:
        """The table, with all that is hidden in it."""
        return self.table

    @property
    def now(self) -> int:
        return round(trio.current_time() * 1000)

    async def beat(self, beat: PresenceBeat) -> PresenceAnswer:
        await trio.lowlevel.checkpoint()
        return self.answer(self.table.beat(self.heard(beat), self.now))

    def heard(self, beat: PresenceBeat) -> PresenceBeat:
        return beat

    def answer(self, answer: PresenceAnswer) -> PresenceAnswer:
        return answer

    async def retire(self, node: str, seconds: float) -> None:
        await trio.lowlevel.checkpoint()
        self.table.retire(node, seconds, self.now)

    async def members(self, topic: str) -> PresenceSnapshot:
        await trio.lowlevel.checkpoint()
        return self.table.members(topic, self.now)

    async def count(self, topic: str, besides: Sequence[str] = ()) -> int:
        await trio.lowlevel.checkpoint()
        return self.table.count(topic, self.now, besides)


class OneNodeForAll(Sound):
    def heard(self, beat: PresenceBeat) -> PresenceBeat:
        self.numbers = getattr(self, "numbers", 0) + 1
        return attrs.evolve(beat, node="all", number=self.numbers, first=self.numbers == 1)


class LivesForEver(Sound):
    def heard(self, beat: PresenceBeat) -> PresenceBeat:
        return attrs.evolve(beat, ttl=beat.ttl * 1000)


class DiesTooSoon(Sound):
    def heard(self, beat: PresenceBeat) -> PresenceBeat:
        return attrs.evolve(beat, ttl=beat.ttl / 5)


class IsNeverRenewed(Sound):
    async def beat(self, beat: PresenceBeat) -> PresenceAnswer:
        nodes = self.inside._nodes
        lease = nodes[beat.node].expires if beat.node in nodes else None
        answer = await super().beat(beat)
        if lease is not None and beat.node in nodes:
            nodes[beat.node].expires = lease
        return answer


class ListsTheDead(Sound):
    async def members(self, topic: str) -> PresenceSnapshot:
        await trio.lowlevel.checkpoint()
        return self.table.members(topic, 0)


class CountsTheDead(Sound):
    async def count(self, topic: str, besides: Sequence[str] = ()) -> int:
        await trio.lowlevel.checkpoint()
        return self.table.count(topic, 0, besides)


class CountsTwice(Sound):
    async def count(self, topic: str, besides: Sequence[str] = ()) -> int:
        return await super().count(topic) + len(besides)


class SweepsInSilence(Sound):
    async def beat(self, beat: PresenceBeat) -> PresenceAnswer:
        empty = attrs.evolve(beat, node="nobody", first=False, changes=())
        while self.table.beat(empty, self.now).more:
            pass
        return await super().beat(beat)


class TellsOnlyOfOneTopic(Sound):
    def answer(self, answer: PresenceAnswer) -> PresenceAnswer:
        return attrs.evolve(answer, diffs=answer.diffs[:1])


class TakesWhatIsLate(Sound):
    def heard(self, beat: PresenceBeat) -> PresenceBeat:
        node = self.inside._nodes.get(beat.node)
        return beat if node is None else attrs.evolve(beat, number=max(beat.number, node.number + 1))


class NeverDoubts(Sound):
    def heard(self, beat: PresenceBeat) -> PresenceBeat:
        return attrs.evolve(beat, doubtful=False)


class RepeatsEverything(Sound):
    def heard(self, beat: PresenceBeat) -> PresenceBeat:
        return attrs.evolve(beat, doubtful=True)


class KnowsEverybody(Sound):
    def heard(self, beat: PresenceBeat) -> PresenceBeat:
        return attrs.evolve(beat, first=True)


class NeverLooksBack(Sound):
    def heard(self, beat: PresenceBeat) -> PresenceBeat:
        return attrs.evolve(beat, answered=0)


class HasNoBound(Sound):
    def heard(self, beat: PresenceBeat) -> PresenceBeat:
        return attrs.evolve(beat, max_members=1_000_000)


class RefusesInSilence(Sound):
    def answer(self, answer: PresenceAnswer) -> PresenceAnswer:
        return attrs.evolve(answer, refused=())


class MiscountsItsEntries(Sound):
    def answer(self, answer: PresenceAnswer) -> PresenceAnswer:
        return attrs.evolve(answer, held=0)


class NeverRetires(Sound):
    async def retire(self, node: str, seconds: float) -> None:
        await trio.lowlevel.checkpoint()


class RetiresLater(Sound):
    async def retire(self, node: str, seconds: float) -> None:
        await trio.lowlevel.checkpoint()
        if node in self.inside._nodes:
            self.inside._nodes[node].expires = self.now + round(seconds * 1000)


class BreaksTheChain(Sound):
    def answer(self, answer: PresenceAnswer) -> PresenceAnswer:
        return attrs.evolve(answer, diffs=tuple(attrs.evolve(diff, previous=0) for diff in answer.diffs))


class BeginsAnew(Sound):
    async def beat(self, beat: PresenceBeat) -> PresenceAnswer:
        answer = await super().beat(beat)
        if not self.inside._topics:
            self.inside._version = 0
        return answer


class NamesWithoutCase(Sound):
    def heard(self, beat: PresenceBeat) -> PresenceBeat:
        changes = {(topic.lower(), identity): state for topic, identity, state in beat.changes}
        return attrs.evolve(beat, changes=[(*place, state) for place, state in changes.items()])

    async def members(self, topic: str) -> PresenceSnapshot:
        return await super().members(topic.lower())

    async def count(self, topic: str, besides: Sequence[str] = ()) -> int:
        return await super().count(topic.lower(), besides)


class ReadsStates(Sound):
    def heard(self, beat: PresenceBeat) -> PresenceBeat:
        return attrs.evolve(
            beat, changes=[(t, i, None if state is None else state.replace(b"\\", b"")) for t, i, state in beat.changes]
        )


class SaysThereIsNoMore(Sound):
    def answer(self, answer: PresenceAnswer) -> PresenceAnswer:
        return attrs.evolve(answer, more=False)


class WaitsInTheMiddle(Sound):
    async def beat(self, beat: PresenceBeat) -> PresenceAnswer:
        diffs = (await super().beat(attrs.evolve(beat, changes=beat.changes[:1]))).diffs
        await trio.lowlevel.checkpoint()
        self.inside._nodes[beat.node].number = 0
        answer = await super().beat(attrs.evolve(beat, changes=beat.changes[1:]))
        return attrs.evolve(answer, diffs=(*diffs, *answer.diffs))


BROKEN = [
    (OneNodeForAll, "who is on another node too has not left"),
    (LivesForEver, "members of a node whose lease is over are not there"),
    (DiesTooSoon, "a beat renews all of a node"),
    (IsNeverRenewed, "a beat renews all of a node"),
    (ListsTheDead, "members of a node whose lease is over are not there"),
    (CountsTheDead, "members of a node whose lease is over are not there: the count is 1"),
    (CountsTwice, "nobody counts twice who is named besides"),
    (SweepsInSilence, "whoever beats next hears that they have left"),
    (TellsOnlyOfOneTopic, "there is a diff for each topic that changed"),
    (TakesWhatIsLate, "a beat that was overtaken changes nothing"),
    (NeverDoubts, "doubtful changes are reported again"),
    (RepeatsEverything, "who was not there cannot leave"),
    (KnowsEverybody, "a node that the store does not know is told so"),
    (NeverLooksBack, "a store that has not got to the last answer says so"),
    (HasNoBound, "one member too many is refused"),
    (RefusesInSilence, "one member too many is refused"),
    (MiscountsItsEntries, "a store says how many entries of the node it has"),
    (NeverRetires, "a retired node's lease is over when it says"),
    (RetiresLater, "a lease does not get longer by a retirement"),
    (BreaksTheChain, "a diff names the version before it"),
    (BeginsAnew, "a version is above all before it"),
    (NamesWithoutCase, "every name is a name of its own"),
    (ReadsStates, "every name is a name of its own"),
    (SaysThereIsNoMore, "and says that there is more, until all are gone"),
    (WaitsInTheMiddle, "those who have come are joins, with their states"),
]


def opening(kind: Callable[[], PresenceStore]) -> Callable[[str], AbstractAsyncContextManager[PresenceStore]]:
    stores: dict[str, PresenceStore] = {}

    @asynccontextmanager
    async def open_store(name: str) -> AsyncGenerator[PresenceStore]:
        yield stores.setdefault(name, kind())

    return open_store


@pytest.mark.parametrize("kind", [Sound, MemoryPresence])
async def test_a_sound_store_passes(autojump_clock: MockClock, kind: Callable[[], PresenceStore]) -> None:
    await check_presence(opening(kind))


@pytest.mark.parametrize(("kind", "promise"), BROKEN, ids=[kind.__name__ for kind, _ in BROKEN])
async def test_a_broken_promise_is_missed(autojump_clock: MockClock, kind: type[Sound], promise: str) -> None:
    with pytest.raises(AssertionError, match=promise) as caught:
        await check_presence(opening(kind))
    assert "while checking" in "".join(getattr(caught.value, "__notes__", []))


class Forgetful(Sound):
    """Loses everything, and does not know it."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, set[tuple[str, str]]] = {}

    async def beat(self, beat: PresenceBeat) -> PresenceAnswer:
        told = self.told.setdefault(beat.node, set())
        told |= {(topic, identity) for topic, identity, state in beat.changes if state is not None}
        told -= {(topic, identity) for topic, identity, state in beat.changes if state is None}
        answer = await super().beat(attrs.evolve(beat, first=True))
        return attrs.evolve(answer, known=True, held=len(told))


@pytest.mark.parametrize("kind", [Sound, Forgetful])
async def test_disturbances_show_who_does_not_come_right(autojump_clock: MockClock, kind: type[Sound]) -> None:
    stores: list[Sound] = []

    def make() -> Sound:
        stores.append(kind())
        return stores[-1]

    async def disturb() -> None:
        for _ in range(3):
            await trio.sleep(0.3)
            for store in stores:
                store.table = PresenceTable()

    check = check_presence(opening(make), disturb=disturb)
    if kind is Sound:
        await check
    else:
        with pytest.raises(AssertionError, match="in the end everybody knows who is there, but"):
            await check
