"""What the fixtures of the patterns talk about: an app for each pattern, and what can be asked about it."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import trio

from tests.sessions import Client as Peer
from tests.sessions import House
from trio_wskit import App, Client, ConnectionClosed, Context, Limits, Request, Router, concurrent, message, open_client
from trio_wskit._core.codec import decode
from trio_wskit._core.schema import spec_of
from trio_wskit.client import Handshake, Opened
from trio_wskit.patterns import (
    DeltaLog,
    DeltaReplica,
    Deltas,
    FlowControl,
    FlowSender,
    RevisionGap,
    Snapshot,
    StateChannel,
    StateReplica,
    StateSync,
    StateUpdate,
    SyncOp,
)
from trio_wskit.transports.memory import MemoryPeer, memory_link

__all__ = ["WORLDS", "Json", "World", "client_of", "instance_of"]

Json: TypeAlias = "dict[str, Any]"


def instance_of(cls: type[Any], received: Json) -> Any:
    """A message as a client's library gives it."""
    return spec_of(cls).structure(decode(json.dumps(received).encode(), max_bytes=10**7, max_depth=50))


@asynccontextmanager
async def client_of(app: App, nursery: trio.Nursery) -> AsyncGenerator[Client]:
    """A real client of an app, in virtual time."""

    async def pump(source: MemoryPeer, target: MemoryPeer) -> None:
        try:
            while True:
                await target.send(await source.receive())
        except ConnectionClosed as closed:
            target.close(closed.code if closed.code != 1006 else 1000)

    async def connect(_: Handshake) -> Opened:
        await trio.lowlevel.checkpoint()
        (ours, our_end), (theirs, their_end) = memory_link(), memory_link()
        nursery.start_soon(pump, our_end, their_end)
        nursery.start_soon(pump, their_end, our_end)
        nursery.start_soon(app.serve_session, theirs, Request())
        return Opened(ours, None)

    async with open_client("ws://app.test/", connect=connect, limits=Limits(ping_interval=math.inf)) as client:
        yield client


class World:
    """An app, one peer of it that speaks JSON, and their facts."""

    def __init__(self) -> None:
        self.router = Router()
        self.heard: list[Json] = []
        self.house: House
        self.peer: Peer

    async def open(self, house: House) -> None:
        self.house = house
        self.peer = await house.connect()

    def take(self, received: Json) -> None:
        """The client's library gets a message."""
        self.heard.append(received)

    async def act(self, step: Mapping[str, Any]) -> None:
        """Do what only this pattern knows."""
        raise AssertionError(f"nobody knows how to {step['action']!r}")

    def fact(self, name: str) -> Any:
        raise AssertionError(f"nobody knows {name!r}")


@message("JOIN")
class Join:
    user: str
    rev: int | None = None


@message("UPDATE")
class Update:
    user: str
    status: str
    client_req_id: str


class DeltaWorld(World):
    """People, each with a status."""

    def __init__(self) -> None:
        super().__init__()

        def apply(state: dict[str, str], op: SyncOp) -> dict[str, str]:
            return {**state, op.data["user"]: op.data.get("status", "here")}

        self.log = DeltaLog[dict[str, str]]("people", {}, apply)
        self.replica = DeltaReplica[dict[str, str]](apply, {})

        @self.router.on(Join)
        async def join(ctx: Context[Join]) -> None:
            if ctx.payload.user not in self.log.state:
                await self.log.change(ctx, "participant.joined", {"user": ctx.payload.user})
            await self.log.join(ctx, ctx.payload.rev)

        @self.router.on(Update)
        async def update(ctx: Context[Update]) -> None:
            data = {"user": ctx.payload.user, "status": ctx.payload.status}
            await self.log.change(ctx, "participant.updated", data, ctx.payload.client_req_id)

    def take(self, received: Json) -> None:
        super().take(received)
        cls = {"SYNC.SNAPSHOT": Snapshot, "SYNC.DELTAS": Deltas, "REVISION_GAP": RevisionGap}[received["type"]]
        assert self.replica.take(instance_of(cls, received))

    async def act(self, step: Mapping[str, Any]) -> None:
        match step["action"]:
            case "disconnect":
                await self.peer.leave()
            case "reconnect":
                self.peer = await self.house.connect()
            case "rejoin":
                self.peer.send("JOIN", {"user": "user-1", "rev": self.replica.rev})
            case "operate":
                for number in range(step["count"]):
                    await self.log.change(self.house.app, "participant.updated", {"user": f"other-{number % 7}"})
            case "catch-up":
                for _ in range(step["count"]):
                    self.take(await self.peer.receive())
            case "expect":
                self.replica.expect(
                    "participant.updated", {"user": step["user"], "status": step["status"]}, step["clientReqId"]
                )
            case _:
                await super().act(step)

    def fact(self, name: str) -> Any:
        return {
            "server.rev": self.log.rev,
            "client.serverRev": self.replica.rev,
            "client.pendingOps": self.replica.pending,
            "client.detectedGap": self.replica.gaps > 0,
            "client.status": self.replica.state.get("user-1"),
        }[name]


@message("DATA")
class Data:
    id: str


class FlowWorld(World):
    """A server that is busy until it is told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.handled: list[str] = []
        self.flow: FlowControl[Data]
        self.waited = 0.0
        self.resent = 0

        @self.router.on(Data, lane=concurrent(32))
        async def data(ctx: Context[Data]) -> None:
            await self.flow.push(ctx, ctx.payload.id)

    async def handle(self, ctx: Context[Data]) -> None:
        await self.gate.wait()
        self.handled.append(ctx.payload.id)

    async def act(self, step: Mapping[str, Any]) -> None:
        match step["action"]:
            case "policy":
                retry_after = step.get("retryAfterMs", 100) / 1000
                self.flow = FlowControl(
                    self.handle, capacity=step["capacity"], policy=step["policy"], retry_after=retry_after
                )
            case "busy":
                self.peer.send("DATA", {"id": "msg-0"})
            case "free":
                self.gate.set()
            case "deliver":
                await self._deliver(step["id"])
            case _:
                await super().act(step)

    async def _deliver(self, message_id: str) -> None:
        """Send it with a real client, whose places are taken; free them while it waits."""
        async with trio.open_nursery() as nursery, client_of(self.house.app, nursery) as client:
            for number in (0, 1):
                await client.send(Data(f"own-{number}"))
            async with FlowSender.open(client, window=1) as sender:
                start = trio.current_time()
                async with trio.open_nursery() as sending:
                    sending.start_soon(sender.send, Data(message_id), message_id)
                    await trio.sleep(0.2)
                    assert self.handled == []
                    self.gate.set()
                self.waited, self.resent = trio.current_time() - start, sender.resent

    def fact(self, name: str) -> Any:
        waiting = self.flow.waiting(self.peer.client_id)
        if name.startswith("queue["):
            return waiting[int(name[6:-1])]
        return {
            "queue.length": len(waiting),
            "errors": sum(one["type"] != "DATA_ACK" for one in self.heard),
            "client.waitedMs": round(self.waited * 1000),
            "client.resent": self.resent,
            "client.accepted": "msg-2" if "msg-2" in self.handled else None,
        }[name]


@message("SUBSCRIBE_STATE")
class SubscribeState:
    pass


@message("OPERATION")
class Operation:
    seq: int
    value: str


class ChannelWorld(World):
    """A list of values."""

    def __init__(self) -> None:
        super().__init__()

        def apply(state: list[str], value: str) -> list[str]:
            return [*state, value]

        self.channel = StateChannel[list[str]]("values", [], apply)
        self.replica = StateReplica[list[str]]("values", apply)

        @self.router.on(SubscribeState)
        async def subscribe(ctx: Context[SubscribeState]) -> None:
            await self.channel.join(ctx)

        @self.router.on(Operation)
        async def operate(ctx: Context[Operation]) -> None:
            await self.channel.receive(ctx, ctx.payload.seq, ctx.payload.value)

    def take(self, received: Json) -> None:
        super().take(received)
        cls = {"STATE_SYNC": StateSync, "STATE_UPDATE": StateUpdate}.get(received["type"])
        if cls is not None:
            assert self.replica.take(instance_of(cls, received)) is None

    def fact(self, name: str) -> Any:
        return {
            "client.expectedSeq": self.replica.expected_seq,
            "client.updates": sum(one["type"] == "STATE_UPDATE" for one in self.heard),
            "server.expectedSeq": self.channel.expected(self.peer.session.identity),
            "server.applied": len(self.channel.state),
            "server.seq": self.channel.seq,
        }[name]


WORLDS: Mapping[str, type[World]] = {
    "delta-sync": DeltaWorld,
    "flow-control": FlowWorld,
    "state-channels": ChannelWorld,
}
