# pyright: reportPrivateUsage=false
"""One link that listens, with a server that answers as the test says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, final

import pytest
import trio
from coredis.exceptions import MovedError, ResponseError
from trio.testing import MockClock

from trio_wskit.errors import PubSubError
from trio_wskit.pubsub._redis_ear import Ear, Name
from trio_wskit.pubsub._redis_link import Command, Link, Refused


@final
class Server:
    """Stands for a link: refuses some names, and takes its time."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.fences = 0
        self.refuses: set[str] = set()
        self.moved = False
        self.takes = 0.0

    async def fence(self, commands: Sequence[Command], patience: float) -> list[Refused]:
        await trio.sleep(self.takes)
        self.fences += 1
        self.commands += commands
        error = MovedError("1 there:1") if self.moved else ResponseError("no")
        return [Refused(error) for _, names in commands for name in names if name in self.refuses]


@final
class Head:
    def __init__(self) -> None:
        self.wanted: set[Name] = set()
        self.events: list[str] = []

    def is_heard(self, name: Name) -> None:
        self.events.append(f"heard {name.name}")

    def refused(self, name: Name, error: Exception) -> None:
        self.events.append(f"refused {name.name}")

    def take(self, channel: bytes, data: bytes) -> None:
        self.events.append(f"{channel!r} {data!r}")

    def pause(self) -> None:
        self.events.append("pause")


def ear_of(server: Server, head: Head, *, by_slot: bool = False) -> Ear:
    return Ear(cast("Link", server), head, by_slot=by_slot, patience=1.0)


def want(ear: Ear, head: Head, *names: str, kind: Any = "SUBSCRIBE") -> None:
    for name in names:
        head.wanted.add(Name(kind, name))
        ear.touch(Name(kind, name))


async def test_after_each_fence_what_has_come_is_handed_on(autojump_clock: MockClock) -> None:
    # The answer to a fence hides from the reader that nothing more comes.
    server, head = Server(), Head()
    ear = ear_of(server, head)
    want(ear, head, "a")
    await ear.settle()
    assert head.events == ["pause", "heard a"]
    with trio.move_on_after(3.5):
        await ear.tend()
    assert server.fences == 4
    assert head.events == ["pause", "heard a", "pause", "pause", "pause"]


async def test_many_names_are_one_command_and_batches_are_bounded() -> None:
    server, head = Server(), Head()
    ear = ear_of(server, head)
    want(ear, head, *(f"t{number}" for number in range(1200)))
    want(ear, head, "p*", kind="PSUBSCRIBE")
    await ear.settle()
    assert [(command, len(names)) for command, names in server.commands] == [
        (b"SUBSCRIBE", 500),
        (b"SUBSCRIBE", 500),
        (b"SUBSCRIBE", 200),
        (b"PSUBSCRIBE", 1),
    ]
    assert server.fences == 3


async def test_in_a_cluster_a_command_stays_in_a_slot() -> None:
    server, head = Server(), Head()
    ear = ear_of(server, head, by_slot=True)
    want(ear, head, "{a}1", "{a}2", "b", kind="SSUBSCRIBE")
    await ear.settle()
    assert sorted(server.commands) == [(b"SSUBSCRIBE", ("b",)), (b"SSUBSCRIBE", ("{a}1", "{a}2"))]


async def test_what_is_refused_is_found_and_the_rest_is_heard() -> None:
    server, head = Server(), Head()
    server.refuses = {"b"}
    ear = ear_of(server, head)
    want(ear, head, "a", "b", "c")
    await ear.settle()
    assert [event for event in head.events if event != "pause"] == ["heard a", "refused b", "heard c"]
    assert {name.name for name in ear.heard} == {"a", "c"}


async def test_a_name_that_another_node_has_ends_it() -> None:
    server, head = Server(), Head()
    server.moved = True
    server.refuses = {"a"}
    ear = ear_of(server, head, by_slot=True)
    want(ear, head, "a", kind="SSUBSCRIBE")
    with pytest.raises(PubSubError, match="has moved"):
        await ear.settle()


async def test_what_changed_back_while_nobody_looked_costs_nothing() -> None:
    server, head = Server(), Head()
    ear = ear_of(server, head)
    want(ear, head, "a")
    head.wanted.clear()
    await ear.settle()
    assert server.commands == []


async def test_what_is_left_while_it_is_asked_for_is_taken_back(autojump_clock: MockClock) -> None:
    server, head = Server(), Head()
    server.takes = 1
    ear = ear_of(server, head)
    want(ear, head, "a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ear.settle)
        await trio.sleep(0.5)
        assert ear.silent_since == trio.current_time() - 0.5
        head.wanted.clear()
        ear.touch(Name("SUBSCRIBE", "a"))
    assert server.commands == [(b"SUBSCRIBE", ("a",)), (b"UNSUBSCRIBE", ("a",))]
    assert ear.heard == set()


async def test_a_shards_channel_that_nobody_gave_up_has_moved() -> None:
    server, head = Server(), Head()
    ear = ear_of(server, head)
    want(ear, head, "a", "b", kind="SSUBSCRIBE")
    await ear.settle()
    head.wanted.discard(Name("SSUBSCRIBE", "a"))
    ear.touch(Name("SSUBSCRIBE", "a"))
    await ear.settle()
    ear._take([b"ssubscribe", b"a", 1])
    ear._take([b"smessage", b"b", b"x"])
    ear._take([b"sunsubscribe", b"a", 1])  # as we have asked
    with pytest.raises(PubSubError, match="has moved"):
        ear._take([b"sunsubscribe", b"b", 0])
    assert head.events[-1] == "b'b' b'x'"


async def test_a_channel_given_up_twice_is_confirmed_twice() -> None:
    server, head = Server(), Head()
    ear = ear_of(server, head)
    name = Name("SSUBSCRIBE", "a")
    for _ in range(2):
        want(ear, head, "a", kind="SSUBSCRIBE")
        await ear.settle()
        head.wanted.clear()
        ear.touch(name)
        await ear.settle()
    ear._take([b"sunsubscribe", b"a", 0])
    ear._take([b"sunsubscribe", b"a", 0])
    with pytest.raises(PubSubError, match="has moved"):
        ear._take([b"sunsubscribe", b"a", 0])
