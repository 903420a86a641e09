"""What the patterns promise beyond their fixtures."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.patterns.worlds import Data, DeltaWorld, FlowWorld, client_of
from tests.sessions import Add, Total, open_house, settle
from trio_wskit import Admission, ConfigError, Context, PublishResult, Request, Router, concurrent
from trio_wskit.patterns import (
    CatchUpRequest,
    DeltaLog,
    DeltaReplica,
    Deltas,
    FlowControl,
    FlowSender,
    ResourceExhausted,
    StateChannel,
    StateReplica,
    StateSync,
    StateUpdate,
    SyncOp,
)


class Air:
    """Publishes to nobody in particular."""

    def __init__(self) -> None:
        self.published: list[Any] = []

    async def publish(self, topic: str, message: object) -> PublishResult:
        await trio.lowlevel.checkpoint()
        self.published.append(message)
        return PublishResult(ok=True)


def append(state: list[int], op: SyncOp) -> list[int]:
    return [*state, op.data]


@given(
    lost=st.lists(st.booleans(), max_size=60),
    capacity=st.integers(1, 20),
    start=st.integers(0, 3),
)
def test_a_replica_that_asks_when_something_is_missing_ends_up_with_the_state(
    lost: list[bool], capacity: int, start: int
) -> None:
    async def run() -> None:
        air = Air()
        log = DeltaLog[list[int]]("t", [], append, capacity=capacity, rev=start)
        replica = DeltaReplica[list[int]](append, [])

        def ask() -> None:
            for answer in log.since(replica.rev):
                assert replica.take(answer)

        ask()
        for number, is_lost in enumerate([*lost, False]):
            await log.change(air, "add", number)
            if not is_lost and not replica.take(air.published[-1]):
                ask()
        assert replica.state == log.state == list(range(len(lost) + 1))
        assert replica.rev == log.rev == start + len(lost) + 1
        assert replica.take(air.published[0])  # what is old changes nothing
        assert replica.state == log.state

    trio.run(run)


async def test_operations_are_published_in_their_order_whoever_waits() -> None:
    class Slow(Air):
        async def publish(self, topic: str, message: object) -> PublishResult:
            for _ in range(5 - len(self.published)):
                await trio.lowlevel.checkpoint()
            return await super().publish(topic, message)

    air = Slow()
    log = DeltaLog[list[int]]("t", [], append)
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(log.change, air, "add", number)
    assert [message.to_rev for message in air.published] == [1, 2, 3, 4, 5]


async def test_a_change_that_is_begun_is_published_whoever_is_cancelled() -> None:
    air, log = Air(), DeltaLog[list[int]]("t", [], append)
    with trio.CancelScope() as scope:
        await log.change(air, "add", 1)
        scope.cancel()
        await log.change(air, "add", 2)
    assert len(air.published) == log.rev == len(log.state)


async def test_an_operation_that_cannot_be_applied_is_none() -> None:
    def refuse(state: int, op: SyncOp) -> int:
        raise ValueError(op.type)

    air, log = Air(), DeltaLog[int]("t", 0, refuse)
    with pytest.raises(ValueError, match="add"):
        await log.change(air, "add", 2)
    assert (log.rev, air.published) == (0, [])


def test_a_revision_of_another_time_is_a_gap() -> None:
    log = DeltaLog[list[int]]("t", [], append, rev=1_000)
    for rev in (-1, 999, 1_001, 10**15):
        gap, snapshot = log.since(rev)
        assert (gap.__class__.__name__, snapshot.__class__.__name__) == ("RevisionGap", "Snapshot")
    assert log.since(1_000) == [Deltas("t", 1_000, 1_000, [])]


def test_what_a_client_expects_is_bounded_and_can_be_taken_back() -> None:
    replica = DeltaReplica[list[int]](append, [], max_pending=2)
    replica.expect("add", 1, "a")
    replica.expect("add", 2, "b")
    with pytest.raises(OverflowError, match="2 operations wait"):
        replica.expect("add", 3, "c")
    replica.forget("a")
    replica.forget("never heard of")
    assert (replica.state, replica.pending) == ([2], 1)


async def test_a_refused_update_is_answered_and_changes_nothing(autojump_clock: MockClock) -> None:
    world = DeltaWorld()
    async with open_house(world.router) as house:
        client = await house.connect()
        client.send("UPDATE", {"user": "ann"})
        (error,) = await client.heard()
        assert error["payload"]["code"] == "INVALID_ARGUMENT"
        assert world.log.rev == 0


def add(state: list[int], value: int) -> list[int]:
    return [*state, value]


def channel_router(channel: StateChannel[list[int]]) -> Router:
    router = Router()

    @router.rpc(Add)
    async def send(ctx: Context[Add]) -> Any:
        try:
            return Total(int(await channel.receive(ctx, ctx.payload.n, ctx.payload.n)))
        except ValueError as error:
            ctx.error("INVALID_ARGUMENT", str(error))

    @router.on(CatchUpRequest)
    async def catch_up(ctx: Context[CatchUpRequest]) -> None:
        await channel.catch_up(ctx, ctx.payload.from_seq)

    return router


def name_of(who: Admission) -> str | None:
    return who.request.query.get("name")


async def test_a_number_is_done_once_over_connections_too(autojump_clock: MockClock) -> None:
    channel = StateChannel[list[int]]("t", [], add, max_clients=1)
    async with open_house(channel_router(channel), identity=name_of) as house:

        async def send(client: Any, n: int) -> Any:
            client.send("ADD", {"n": n}, call_id="1")
            return [(one["type"], one["payload"].get("n", one["payload"].get("code"))) for one in await client.heard()]

        ann = await house.connect(Request(target="/?name=ann"))
        assert await send(ann, 1) == [("TOTAL", 1)]
        await ann.leave()
        ann = await house.connect(Request(target="/?name=ann"))
        assert await send(ann, 1) == [("TOTAL", 0)]
        assert await send(ann, 2) == [("TOTAL", 1)]
        assert await send(ann, 0) == [("RPC_ERROR", "INVALID_ARGUMENT")]
        bob = await house.connect(Request(target="/?name=bob"))
        await send(bob, 1)
        assert (channel.expected("ann"), channel.expected("bob")) == (1, 2)  # there is room for one
        assert channel.state == [1, 2, 1]


async def test_what_is_not_kept_any_more_is_the_whole_state(autojump_clock: MockClock) -> None:
    channel = StateChannel[list[int]]("t", [], add, history=2)
    async with open_house(channel_router(channel)) as house:
        client = await house.connect()
        for number in range(1, 5):
            client.send("ADD", {"n": number}, call_id=str(number))
        await client.heard()
        for asked, expected in ((3, [3, 4]), (5, []), (2, ["STATE_SYNC"]), (0, ["STATE_SYNC"]), (99, ["STATE_SYNC"])):
            client.send("CATCH_UP_REQUEST", {"topic": "t", "fromSeq": asked})
            told = await client.heard()
            said = [one["payload"]["seq"] if one["type"] == "STATE_UPDATE" else one["type"] for one in told]
            assert said == expected


def test_a_replica_asks_for_what_is_missing() -> None:
    replica = StateReplica[list[int]]("t", add)
    assert replica.take(StateUpdate("t", 1, 1)) == CatchUpRequest("t", 0)
    assert replica.take(StateSync("t", 2, [1, 2])) is None
    assert replica.take(StateUpdate("t", 2, 2)) is None
    assert replica.take(StateUpdate("other", 9, 2)) is None
    assert replica.take(StateUpdate("t", 4, 4)) == CatchUpRequest("t", 3)
    assert replica.take(StateUpdate("t", 3, 3)) is None
    assert (replica.state, replica.expected_seq) == ([1, 2, 3], 4)
    assert replica.take(StateSync("t", 0, [])) is None  # the server has begun anew
    assert (replica.state, replica.expected_seq) == ([], 1)
    assert [replica.next_seq(), replica.next_seq()] == [1, 2]


def test_bad_options_are_refused() -> None:
    async def handle(_: Context[Data]) -> None:
        pass

    wrong: list[Any] = [
        lambda: DeltaLog("t", 0, lambda state, op: state, capacity=0),
        lambda: StateChannel("t", 0, lambda state, data: state, history=0),
        lambda: StateChannel("t", 0, lambda state, data: state, max_clients=0),
        lambda: FlowControl(handle, capacity=0),
        lambda: FlowControl(handle, limit=5),
        lambda: FlowControl(handle, retry_after=-1),
        lambda: FlowControl(handle, policy="drop"),  # type: ignore[arg-type]
    ]
    for make in wrong:
        with pytest.raises(ConfigError):
            make()


class BusyWorld(FlowWorld):
    """Handles what it is let to, one after the other, and fails for what is called bad."""

    def __init__(self, capacity: int = 2) -> None:
        super().__init__()
        self.flow = FlowControl(self.handle, capacity=capacity)
        self.most = self.now = 0

    async def handle(self, ctx: Context[Data]) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(1)
            if ctx.payload.id == "bad":
                raise ValueError("bad")
            self.handled.append(ctx.payload.id)
        finally:
            self.now -= 1


async def test_a_message_that_fails_is_answered_and_the_next_goes_on(autojump_clock: MockClock) -> None:
    world = BusyWorld()
    async with open_house(world.router) as house:
        client = await house.connect()
        for name in ("a", "bad", "b"):
            client.send("DATA", {"id": name})
        await trio.sleep(5)
        said = [(one["type"], one["payload"].get("id")) for one in await client.heard()]
        assert sorted(said, key=str) == [
            ("DATA_ACK", "a"),
            ("DATA_ACK", "b"),
            ("DATA_ACK", "bad"),
            ("ERROR", None),
        ]
        assert (world.handled, world.most) == (["a", "b"], 1)
        assert world.flow.busy == 0
        assert "failed" in house.logged()[0]


async def test_a_client_that_leaves_leaves_nothing_in_the_queue(autojump_clock: MockClock) -> None:
    world = BusyWorld()
    async with open_house(world.router) as house:
        client = await house.connect()
        for name in "abcde":
            client.send("DATA", {"id": name})
        await settle()
        assert world.flow.waiting(client.client_id) == ["d", "e"]
        await client.leave()
        assert world.flow.busy == 0
        assert world.flow.waiting(client.client_id) == []


async def test_a_deadline_in_the_queue_passes_the_turn_on(autojump_clock: MockClock) -> None:
    world = BusyWorld(capacity=5)
    router = Router()

    @router.on(Data, lane=concurrent(8), timeout=2.5)
    async def data(ctx: Context[Data]) -> None:
        await world.flow.push(ctx, ctx.payload.id)

    async with open_house(router) as house:
        client = await house.connect()
        for name in "abcde":
            client.send("DATA", {"id": name})
        await trio.sleep(10)
        assert world.handled == ["a", "b"]
        assert world.flow.busy == 0
        client.send("DATA", {"id": "f"})
        await trio.sleep(2)
        assert world.handled == ["a", "b", "f"]


async def test_a_sender_that_is_cancelled_gives_its_credit_back(autojump_clock: MockClock) -> None:
    world = BusyWorld()
    async with (
        open_house(world.router) as house,
        trio.open_nursery() as nursery,
        client_of(house.app, nursery) as client,
        FlowSender.open(client, window=1) as sender,
    ):
        with trio.move_on_after(0.5) as scope:
            await sender.send(Data("a"), "a")
        assert scope.cancelled_caught
        inside: Any = sender
        inside._dropped(ResourceExhausted("drop-new", 1, 1, "a"))  # it is too late
        await sender.send(Data("b"), "b")
        assert world.handled == ["a", "b"]


async def test_who_is_cancelled_while_it_is_told_that_another_was_dropped_has_left_the_queue(
    autojump_clock: MockClock,
) -> None:
    class Slow:
        """The context of a client that does not read."""

        client_id = "c1"

        async def send(self, message: object) -> None:
            await trio.sleep_forever()

    async def handle(ctx: Any) -> None:
        await trio.sleep(1)

    flow: FlowControl[Any] = FlowControl(handle, capacity=1)
    slow: Any = Slow()
    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(flow.push, slow, f"m{number}")
            await settle()
        with trio.move_on_after(0.5):
            await flow.push(slow, "m2")
        assert (flow.waiting("c1"), flow.busy) == ([], 1)
        with trio.move_on_after(0.1):
            await flow.push(slow, "m3")
        await trio.sleep(1)
        assert flow.busy == 0
        nursery.cancel_scope.cancel()
