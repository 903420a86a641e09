"""Prove a presence store: `await check_presence(factory)` in a test of your own.

Every check is a promise of `trio_wskit.abc.PresenceStore`; its failure says which, what was answered, and what should
have been.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import Final, TypeAlias, final

import trio

from trio_wskit._core.presence import (
    MAX_CHANGES,
    MAX_SWEPT,
    PresenceAnswer,
    PresenceBeat,
    PresenceChange,
    TopicDiff,
)
from trio_wskit.abc import PresenceStore
from trio_wskit.testing._presence_town import check_town

__all__ = ["PresenceStoreFactory", "check_presence"]

PresenceStoreFactory: TypeAlias = Callable[[str], AbstractAsyncContextManager[PresenceStore]]
"""Opens a store, as a process would: those of the same name share what they know, and a new name knows nothing."""

_LONG: Final = 60.0  # a lease that is not over while a check runs
_SHORT: Final = 0.4  # one that is
_PATIENCE: Final = 20.0  # for what must come some time


async def check_presence(
    factory: PresenceStoreFactory, *, disturb: Callable[[], Awaitable[object]] | None = None
) -> None:
    """Check everything that `trio_wskit.abc.PresenceStore` promises, on stores that `factory` opens.

    Run it where the store can work: a store in memory under a clock that jumps (`trio.testing.MockClock`), one on a
    server in real time, where it takes some ten seconds.

    Args:
        factory: called with a name; see `PresenceStoreFactory`.
        disturb: breaks what the stores stand on and mends it, and returns when it works again: kill, pause or restart a
            server. With it, only what holds through all that is checked: in the end everybody knows who is there.

    Raises:
        AssertionError: a promise is broken; the message says which.

    Cancelled: the stores it opened are closed.
    """
    bench = _Bench(factory)
    checks = _CHECKS if disturb is None else ()
    for check in checks:
        try:
            await check(bench)
        except Exception as broken:
            broken.add_note(f"while checking: {check.__name__[1:].replace('_', ' ')}")
            raise
    async with (
        factory(town := bench.name()) as one,
        factory(town) as two,
        factory(town) as three,
    ):
        await check_town((one, two, three), disturb)


@final
class _Bench:
    def __init__(self, factory: PresenceStoreFactory) -> None:
        self.factory = factory
        self._names = count()

    def name(self) -> str:
        return f"check-{next(self._names)}"

    def open(self) -> AbstractAsyncContextManager[PresenceStore]:
        return self.factory(self.name())


@final
class _Node:
    """One process, as the store sees it."""

    def __init__(self, store: PresenceStore, name: str, *, ttl: float = _LONG, max_members: int = 100_000) -> None:
        self.store = store
        self.name = name
        self.ttl = ttl
        self.max_members = max_members
        self.number = 0

    async def beat(
        self, *changes: PresenceChange, doubtful: bool = False, number: int | None = None, answered: int = 0
    ) -> PresenceAnswer:
        self.number += 1
        return await self.store.beat(
            PresenceBeat(
                node=self.name,
                number=self.number if number is None else number,
                answered=answered,
                first=self.number == 1,
                changes=changes,
                doubtful=doubtful,
                ttl=self.ttl,
                max_members=self.max_members,
            )
        )

    async def beat_all(self) -> list[TopicDiff]:
        """Beat until there is no more."""
        diffs: list[TopicDiff] = []
        while True:
            answer = await self.beat()
            diffs += answer.diffs
            if not answer.more:
                return diffs


def _expect(condition: object, promise: str, got: object = None) -> None:
    if not condition:
        raise AssertionError(promise if got is None else f"{promise}; got {got!r}")


async def _members(store: PresenceStore, topic: str, expected: dict[str, bytes], promise: str) -> int:
    snapshot = await store.members(topic)
    _expect(dict(snapshot.members) == expected, f"{promise}: {expected!r}", dict(snapshot.members))
    number = await store.count(topic)
    _expect(number == len(expected), f"{promise}: the count is {len(expected)}", number)
    besides = [*list(expected)[:2], "somebody else"]
    number = await store.count(topic, besides)
    _expect(number == len({*expected, *besides}), f"{promise}: nobody counts twice who is named besides", number)
    return snapshot.version


def _only(diffs: Sequence[TopicDiff], promise: str) -> TopicDiff:
    _expect(len(diffs) == 1, f"{promise}: one diff", diffs)
    return diffs[0]


def _says(diff: TopicDiff, joins: dict[str, bytes], leaves: set[str], promise: str) -> None:
    _expect((dict(diff.joins), set(diff.leaves)) == (joins, leaves), f"{promise}: {joins!r}, {leaves!r}", diff)
    _expect(len(diff.joins) + len(diff.leaves) == len(joins) + len(leaves), f"{promise}: each once", diff)


async def _joins_and_leaves(bench: _Bench) -> None:
    async with bench.open() as store:
        node = _Node(store, "a")
        _expect(await _members(store, "t", {}, "a topic nobody has heard of is empty") == 0, "its version is 0")
        answer = await node.beat(("t", "ann", b"1"), ("t", "bob", b'{"x":[]}'), ("u", "ann", b'"u"'))
        _expect(answer.known and not answer.refused and not answer.more, "a first beat is carried out", answer)
        _expect(answer.held == 3, "a store says how many entries of the node it has", answer.held)
        diffs = {diff.topic: diff for diff in answer.diffs}
        _expect(sorted(diffs) == ["t", "u"], "there is a diff for each topic that changed", answer.diffs)
        _says(diffs["t"], {"ann": b"1", "bob": b'{"x":[]}'}, set(), "those who have come are joins, with their states")
        _expect((diffs["t"].previous, diffs["t"].count) == (0, 2), "nobody was there before, now two", diffs["t"])
        version = await _members(store, "t", {"ann": b"1", "bob": b'{"x":[]}'}, "who has joined is there")
        _expect(version == diffs["t"].version, "a list has the version of the last diff", version)
        answer = await node.beat(("t", "ann", None))
        diff = _only(answer.diffs, "only one topic has changed")
        _says(diff, {}, {"ann"}, "who has gone is a leave")
        _expect(diff.previous == version, "a diff names the version before it", diff)
        _expect(answer.held == 2, "what is gone is not held", answer.held)
        await _members(store, "t", {"bob": b'{"x":[]}'}, "who has left is not there")
        await _members(store, "u", {"ann": b'"u"'}, "topics are apart")
        _expect(not (await node.beat(("t", "ann", None))).diffs, "who was not there cannot leave")


async def _several_nodes(bench: _Bench) -> None:
    async with bench.open() as store:
        one, two = _Node(store, "a"), _Node(store, "b")
        await one.beat(("t", "ann", b"1"))
        _expect(not (await two.beat(("t", "ann", b"1"))).diffs, "who is there already does not join again")
        await _members(store, "t", {"ann": b"1"}, "an identity on two nodes is there once")
        diff = _only((await two.beat(("t", "ann", b"2"))).diffs, "another state is a change")
        _says(diff, {"ann": b"2"}, set(), "another state is a join")
        diff = _only((await one.beat(("t", "ann", b"3"))).diffs, "another state is a change")
        _says(diff, {"ann": b"3"}, set(), "the state is what was told last")
        diff = _only((await one.beat(("t", "ann", None))).diffs, "the state changes back")
        _says(diff, {"ann": b"2"}, set(), "who is on another node too has not left, and has the state from there")
        await _members(store, "t", {"ann": b"2"}, "who is on another node is there")
        diff = _only((await two.beat(("t", "ann", None))).diffs, "the last one leaves")
        _says(diff, {}, {"ann"}, "with its last node an identity leaves")


async def _repeated_and_overtaken_beats(bench: _Bench) -> None:
    async with bench.open() as store:
        node = _Node(store, "a")
        first = await node.beat(("t", "ann", b"1"))
        again = await node.beat(("t", "ann", b"1"))
        _expect(not again.diffs and again.held == 1, "what is so already is no change", again)
        diff = _only((await node.beat(("t", "ann", b"1"), doubtful=True)).diffs, "doubtful changes are reported again")
        _says(diff, {"ann": b"1"}, set(), "a doubtful join is reported again")
        _expect(diff.previous == first.diffs[0].version, "in the chain", diff)
        await node.beat(("t", "ann", None))
        diff = _only((await node.beat(("t", "ann", None), doubtful=True)).diffs, "so are doubtful leaves")
        _says(diff, {}, {"ann"}, "a doubtful leave is reported again")
        for late in (1, node.number):
            answer = await node.beat(("t", "ann", b"1"), number=late)
            _expect(not answer.diffs, "a beat that was overtaken changes nothing", answer)
        await _members(store, "t", {}, "a beat that was overtaken changes nothing")


async def _unknown_nodes(bench: _Bench) -> None:
    async with bench.open() as store:
        node = _Node(store, "a")
        node.number = 5
        answer = await node.beat(("t", "ann", b"1"))
        _expect(not answer.known and not answer.diffs, "a node that the store does not know is told so", answer)
        await _members(store, "t", {}, "and nothing is changed")


async def _stores_that_were_set_back(bench: _Bench) -> None:
    async with bench.open() as store:
        node = _Node(store, "a")
        await node.beat(("t", "ann", b"1"))
        _expect((await node.beat(answered=1)).known, "a store that knows the last answered beat goes on")
        node.number = 7
        answer = await node.beat(("t", "ann", b"2"), answered=7)
        _expect(not answer.known and not answer.diffs, "a store that has not got to the last answer says so", answer)
        await _members(store, "t", {"ann": b"1"}, "and nothing is changed")


async def _leases(bench: _Bench) -> None:
    async with bench.open() as store:
        dead, alive = _Node(store, "a", ttl=_SHORT), _Node(store, "b")
        await alive.beat(("t", "ann", b"2"))
        await dead.beat(("t", "ann", b"1"), ("t", "bob", b"1"), ("u", "cid", b"1"))
        await trio.sleep(1.5 * _SHORT)
        await _members(store, "t", {"ann": b"2"}, "members of a node whose lease is over are not there")
        await _members(store, "u", {}, "members of a node whose lease is over are not there")
        diffs = {diff.topic: diff for diff in await alive.beat_all()}
        _expect(sorted(diffs) == ["t", "u"], "whoever beats next hears that they have left", diffs)
        _says(diffs["t"], {"ann": b"2"}, {"bob"}, "the dead leave, and who is on a living node has its state")
        _says(diffs["u"], {}, {"cid"}, "in every topic")
        _expect(diffs["t"].count == 1, "they do not count", diffs["t"])
        _expect(not await alive.beat_all(), "that is told once")
        late = await dead.beat(("t", "bob", b"9"))
        _expect(not late.known, "a node whose lease was over is told so", late)
        await _members(store, "t", {"ann": b"2"}, "and is not there by a late beat")


async def _renewal(bench: _Bench) -> None:
    ttl = 2 * _SHORT
    async with bench.open() as store:
        node = _Node(store, "a", ttl=ttl)
        await node.beat(("t", "ann", b"1"), ("u", "bob", b"1"))
        for _ in range(8):
            await trio.sleep(ttl / 4)
            answer = await node.beat()
            _expect(answer.known and answer.held == 2 and not answer.diffs, "a beat renews all of a node", answer)
        await _members(store, "t", {"ann": b"1"}, "who is renewed stays")


async def _retirement(bench: _Bench) -> None:
    async with bench.open() as store:
        node, brief, other = _Node(store, "a"), _Node(store, "c", ttl=2 * _SHORT), _Node(store, "b")
        await node.beat(("t", "ann", b"1"))
        await brief.beat(("t", "bob", b"1"))
        await store.retire("a", 2 * _SHORT)
        await store.retire("c", _LONG)
        await store.retire("never heard of", 0)
        await _members(store, "t", {"ann": b"1", "bob": b"1"}, "a retired node has the time that was said")
        await trio.sleep(3 * _SHORT)
        there = (await store.members("t")).members
        _expect("ann" not in there, "a retired node's lease is over when it says", there)
        _expect(not there, "a lease does not get longer by a retirement", there)
        diff = _only(await other.beat_all(), "others hear of it")
        _says(diff, {}, {"ann", "bob"}, "others hear of it")


async def _bounds(bench: _Bench) -> None:
    async with bench.open() as store:
        node, other = _Node(store, "a", max_members=2), _Node(store, "b", max_members=2)
        await node.beat(("t", "ann", b"1"))
        answer = await other.beat(("t", "bob", b"1"), ("t", "cid", b"1"), ("t", "ann", b"2"), ("u", "cid", b"1"))
        _expect(answer.refused == (("t", "cid"),), "one member too many is refused, and no other change", answer)
        _expect(answer.held == 3, "what is refused is not held", answer.held)
        await _members(store, "t", {"ann": b"2", "bob": b"1"}, "one member too many is not there")
        answer = await other.beat(("t", "bob", None), ("t", "cid", b"1"))
        _expect(not answer.refused, "a place that is free can be taken", answer)


async def _names_and_states(bench: _Bench) -> None:
    names = ("t", "t:", "T", "1:t", "тема", "a\nb", "{t}", "*", "a" * 200)
    states = (b"null", b'"\xd0\xba\\n\\""', b"[1.5,-0.0,{}]", b'{"a":"b\\\\"}', b"12345678901234567890", b'"/"')
    async with bench.open() as store:
        node, other = _Node(store, "a", ttl=_SHORT * 3), _Node(store, "b")
        told = {
            topic: {name: states[(row + column) % len(states)] for column, name in enumerate(names)}
            for row, topic in enumerate(names)
        }
        await node.beat(*((topic, name, state) for topic in names for name, state in told[topic].items()))
        for topic in names:
            await _members(store, topic, told[topic], f"every name is a name of its own, in {topic!r} too")
        await trio.sleep(_SHORT * 4)
        left = {(diff.topic, identity) for diff in await other.beat_all() for identity in diff.leaves}
        wrong = left ^ {(topic, name) for topic in names for name in names}
        _expect(not wrong, "they leave as they came", wrong)


async def _versions(bench: _Bench) -> None:
    async with bench.open() as store:
        node = _Node(store, "a")
        many: list[PresenceChange] = [("t", f"i{number}", b"1") for number in range(MAX_CHANGES)]
        last = 0
        for _ in range(3):
            joined = _only((await node.beat(*many)).diffs, "they join together")
            _expect(joined.previous == 0, "where nobody was the chain begins with 0", joined.previous)
            _expect(
                joined.version >= last + MAX_CHANGES, "a version is above all before it, by the diff's entries", joined
            )
            left = _only((await node.beat(*((t, i, None) for t, i, _ in many))).diffs, "they leave together")
            _expect(left.previous == joined.version, "a diff names the version before it", left)
            _expect(left.version >= joined.version + MAX_CHANGES and left.count == 0, "versions only rise", left)
            last = left.version


async def _bounded_sweeps(bench: _Bench) -> None:
    async with bench.open() as store:
        dead, alive = _Node(store, "a", ttl=4 * _SHORT), _Node(store, "b")
        names = {f"i{number}" for number in range(2 * MAX_SWEPT + 500)}
        ordered = sorted(names)
        for start in range(0, len(ordered), MAX_CHANGES):
            await dead.beat(*(("t", name, b"1") for name in ordered[start : start + MAX_CHANGES]))
        await store.retire("a", 0)
        await trio.sleep(0.01)
        left: set[str] = set()
        more = True
        while more:
            answer = await alive.beat()
            swept = {identity for diff in answer.diffs for identity in diff.leaves}
            _expect(len(swept) <= MAX_SWEPT, f"a beat sweeps at most {MAX_SWEPT}", len(swept))
            left |= swept
            more = answer.more
        _expect(left == names, "and says that there is more, until all are gone", len(left))


async def _many_at_once(bench: _Bench) -> None:
    name = bench.name()
    diffs: list[TopicDiff] = []

    async def live(node: _Node, number: int) -> None:
        for step in range(6):
            own, common = f"{node.name}-{step}", f"c{step % 3}"
            answer = await node.beat(("t", own, b"1"), ("t", common, str(number).encode()))
            diffs.extend(answer.diffs)
            answer = await node.beat(("t", common, None), *(() if step % 2 else (("t", own, None),)))
            diffs.extend(answer.diffs)

    async with bench.factory(name) as one, bench.factory(name) as two:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(live, _Node((one, two)[number % 2], f"n{number}"), number)
        view: dict[str, bytes] = {}
        version = 0
        for diff in sorted(diffs, key=lambda diff: diff.version):
            _expect(diff.previous in (0, version), "the diffs of all nodes are one chain", diff)
            if diff.previous == 0:
                view.clear()
            view.update(diff.joins)
            for identity in diff.leaves:
                view.pop(identity, None)
            version = diff.version
            _expect(diff.count == len(view), "each says how many there are after it", diff)
        _expect(await _members(one, "t", view, "all diffs together give the list") == version, "and its version")


async def _cancelled_beats(bench: _Bench) -> None:
    async with bench.open() as store:
        node = _Node(store, "a")
        await node.beat()
        for deadline in (-1.0, 0.0, 0.0005, 0.002):
            with trio.move_on_after(max(deadline, 0)) as scope:
                if deadline < 0:
                    scope.cancel()
                await node.beat(("t", "ann", b"1"))
            with trio.fail_after(_PATIENCE):
                diffs = (await node.beat(("t", "ann", b"1"), doubtful=True)).diffs
            _says(_only(diffs, "a beat can be repeated"), {"ann": b"1"}, set(), "a beat that was cancelled is repeated")
            await node.beat(("t", "ann", None))


_CHECKS: Final = (
    _joins_and_leaves,
    _several_nodes,
    _repeated_and_overtaken_beats,
    _unknown_nodes,
    _stores_that_were_set_back,
    _leases,
    _renewal,
    _retirement,
    _bounds,
    _names_and_states,
    _versions,
    _bounded_sweeps,
    _many_at_once,
    _cancelled_beats,
)
