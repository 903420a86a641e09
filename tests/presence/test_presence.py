"""Presence in an app, in virtual time: who is there, who hears of it, and how few messages that takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Client, House, open_house, settle
from trio_wskit import (
    App,
    ConfigError,
    Context,
    PublishResult,
    PubSubError,
    PubSubPolicy,
    Request,
    Router,
    Session,
    TopicPattern,
    WsKitError,
    concurrent,
    message,
)
from trio_wskit._core.presence import PresenceAnswer, PresenceBeat, PresenceSnapshot
from trio_wskit.presence import MemoryPresence, Presence, PresenceDiff, PresenceList, PresenceView


@message("ENTER")
class Enter:
    topic: str
    state: Any = None


@message("WATCH")
class Watch:
    topic: str


@message("LEAVE")
class Leave:
    topic: str


@message("STAY")
class Stay:
    topic: str
    seconds: float


def router() -> Router:
    made = Router()

    @made.on(Enter)
    def enter(ctx: Context[Enter]) -> None:
        ctx.presence.join(ctx.payload.topic, ctx.payload.state)

    @made.on(Leave)
    def leave(ctx: Context[Leave]) -> None:
        ctx.presence.leave(ctx.payload.topic)

    @made.on(Watch)
    async def watch(ctx: Context[Watch]) -> None:
        await ctx.send(await ctx.presence.watch(ctx.payload.topic))

    @made.on(Stay, lane=concurrent(4))
    async def stay(ctx: Context[Stay]) -> None:
        with ctx.presence.here(ctx.payload.topic):
            await trio.sleep(ctx.payload.seconds)

    return made


def named(who: Any) -> str:
    name: str = who.request.query["name"]
    return name


async def connect(house: House, name: str) -> Client:
    return await house.connect(Request(target=f"/?name={name}"))


def options(presence: Presence, **more: Any) -> dict[str, Any]:
    return {"router": router(), "presence": presence, "identity": named, **more}


async def ids(house: House, topic: str = "room") -> list[str]:
    return sorted(member.id for member in await house.app.presence.list(topic))


def diffs(heard: list[dict[str, Any]]) -> list[tuple[list[str], list[str]]]:
    """The ids in the joins and leaves of each message."""
    assert {one["type"] for one in heard} <= {"PRESENCE"}, heard
    return [([member["id"] for member in one["payload"]["joins"]], one["payload"]["leaves"]) for one in heard]


async def test_who_joins_is_there_at_once_and_others_hear_of_it_after_the_debounce(autojump_clock: MockClock) -> None:
    async with open_house(**options(Presence(debounce=0.5))) as house:
        ann, bob = await connect(house, "ann"), await connect(house, "bob")
        bob.send("WATCH", {"topic": "room"})
        (roster,) = await bob.heard()
        assert roster["payload"] == {"topic": "room", "version": 0, "members": []}
        await trio.sleep(10)
        ann.send("ENTER", {"topic": "room", "state": {"mood": "good"}})
        assert await bob.heard() == []
        assert [(one.id, one.state) for one in await house.app.presence.list("room")] == [("ann", {"mood": "good"})]
        assert await house.app.presence.count("room") == 1
        start = trio.current_time()
        told = await bob.receive()
        assert trio.current_time() == start + 0.5
        payload = told["payload"]
        assert payload.pop("version") > 0
        assert payload == {
            "topic": "room",
            "previous": 0,
            "count": 1,
            "joins": [{"id": "ann", "state": {"mood": "good"}}],
            "leaves": [],
        }
        assert await house.app.presence.count("room") == 1
        assert await ann.heard() == []  # it does not watch


async def test_a_disconnect_leaves_by_itself_after_lingering(autojump_clock: MockClock) -> None:
    async with open_house(**options(Presence(debounce=0.5, linger=3))) as house:
        ann, bob = await connect(house, "ann"), await connect(house, "bob")
        ann.send("ENTER", {"topic": "room"})
        await trio.sleep(1)
        bob.send("WATCH", {"topic": "room"})
        await bob.heard()
        await ann.leave()
        start = trio.current_time()
        assert await ids(house) == ["ann"]
        told = await bob.receive()
        assert trio.current_time() == start + 3.5
        assert diffs([told]) == [([], ["ann"])]
        assert await ids(house) == []


async def test_who_is_back_while_lingering_has_never_left(autojump_clock: MockClock) -> None:
    async with open_house(**options(Presence(debounce=0.5, linger=3))) as house:
        ann, bob = await connect(house, "ann"), await connect(house, "bob")
        ann.send("ENTER", {"topic": "room", "state": 1})
        await trio.sleep(1)
        bob.send("WATCH", {"topic": "room"})
        await bob.heard()
        for _ in range(5):
            await ann.leave()
            await trio.sleep(2.9)
            ann = await connect(house, "ann")
            ann.send("ENTER", {"topic": "room", "state": 1})
            await trio.sleep(0.1)  # what is not yet served when a client leaves never is
        await trio.sleep(10)
        assert await bob.heard() == []
        assert await ids(house) == ["ann"]


async def test_a_member_leaves_with_its_last_device(autojump_clock: MockClock) -> None:
    async with open_house(**options(Presence(debounce=0.1, linger=0))) as house:
        phone, laptop, bob = [await connect(house, name) for name in ("ann", "ann", "bob")]
        bob.send("WATCH", {"topic": "room"})
        await bob.heard()
        phone.send("ENTER", {"topic": "room", "state": "phone"})
        await trio.sleep(1)
        laptop.send("ENTER", {"topic": "room", "state": "laptop"})
        await trio.sleep(1)
        heard = await bob.heard()
        assert [one["payload"]["joins"] for one in heard] == [
            [{"id": "ann", "state": "phone"}],
            [{"id": "ann", "state": "laptop"}],
        ]
        assert await house.app.presence.count("room") == 1
        await laptop.leave()
        await trio.sleep(1)
        (back,) = await bob.heard()
        assert back["payload"]["joins"] == [{"id": "ann", "state": "phone"}]  # what the other said counts again
        await phone.leave()
        await trio.sleep(1)
        assert diffs(await bob.heard()) == [([], ["ann"])]


async def test_joined_and_left_within_a_debounce_is_nothing(autojump_clock: MockClock) -> None:
    async with open_house(**options(Presence(debounce=0.5, linger=0))) as house:
        ann, bob = await connect(house, "ann"), await connect(house, "bob")
        bob.send("WATCH", {"topic": "room"})
        await bob.heard()
        ann.send("ENTER", {"topic": "room"})
        ann.send("LEAVE", {"topic": "room"})
        await trio.sleep(5)
        assert await bob.heard() == []
        assert house.app.presence.statistics().diffs == 0


async def test_a_block_is_a_device_of_its_own(autojump_clock: MockClock) -> None:
    async with open_house(**options(Presence(debounce=0.1, linger=0))) as house:
        ann = await connect(house, "ann")
        ann.send("STAY", {"topic": "room", "seconds": 5})
        ann.send("STAY", {"topic": "room", "seconds": 9})
        await trio.sleep(6)
        ann.send("LEAVE", {"topic": "room"})  # which it did not join
        await trio.sleep(1)
        assert await ids(house) == ["ann"]
        await trio.sleep(3)
        assert await ids(house) == []


async def test_an_end_of_the_subscription_is_an_end_of_the_presence(autojump_clock: MockClock) -> None:
    def state(client: Session, topic: str) -> object:
        return {"agent": client.client_id[:1]} if topic.startswith("room") else None

    async with open_house(**options(Presence(debounce=0.1, linger=0, subscribers=state))) as house:
        ann = await connect(house, "ann")
        await ann.session.topics.subscribe_many(["room", "other"])
        await trio.sleep(1)
        assert (await ids(house), await ids(house, "other")) == (["ann"], [])
        await ann.session.topics.unsubscribe("room")
        await trio.sleep(1)
        assert await ids(house) == []
        ann.session.presence.join("other")
        await ann.session.topics.clear()
        await trio.sleep(1)
        assert await ids(house, "other") == []


async def test_a_subscriber_for_whom_there_is_no_room_is_told(autojump_clock: MockClock) -> None:
    presence = Presence(max_members=1, subscribers=lambda client, topic: {})
    async with open_house(**options(presence)) as house:
        ann, bob = await connect(house, "ann"), await connect(house, "bob")
        await ann.session.topics.subscribe("room")
        await bob.session.topics.subscribe("room")
        (error,) = await bob.heard()
        assert (error["type"], error["payload"]["code"]) == ("ERROR", "RESOURCE_EXHAUSTED")
        assert "room" in bob.session.topics


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"state": "x" * 99}, "RESOURCE_EXHAUSTED", "the state of a member has at most 100 bytes, not 101"),
    ({"state": math.nan}, "INVALID_ARGUMENT", "is JSON"),
    ({"state": {1: 2}}, "INVALID_ARGUMENT", "is JSON"),
    ({"topic": "a b"}, "INVALID_ARGUMENT", "a topic matches"),
    ({"topic": "room:*"}, "INVALID_ARGUMENT", "'room:\\*' does not"),
    ({"topic": "x" * 125}, "INVALID_ARGUMENT", "at most 128 characters"),
]


@pytest.mark.parametrize(("what", "code", "why"), BAD, ids=[why for _, _, why in BAD])
async def test_bad_input_is_refused(autojump_clock: MockClock, what: dict[str, Any], code: str, why: str) -> None:
    async with open_house(**options(Presence(max_state_bytes=100))) as house:
        ann = await connect(house, "ann")
        with pytest.raises(WsKitError, match=why) as refused:
            ann.session.presence.join(**{"topic": "room", **what})
        assert refused.value.code == code
        assert not refused.value.retryable
        assert await ids(house) == []


async def test_each_bound_is_kept(autojump_clock: MockClock) -> None:
    async with open_house(**options(Presence(max_members=2, max_places=2))) as house:
        ann, bob, cid = [await connect(house, name) for name in ("ann", "bob", "cid")]
        for client in (ann, bob):
            client.session.presence.join("room")
        with pytest.raises(WsKitError, match="'room' has at most 2 members, not 3"):
            cid.session.presence.join("room")
        ann.session.presence.join("room", "another state is no other member")
        ann.session.presence.join("two")
        with pytest.raises(WsKitError, match="at most 2 places"):
            ann.session.presence.join("three")
        ann.session.identity = "x" * 257
        with pytest.raises(WsKitError, match="1 to 256 characters"):
            ann.session.presence.join("two")


async def test_who_has_left_cannot_join(autojump_clock: MockClock) -> None:
    async with open_house(**options(Presence())) as house:
        ann = await connect(house, "ann")
        await ann.leave()
        with pytest.raises(PubSubError, match="has left"):
            ann.session.presence.join("room")


@pytest.mark.parametrize(
    "wrong",
    [
        {"debounce": -1},
        {"linger": math.inf},
        {"ttl": 0},
        {"ttl": 3, "linger": 3},
        {"max_members": 0},
        {"max_state_bytes": True},
        {"max_places": 0},
        {"prefix": ""},
        {"prefix": "a*"},
    ],
    ids=str,
)
def test_bad_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"Presence\({next(iter(wrong))}="):
        Presence(**wrong)


async def test_an_app_without_presence_says_so(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        client = await house.connect()
        with pytest.raises(RuntimeError, match="presence=Presence"):
            _ = house.app.presence
        with pytest.raises(RuntimeError, match="presence=Presence"):
            _ = client.session.presence
    with pytest.raises(RuntimeError, match="while its app is open"):
        await Presence().list("room")


async def test_a_presence_has_one_open_app(autojump_clock: MockClock) -> None:
    presence = Presence()
    async with open_house(**options(presence)):
        with pytest.raises(RuntimeError, match="belongs to an app that is open"):
            async with open_house(**options(presence)):
                pass
    async with open_house(**options(presence)) as house:
        assert await ids(house) == []


async def test_the_right_to_a_topic_is_the_right_to_watch_it(autojump_clock: MockClock) -> None:
    asked: list[str] = []

    async def may(client: Session, topic: str) -> bool:
        asked.append(topic)
        return topic == "open"

    policy = PubSubPolicy(authorise_subscribe=may)
    async with open_house(**options(Presence(), policy=policy)) as house:
        ann = await connect(house, "ann")
        ann.send("WATCH", {"topic": "secret"})
        ann.send("WATCH", {"topic": "open"})
        refused, roster = await ann.heard()
        assert (refused["payload"]["code"], roster["type"]) == ("PERMISSION_DENIED", "PRESENCE_LIST")
        assert asked == ["secret", "open"]
        forged = PresenceDiff("open", 0, 1, 1, [], [])
        result = await ann.session.publish("presence:open", forged)
        assert result.error == "ACL_PUBLISH"
        assert (await house.app.publish("room", forged)).ok
        await ann.session.presence.unwatch("open")
        assert list(ann.session.topics) == []


async def test_names_are_normalised_once_for_all(autojump_clock: MockClock) -> None:
    async with open_house(**options(Presence(), policy=PubSubPolicy(normalise=str.lower))) as house:
        ann, bob = await connect(house, "ann"), await connect(house, "bob")
        bob.send("WATCH", {"topic": "ROOM"})
        await bob.heard()
        ann.send("ENTER", {"topic": "Room"})
        assert diffs([await bob.receive()]) == [(["ann"], [])]
        ann.send("LEAVE", {"topic": "rOOm"})
        assert diffs([await bob.receive()]) == [([], ["ann"])]


class Counting:
    """The members of a crowd, without links."""

    def __init__(self) -> None:
        self.messages: list[PresenceDiff] = []
        self.refused: list[str] = []
        self.asked = 0  # how often a view had to ask for the list

    def normalise(self, topic: str) -> str:
        return topic

    def check(self, topic: str) -> None:
        pass

    async def publish(self, topic: str, diff: PresenceDiff) -> Any:
        await trio.lowlevel.checkpoint()
        assert topic == f"presence:{diff.topic}"
        self.messages.append(diff)
        return PublishResult(ok=True)

    def refuse(self, client: str, error: WsKitError) -> None:
        self.refused.append(client)

    async def start(self, nursery: trio.Nursery, presence: Presence) -> trio.CancelScope:
        """Run it as a process would, until the scope is cancelled."""
        scope = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await presence.run(self, self.publish, self.refuse, task_status=task_status)

        await nursery.start(run)
        return scope

    async def view(self, presence: Presence, topic: str) -> dict[str, Any]:
        """What somebody knows who has watched from the beginning."""
        view = PresenceView(PresenceList(topic, 0, []))
        self.asked = 0
        for diff in self.messages:
            if not view.apply(diff):
                view = PresenceView(await presence.snapshot(topic))
                self.asked += 1
        return view.members


async def test_ten_thousand_join_and_leave_in_a_few_messages(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    presence, crowd = Presence(debounce=0.5, linger=3), Counting()
    await crowd.start(nursery, presence)
    for number in range(10_000):
        presence.enter(f"c{number}", f"user-{number}", "room", {"n": number})
        if number % 100 == 99:
            await trio.sleep(0.01)
    await trio.sleep(1)
    assert await presence.count("room") == 10_000
    assert len(await crowd.view(presence, "room")) == 10_000
    assert crowd.asked == 0
    assert presence.statistics().beats <= 15  # of a thousand each
    assert len(crowd.messages) <= 30  # of five hundred each, and not ten thousand
    joined = len(crowd.messages)
    for number in range(10_000):
        presence.gone(f"c{number}")
        if number % 100 == 99:
            await trio.sleep(0.01)
    await trio.sleep(5)
    assert await presence.count("room") == 0
    assert await crowd.view(presence, "room") == {}
    assert len(crowd.messages) - joined <= 30
    nursery.cancel_scope.cancel()


class Flaky:
    """A store whose next calls fail, before or after they are carried out."""

    def __init__(self, real: MemoryPresence) -> None:
        self.real = real
        self.fails: list[str] = []

    async def _call(self, call: Callable[[], Any]) -> Any:
        failure = self.fails.pop(0) if self.fails else ""
        if failure == "before":
            raise OSError("refused")
        answer = await call()
        if failure == "after":
            raise OSError("its answer is lost")
        return answer

    async def beat(self, beat: PresenceBeat) -> PresenceAnswer:
        answer: PresenceAnswer = await self._call(lambda: self.real.beat(beat))
        return answer

    async def retire(self, node: str, seconds: float) -> None:
        await self._call(lambda: self.real.retire(node, seconds))

    async def members(self, topic: str) -> PresenceSnapshot:
        answer: PresenceSnapshot = await self._call(lambda: self.real.members(topic))
        return answer

    async def count(self, topic: str, besides: Sequence[str] = ()) -> int:
        answer: int = await self._call(lambda: self.real.count(topic, besides))
        return answer


@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_a_failing_store_was_told_is_told_again(
    autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    store, crowd = Flaky(MemoryPresence()), Counting()
    presence = Presence(store, debounce=0.1, linger=0)
    await crowd.start(nursery, presence)
    presence.enter("c1", "ann", "room", 1)
    store.fails = [when] * 3
    await trio.sleep(20)
    assert await crowd.view(presence, "room") == {"ann": 1}
    store.fails = [when] * 3
    presence.gone("c1")
    await trio.sleep(20)
    assert await crowd.view(presence, "room") == {}
    assert presence.statistics().failures == 6
    assert crowd.asked == (when == "after")  # diffs are lost with the answers, and that shows
    assert sum("failed" in line for line in caplog.messages) == 2  # once for each time that it goes away
    store.fails = ["before"]
    with pytest.raises(WsKitError, match="UNAVAILABLE"):
        await presence.list("room")
    nursery.cancel_scope.cancel()


async def test_a_store_that_has_lost_its_memory_is_told_everything(
    autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    store, crowd = Flaky(MemoryPresence()), Counting()
    presence = Presence(store, debounce=0.1, linger=1, ttl=9)
    await crowd.start(nursery, presence)
    for name in ("ann", "bob"):
        presence.enter(f"c-{name}", name, "room", name)
    await trio.sleep(1)
    store.real = MemoryPresence()
    presence.gone("c-bob")
    await trio.sleep(10)
    assert [member.id for member in await presence.list("room")] == ["ann"]
    assert await crowd.view(presence, "room") == {"ann": "ann"}
    assert presence.statistics().lost == 1
    assert "told everything" in caplog.text
    nursery.cancel_scope.cancel()


async def test_members_of_a_dead_process_vanish_after_its_lease(
    autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryPresence()
    dying = Flaky(store)
    here, there = Counting(), Counting()
    one, two = Presence(store, debounce=0.1, linger=0, ttl=9), Presence(dying, debounce=0.1, linger=0, ttl=9)
    await here.start(nursery, one)
    process = await there.start(nursery, two)
    one.enter("c1", "ann", "room", 1)
    await trio.sleep(1)
    two.enter("c2", "ann", "room", 2)
    two.enter("c3", "bob", "room", 3)
    await trio.sleep(1)
    assert {member.id: member.state for member in await one.list("room")} == {"ann": 2, "bob": 3}
    dying.fails = ["before"]  # as if it were killed: it says no goodbye
    process.cancel()
    await trio.sleep(8)
    assert await one.count("room") == 2
    before = len(here.messages)
    await trio.sleep(6)
    assert await one.count("room") == 1
    (diff,) = here.messages[before:]
    assert (diff.leaves, [(member.id, member.state) for member in diff.joins]) == (["bob"], [("ann", 1)])
    nursery.cancel_scope.cancel()


async def test_a_process_that_ends_hands_over_its_members(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    store = MemoryPresence()
    here, there = Counting(), Counting()
    one, two = (Presence(store, debounce=0.1, linger=2, ttl=30) for _ in range(2))
    await here.start(nursery, one)
    process = await there.start(nursery, two)
    two.enter("c1", "ann", "room", 1)
    two.enter("c2", "bob", "room", 1)
    await one.count("room")
    await trio.sleep(1)
    process.cancel()
    await trio.sleep(1)
    one.enter("c3", "ann", "room", 1)  # it has found the other process
    await trio.sleep(20)
    assert [member.id for member in await one.list("room")] == ["ann"]
    assert [diff.leaves for diff in here.messages] == [["bob"]]
    nursery.cancel_scope.cancel()


async def test_one_too_many_over_all_processes_is_told_so(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    store = MemoryPresence()
    here, there = Counting(), Counting()
    one, two = (Presence(store, debounce=0.1, linger=0, max_members=1) for _ in range(2))
    await here.start(nursery, one)
    await there.start(nursery, two)
    one.enter("c1", "ann", "room", 1)
    await trio.sleep(1)
    two.enter("c2", "bob", "room", 1)
    two.enter("c3", "bob", "room", 2)
    await trio.sleep(1)
    assert sorted(there.refused) == ["c2", "c3"]
    assert [member.id for member in await two.list("room")] == ["ann"]
    nursery.cancel_scope.cancel()


async def test_a_publish_that_fails_is_counted(
    autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async def publish(topic: str, diff: PresenceDiff) -> PublishResult:
        await trio.lowlevel.checkpoint()
        return PublishResult.failure("ADAPTER_ERROR")

    presence, crowd = Presence(), Counting()
    await nursery.start(presence.run, crowd, publish, crowd.refuse)
    presence.enter("c1", "ann", "room", None)
    await trio.sleep(5)
    assert presence.statistics().unpublished == 1
    assert "ADAPTER_ERROR" in caplog.text
    nursery.cancel_scope.cancel()


async def test_an_app_is_closed_while_its_members_are_there(autojump_clock: MockClock) -> None:
    store = MemoryPresence()
    async with open_house(**options(Presence(store, linger=1))) as house:
        ann = await connect(house, "ann")
        ann.send("ENTER", {"topic": "room"})
        await trio.sleep(1)
        assert isinstance(house.app, App)
    assert (await store.members("room")).members.keys() == {"ann"}
    await trio.sleep(2)
    assert await store.count("room") == 0


async def test_a_room_full_of_watchers_hears_few_messages(autojump_clock: MockClock) -> None:
    async with open_house(**options(Presence(debounce=0.5, linger=0))) as house:
        clients = [await connect(house, f"user-{number}") for number in range(100)]
        for client in clients:
            client.send("WATCH", {"topic": "room"})
        for client in clients:
            await client.heard()
        for client in clients:
            client.send("ENTER", {"topic": "room"})
            await trio.sleep(0.001)
        await trio.sleep(2)
        for client in clients:
            assert [len(joins) for joins, _ in diffs(await client.heard())] == [100]
        for client in clients:
            client.send("LEAVE", {"topic": "room"})
        await trio.sleep(2)
        for client in clients:
            assert [len(leaves) for _, leaves in diffs(await client.heard())] == [100]


class Slow(Flaky):
    """Takes a second for a list, and counts them."""

    asked = 0

    async def members(self, topic: str) -> PresenceSnapshot:
        self.asked += 1
        answer = await super().members(topic)
        await trio.sleep(1)
        return answer


async def test_those_who_ask_at_once_share_an_answer_that_is_young_enough(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store, crowd = Slow(MemoryPresence()), Counting()
    presence = Presence(store, debounce=0.1, linger=0)
    await crowd.start(nursery, presence)
    seen: list[tuple[int, float]] = []
    inside: Any = presence

    async def ask() -> None:
        members = await presence.list("room")
        seen.append((len(members), trio.current_time()))
        members.clear()  # it is nobody else's

    async with trio.open_nursery() as asking:
        asking.start_soon(ask)
        await trio.sleep(0.05)
        presence.enter("c1", "ann", "room", 1)
        await trio.sleep(0.25)  # the first answer does not know it, nor does this process any more
        for _ in range(50):
            asking.start_soon(ask)
    assert seen == [(0, 1.0), *[(1, 2.0)] * 50]
    assert store.asked == 2
    assert inside._turns == {}
    with trio.move_on_after(0.5):
        await ask()
    async with trio.open_nursery() as asking:
        with trio.CancelScope() as scope:
            asking.start_soon(ask)
            await trio.sleep(0.5)
            store.fails = ["before"]
            with pytest.raises(WsKitError, match="UNAVAILABLE"):
                await presence.list("room")
            scope.cancel()
    await ask()
    assert inside._turns == {}
    nursery.cancel_scope.cancel()


async def test_the_hooks_and_rights_of_the_app_are_asked_as_before(autojump_clock: MockClock) -> None:
    told: list[tuple[str, str]] = []

    async def may_publish(client: Session | None, topic: str, message: object) -> bool:
        return topic == "open"

    policy = PubSubPolicy(
        authorise_publish=may_publish,
        on_subscribe=lambda client, topic: told.append(("+", topic)),
        on_unsubscribe=lambda client, topic: told.append(("-", topic)),
    )
    presence = Presence(linger=0, debounce=0.1, subscribers=lambda client, topic: "yes")
    async with open_house(**options(presence, policy=policy)) as house:
        ann = await connect(house, "ann")
        await ann.session.presence.watch("room")
        await ann.session.topics.subscribe("room")
        await ann.session.topics.subscribe(TopicPattern("other:*"))
        await trio.sleep(1)
        assert diffs(await ann.heard()) == [(["ann"], [])]  # the app's right to publish is not the policy's to refuse
        assert [(one.id, one.state) for one in await ann.session.presence.list("room")] == [("ann", "yes")]
        assert await ann.session.presence.count("room") == 1
        assert (await house.app.publish("room", Leave("room"))).error == "ACL_PUBLISH"
        assert (await house.app.publish("open", Leave("room"))).ok
        await ann.session.topics.clear()
        assert told == [("+", "presence:room"), ("+", "room"), ("+", "other:*")] + [
            ("-", topic) for topic in ("presence:room", "room", "other:*")
        ]


async def test_a_long_list_lets_others_run(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    presence, crowd = Presence(), Counting()
    await crowd.start(nursery, presence)
    for number in range(2000):
        presence.enter(f"c{number}", f"user-{number}", "room", None)
    await trio.sleep(2)
    passes = 0

    async def count_passes() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async with trio.open_nursery() as counting:
        counting.start_soon(count_passes)
        assert len(await presence.list("room")) == 2000
        counting.cancel_scope.cancel()
    assert passes >= 4
    nursery.cancel_scope.cancel()


async def test_who_is_on_two_processes_counts_once_at_every_moment(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    class Slow(Flaky):
        """Takes a second for a beat, and carries it out at the end of it."""

        async def beat(self, beat: PresenceBeat) -> PresenceAnswer:
            await trio.sleep(1)
            return await super().beat(beat)

    store = MemoryPresence()
    one, two = Presence(store, debounce=1, linger=0), Presence(Slow(store), debounce=1, linger=0)
    for presence in (one, two):
        await Counting().start(nursery, presence)
    one.enter("c1", "ann", "room", 1)
    await trio.sleep(2)
    two.enter("c2", "ann", "room", 2)
    two.enter("c3", "bob", "room", 3)
    for _ in range(40):  # waiting for the debounce, on its way, told
        assert await two.count("room") == len(await two.list("room")) == 2
        await trio.sleep(0.1)
    assert await one.count("room") == 2
    two.gone("c2")
    two.gone("c3")
    await trio.sleep(3)
    assert [await presence.count("room") for presence in (one, two)] == [1, 1]
    nursery.cancel_scope.cancel()


async def test_what_a_store_says_of_its_failure_is_passed_on(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    class Refusing(Flaky):
        async def count(self, topic: str, besides: Sequence[str] = ()) -> int:
            await trio.lowlevel.checkpoint()
            raise WsKitError("UNAVAILABLE", "come back tomorrow", retry_after=86_400)

    presence, crowd = Presence(Refusing(MemoryPresence())), Counting()
    await crowd.start(nursery, presence)
    with pytest.raises(WsKitError, match="come back tomorrow"):
        await presence.count("room")
    nursery.cancel_scope.cancel()


async def test_a_store_that_forgets_some_of_us_is_told_everything(
    autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    store, crowd = MemoryPresence(), Counting()
    presence = Presence(store, debounce=0.1, linger=0, ttl=9)
    await crowd.start(nursery, presence)
    for name in ("ann", "bob"):
        presence.enter(f"c-{name}", name, "room", None)
    await trio.sleep(1)
    inside: Any = store
    (node,) = inside._table._nodes.values()
    del node.held["room", "bob"]  # a failover to a server that has not heard the last of it
    del inside._table._topics["room"].members["bob"]
    assert await presence.count("room") == 1
    await trio.sleep(5)
    assert await presence.count("room") == 2
    assert presence.statistics().lost == 1
    presence.gone("c-ann")
    await trio.sleep(1)
    assert await presence.count("room") == 1  # what it knew under the old name is over
    nursery.cancel_scope.cancel()


async def test_versions_are_above_those_of_an_earlier_process() -> None:
    before = time.time_ns() // 1_000
    store = MemoryPresence()
    answer = await store.beat(PresenceBeat(node="a", number=1, first=True, changes=[("t", "ann", b"1")]))
    assert before < answer.diffs[0].version < 2**53


async def test_what_is_no_json_in_the_store_ends_nobody(
    autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    store, crowd = MemoryPresence(), Counting()
    presence = Presence(store, debounce=0.1, linger=0, ttl=9)
    await crowd.start(nursery, presence)
    await store.beat(PresenceBeat(node="x", number=1, first=True, changes=[("room", "ann", b"{")], ttl=60))
    presence.enter("c1", "ann", "room", 1)
    await trio.sleep(1)
    presence.gone("c1")  # what the other has said counts again
    await trio.sleep(1)
    assert presence.statistics().unpublished == 1
    assert "was not published" in caplog.text
    with pytest.raises(WsKitError, match="UNAVAILABLE"):
        await presence.list("room")
    presence.enter("c2", "bob", "other", 2)
    await trio.sleep(1)
    assert await presence.count("other") == 1
    nursery.cancel_scope.cancel()


def test_a_store_is_no_presence() -> None:
    store: Any = MemoryPresence()
    with pytest.raises(ConfigError, match=r"presence=… takes a Presence, not .*Presence\(store\)"):
        App(Router(), presence=store)


@pytest.mark.parametrize("store", ["redis://localhost", 5, Presence()])
def test_what_is_no_store_is_refused(store: Any) -> None:
    with pytest.raises(ConfigError, match=r"takes a store, not .*: open_redis_presence\(url\) opens one"):
        Presence(store)


async def test_who_comes_and_goes_within_a_debounce_stays_in_nobodys_list(autojump_clock: MockClock) -> None:
    async with open_house(**options(Presence(debounce=0.5, linger=0))) as house:
        ann, bob = await connect(house, "ann"), await connect(house, "bob")
        ann.send("ENTER", {"topic": "room"})
        await settle()
        assert await ids(house) == ["ann"]
        bob.send("WATCH", {"topic": "room"})
        (roster,) = await bob.heard()
        ann.send("LEAVE", {"topic": "room"})
        await trio.sleep(5)
        assert (roster["payload"]["members"], await bob.heard()) == ([], [])
