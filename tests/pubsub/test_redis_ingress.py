"""A consumer and a driver on links that do what the test says, when it says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast, final

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.pubsub.redis_parts import enveloped
from trio_wskit._core.publishing import PublishEnvelope, PublishResult
from trio_wskit._core.redis_envelope import encode_envelope
from trio_wskit.pubsub._redis_ear import Name
from trio_wskit.pubsub._redis_egress import Egress
from trio_wskit.pubsub._redis_ingress import Ingress, IngressLimits
from trio_wskit.pubsub._redis_link import Command, Refused, Servers

LIMITS = IngressLimits(
    max_wait=10, remember=False, check_every=60, max_waiting=10, max_waiting_bytes=10**6, max_envelope_bytes=10**6
)


@final
class FakeLink:
    """Lets so many fences pass as the test allows, and reads what the test pushes."""

    def __init__(self) -> None:
        self.fences = trio.Semaphore(0)
        self.send, self.receive = trio.open_memory_channel[str](1000)

    async def fence(self, commands: Sequence[Command], patience: float) -> list[Refused]:
        await self.fences.acquire()
        return []

    async def read(self, take: Callable[[list[Any]], None], pause: Callable[[], None]) -> None:
        async for text in self.receive:
            take([b"message", b"ws:a", encode_envelope(enveloped(text, "a"))])
            pause()


@final
class FakeServers:
    def __init__(self, link: FakeLink | None) -> None:
        self.link = link
        self.attempts = 0

    async def connect(self, nursery: trio.Nursery, address: object = None) -> FakeLink:
        self.attempts += 1
        if self.link is None:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return self.link


async def test_what_comes_before_the_epoch_takes_no_room_and_is_not_delivered(autojump_clock: MockClock) -> None:
    link = FakeLink()
    ingress = Ingress(cast("Servers", FakeServers(link)), LIMITS, prefix="ws:", is_sharded=False, foreign=False)
    ingress.wanted.add(Name("SUBSCRIBE", "ws:a"))
    came: list[PublishEnvelope] = []

    async def deliver(envelope: PublishEnvelope) -> None:
        came.append(envelope)

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        await ingress.run(deliver, task_status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(nursery.start, run)
        await wait_all_tasks_blocked()
        for number in range(100):
            link.send.send_nowait(f"before {number}")
        await wait_all_tasks_blocked()
        link.fences.release()
        await wait_all_tasks_blocked()
        link.send.send_nowait("after")
        await wait_all_tasks_blocked()
        assert [one.id for one in came] == ["after"]
        assert ingress.counts.overflows == 0
        nursery.cancel_scope.cancel()


async def test_a_topic_that_is_confirmed_before_the_epoch_is_heard_when_that_begins(autojump_clock: MockClock) -> None:
    link = FakeLink()
    ingress = Ingress(cast("Servers", FakeServers(link)), LIMITS, prefix="ws:", is_sharded=False, foreign=False)
    names = [Name("SUBSCRIBE", f"ws:{number}") for number in range(600)]  # two batches
    ingress.wanted.update(names)
    events: list[str] = []

    async def deliver(_: PublishEnvelope) -> None:
        raise AssertionError

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        await ingress.run(deliver, task_status)

    async def begin() -> None:
        await nursery.start(run)
        events.append("begun")

    async def want(name: Name) -> None:
        await trio.sleep(1)
        await ingress.want(name)
        events.append("heard")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin)
        for name in names:
            nursery.start_soon(want, name)
        await trio.sleep(2)
        link.fences.release()
        await trio.sleep(1)
        assert events == []
        link.fences.release()
        await trio.sleep(1)
        assert sorted(events) == ["begun"] + ["heard"] * 600
        nursery.cancel_scope.cancel()


async def test_a_driver_that_closes_opens_no_link_again_and_again(autojump_clock: MockClock) -> None:
    servers = FakeServers(None)
    results: list[PublishResult | int] = []
    async with trio.open_nursery() as outside, trio.open_nursery() as nursery:
        egress = Egress(cast("Servers", servers), nursery, is_sharded=False, max_wait=10, max_bytes=1000)

        async def publish() -> None:
            results.append(await egress.publish("a", b"x", counted=False))

        for _ in range(3):
            outside.start_soon(publish)
        await trio.sleep(1)
        egress.close()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == 1
    assert servers.attempts == 1
    assert [one.error for one in results if isinstance(one, PublishResult)] == ["ADAPTER_ERROR"] * 3
