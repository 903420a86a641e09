"""What a message and a delivery cost, in counted work: exact numbers that stand in for time, which is never tested.

A number here that rises is a slower hot path. One that falls is a success: lower it here.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_wskit import App, Context, Request, Router, Rpc, message, open_app
from trio_wskit._core import schema
from trio_wskit.abc import Receiver
from trio_wskit.transports.native import Poller, native_transport


@message("ECHO")
class Echo:
    n: int


@message("ECHOED")
class Echoed:
    n: int


@message("ANSWER")
class Answer:
    n: int


@message("ASK")
class Ask(Rpc[Answer]):
    n: int
    wait: bool = False


@message("JOIN")
class Join:
    pass


@message("SAY")
class Say:
    times: int = 1


router = Router()


@router.on(Echo)
async def echo(ctx: Context[Echo]) -> None:
    await ctx.send(Echoed(ctx.payload.n))


@router.rpc(Ask)
async def ask(ctx: Context[Ask]) -> Answer:
    if ctx.payload.wait:
        await trio.sleep(1)
    return Answer(ctx.payload.n)


@router.on(Join)
async def join(ctx: Context[Join]) -> None:
    await ctx.topics.subscribe("room")


@router.on(Say)
async def say(ctx: Context[Say]) -> None:
    for n in range(ctx.payload.times):
        await ctx.publish("room", Echoed(n))


@final
class CountingLink:
    """A push transport that counts hand-overs and takes everything at once."""

    def __init__(self) -> None:
        self.writes = 0
        self.frames = 0
        self._receiver: Receiver | None = None

    def attach(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def feed(self, *messages: str) -> None:
        assert self._receiver is not None
        self._receiver.feed([one.encode() for one in messages])

    def resume(self) -> None: ...

    async def receive(self) -> list[bytes]:
        await trio.sleep_forever()
        raise AssertionError

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        self.writes += 1
        self.frames += len(frames)
        return ()

    async def write(self, frames: Sequence[bytes]) -> None:
        raise AssertionError("there is always room")

    async def ping(self) -> None:
        await trio.sleep_forever()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await trio.lowlevel.checkpoint()

    def abort(self) -> None: ...


@final
class Steps(trio.abc.Instrument):
    """Counts what the scheduler does."""

    def __init__(self) -> None:
        self.tasks = 0
        self.steps = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.tasks += 1

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1


@final
class Counted:
    """An app with clients, and what happened in it since `start`."""

    def __init__(self, links: list[CountingLink], monkeypatch: pytest.MonkeyPatch) -> None:
        self.links = links
        self.steps = Steps()
        self.encodes = 0
        encode = schema.MessageSpec.encode

        def counted(spec: Any, instance: Any, meta: Any) -> bytes:
            self.encodes += 1
            return encode(spec, instance, meta)

        monkeypatch.setattr(schema.MessageSpec, "encode", counted)

    async def of(self, link: CountingLink, *messages: str) -> None:
        """Feed one read's messages, and count until nothing moves; the step of this task is not counted."""
        await wait_all_tasks_blocked()
        for one in self.links:
            one.writes = one.frames = 0
        self.encodes = self.steps.tasks = 0
        trio.lowlevel.add_instrument(self.steps)
        self.steps.steps = 0
        link.feed(*messages)
        await wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(self.steps)
        self.steps.steps -= 1


@asynccontextmanager
async def counted(clients: int, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Counted]:
    links = [CountingLink() for _ in range(clients)]
    async with open_app(App(router)) as app, trio.open_nursery() as nursery:
        for link in links:
            nursery.start_soon(app.serve_session, link, Request())
        await wait_all_tasks_blocked()
        yield Counted(links, monkeypatch)
        nursery.cancel_scope.cancel()


def echoes(count: int) -> list[str]:
    return ['{"type":"ECHO","payload":{"n":1}}'] * count


@pytest.mark.parametrize("count", [1, 16])
async def test_the_answers_of_one_read_cost_one_wake_up_and_one_write(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with counted(1, monkeypatch) as work:
        (link,) = work.links
        await work.of(link, *echoes(count))
        assert (link.writes, link.frames, work.encodes) == (1, count, count)
        assert (work.steps.tasks, work.steps.steps) == (0, 1)


async def test_a_call_that_never_waits_costs_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    async with counted(1, monkeypatch) as work:
        (link,) = work.links
        await work.of(link, *['{"type":"ASK","meta":{"correlationId":"c"},"payload":{"n":1}}'] * 4)
        assert (link.writes, link.frames, work.encodes) == (1, 4, 4)
        assert (work.steps.tasks, work.steps.steps) == (0, 1)


async def test_a_call_that_waits_costs_one_task(monkeypatch: pytest.MonkeyPatch, autojump_clock: object) -> None:
    async with counted(1, monkeypatch) as work:
        (link,) = work.links
        await work.of(
            link,
            '{"type":"ASK","meta":{"correlationId":"a"},"payload":{"n":1,"wait":true}}',
            '{"type":"ASK","meta":{"correlationId":"b"},"payload":{"n":1,"wait":true}}',
        )
        assert work.steps.tasks == 2  # each time the next leader


@pytest.mark.parametrize("publishes", [1, 8])
async def test_a_publish_is_encoded_once_and_joined_publishes_leave_in_one_write(
    publishes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with counted(50, monkeypatch) as work:
        for link in work.links:
            link.feed('{"type":"JOIN"}')
        speaker = work.links[0]
        await work.of(speaker, f'{{"type":"SAY","payload":{{"times":{publishes}}}}}')
        assert work.encodes == publishes
        assert [link.writes for link in work.links] == [1] * 50
        assert [link.frames for link in work.links] == [publishes] * 50
        assert (work.steps.tasks, work.steps.steps) == (0, 2)  # the dispatcher of the speaker, and the flusher


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="socket pairs")
async def test_a_message_behind_the_poller_costs_one_recv_and_one_send(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class CountingSocket(socket.socket):
        def recv(self, *args: Any) -> bytes:
            calls.append("recv")
            return super().recv(*args)

        def send(self, *args: Any) -> int:
            calls.append("send")
            return super().send(*args)

    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    text = b'{"type":"ECHO","payload":{"n":1}}'
    frame = bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text
    poller = Poller()
    async with open_app(App(router)) as app, trio.open_nursery() as nursery:
        await nursery.start(poller.run)
        with CountingSocket(fileno=ours.detach()) as sock:
            nursery.start_soon(app.serve_session, native_transport(sock, poller=poller), Request())
            await wait_all_tasks_blocked(0.01)
            for frames in (1, 5):
                calls.clear()
                theirs.send(frame * frames)
                with trio.fail_after(5):
                    await trio.lowlevel.wait_readable(theirs)
                await wait_all_tasks_blocked(0.01)
                assert calls == ["recv", "send"]
                assert theirs.recv(65536).count(b"ECHOED") == frames
            nursery.cancel_scope.cancel()
    theirs.close()
