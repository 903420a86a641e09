"""A proof that cannot fail proves nothing: every promise of the consumer is broken here once, and must be missed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, final

import attrs
import pytest
import trio
from trio.testing import MockClock

from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit.abc import BrokerConsumer, Deliver, SelectiveConsumer
from trio_wskit.errors import PubSubError
from trio_wskit.pubsub import MemoryBroker
from trio_wskit.testing import BrokerPeer, check_broker_consumer

Status = trio.TaskStatus[None]
GARBAGE = "what nobody can decode"


@final
class Peer:
    """Publishes through the driver of a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._driver = broker.driver()

    async def publish(self, envelope: PublishEnvelope) -> None:
        assert (await self._driver.publish(envelope)).ok

    async def cut(self) -> None:
        self._broker.cut()

    async def publish_garbage(self, topic: str) -> bool:
        await self.publish(PublishEnvelope(topic, GARBAGE))
        return True


class Sound:
    """Does everything as it should be done, by asking somebody who knows."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.real: BrokerConsumer = broker.consumer()

    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        async def decoded(envelope: PublishEnvelope) -> None:
            if envelope.type != GARBAGE:
                await self.hand_in(deliver, envelope)

        await self.real.run(decoded, task_status=task_status)

    async def hand_in(self, deliver: Deliver, envelope: PublishEnvelope) -> None:
        await deliver(envelope)


class NeverStarts(Sound):
    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        await super().run(deliver)


class EndsAtOnce(Sound):
    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        await trio.lowlevel.checkpoint()


class StartsTooSoon(Sound):
    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep(0.01)
        await super().run(deliver)


class StartsTwice(Sound):
    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await super().run(deliver, task_status=task_status)


class DeliversBeforeItStarts(Sound):
    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        await deliver(PublishEnvelope("t", "NEWS", b'{"n":0}', origin="peer", id="early"))
        await super().run(deliver, task_status=task_status)


class LosesSome(Sound):
    async def hand_in(self, deliver: Deliver, envelope: PublishEnvelope) -> None:
        if envelope.id != "13":
            await deliver(envelope)


class HandsInTwice(Sound):
    async def hand_in(self, deliver: Deliver, envelope: PublishEnvelope) -> None:
        await deliver(envelope)
        await deliver(envelope)


class HandsInPairs(Sound):
    held: PublishEnvelope | None = None

    async def hand_in(self, deliver: Deliver, envelope: PublishEnvelope) -> None:
        if envelope.id is None or not envelope.id.isdigit() or int(envelope.id) < 100:
            await deliver(envelope)
        elif self.held is None:
            self.held = envelope
        else:
            await deliver(envelope)
            await deliver(self.held)
            self.held = None


class ATaskForEach(Sound):
    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        async def spawn(envelope: PublishEnvelope) -> None:
            nursery.start_soon(deliver, envelope)

        async with trio.open_nursery() as nursery:
            await super().run(spawn, task_status=task_status)


class Changes(Sound):
    changes: dict[str, Any] = {}  # noqa: RUF012 - a test's

    async def hand_in(self, deliver: Deliver, envelope: PublishEnvelope) -> None:
        await deliver(attrs.evolve(envelope, **self.changes))


class LosesTheMeta(Changes):
    changes = {"meta": {}}  # noqa: RUF012


class AddsToTheMeta(Changes):
    async def hand_in(self, deliver: Deliver, envelope: PublishEnvelope) -> None:
        await deliver(attrs.evolve(envelope, meta={**envelope.meta, "channel": "x"}))


class LosesWhoIsLeftOut(Changes):
    changes = {"exclude": None}  # noqa: RUF012


class LosesTheOrigin(Changes):
    changes = {"origin": None}  # noqa: RUF012


class MakesUpIds(Sound):
    made = 0

    async def hand_in(self, deliver: Deliver, envelope: PublishEnvelope) -> None:
        self.made += 1
        await deliver(attrs.evolve(envelope, id=envelope.id or f"made {self.made}"))


class NothingIsNull(Sound):
    async def hand_in(self, deliver: Deliver, envelope: PublishEnvelope) -> None:
        await deliver(attrs.evolve(envelope, payload=envelope.payload or b"null"))


class KeysInOrder(Sound):
    async def hand_in(self, deliver: Deliver, envelope: PublishEnvelope) -> None:
        payload = (envelope.payload or b"").replace(b'{"z":', b'{"b":')
        await deliver(attrs.evolve(envelope, payload=payload or None))


class TakesTheChannelForTheTopic(Changes):
    async def hand_in(self, deliver: Deliver, envelope: PublishEnvelope) -> None:
        await deliver(attrs.evolve(envelope, topic=f"ws:{envelope.topic}"))


class OnlyAscii(Changes):
    async def hand_in(self, deliver: Deliver, envelope: PublishEnvelope) -> None:
        await deliver(attrs.evolve(envelope, type=envelope.type.encode("ascii", "replace").decode()))


class NoPatienceWithTheSlow(Sound):
    async def hand_in(self, deliver: Deliver, envelope: PublishEnvelope) -> None:
        with trio.move_on_after(0.01):
            await deliver(envelope)


class DiesOfGarbage(Sound):
    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        async def decoded(envelope: PublishEnvelope) -> None:
            if envelope.type == GARBAGE:
                raise ValueError(GARBAGE)
            await deliver(envelope)

        await self.real.run(decoded, task_status=task_status)


class DeliversGarbage(Sound):
    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        await self.real.run(deliver, task_status=task_status)


class MendsInSilence(Sound):
    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        while True:
            try:
                await super().run(deliver, task_status=task_status)
            except trio.BrokenResourceError:
                task_status = trio.TASK_STATUS_IGNORED


class DeafInSilence(Sound):
    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await super().run(deliver, task_status=task_status)
        except trio.BrokenResourceError:
            await trio.sleep_forever()


class RunsOnce(Sound):
    ran = False

    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        if self.ran:
            raise RuntimeError("a generator that is spent")
        self.ran = True
        await super().run(deliver, task_status=task_status)


class EndsAfterATime(Sound):
    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        with trio.move_on_after(0.05):
            await super().run(deliver, task_status=task_status)


class SwallowsCancelled(Sound):
    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await super().run(deliver, task_status=task_status)
        except trio.Cancelled:
            return


class FinishesFirst(Sound):
    async def hand_in(self, deliver: Deliver, envelope: PublishEnvelope) -> None:
        with trio.CancelScope(shield=True):
            await deliver(envelope)


class SoundSelective(Sound):
    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.selective: SelectiveConsumer = broker.selective_consumer()
        self.real = self.selective

    async def follow(self, topic: str) -> None:
        await self.selective.follow(topic)

    async def unfollow(self, topic: str) -> None:
        await self.selective.unfollow(topic)


class HearsEverything(SoundSelective):
    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.real = broker.consumer()


class NeverLeaves(SoundSelective):
    async def unfollow(self, topic: str) -> None:
        await trio.lowlevel.checkpoint()


class FollowsLater(SoundSelective):
    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            await super().run(deliver, task_status=task_status)

    async def follow(self, topic: str) -> None:
        async def later() -> None:
            await trio.sleep(0.01)
            await self.selective.follow(topic)

        if hasattr(self, "nursery"):
            self.nursery.start_soon(later)
        else:
            await self.selective.follow(topic)


class PatternsAreNames(SoundSelective):
    async def follow(self, topic: str) -> None:
        await self.selective.follow(topic.replace("*", "?"))


class KnowsNoPatterns(SoundSelective):
    """As it may be: a broker that cannot match them says so."""

    async def follow(self, topic: str) -> None:
        if "*" in topic:
            raise PubSubError("INVALID_TOPIC", "this broker has no patterns")
        await self.selective.follow(topic)


class FailsForPatterns(SoundSelective):
    async def follow(self, topic: str) -> None:
        if "*" in topic:
            raise PubSubError("ADAPTER_ERROR", "this broker has no patterns")
        await self.selective.follow(topic)


class ForgetsWhatItFollows(SoundSelective):
    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await super().run(deliver, task_status=task_status)
        finally:
            self.selective = self.real = self.broker.selective_consumer()


class FollowsWhileItHears(SoundSelective):
    hears = True

    async def run(self, deliver: Deliver, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await super().run(deliver, task_status=task_status)
        finally:
            self.hears = False

    async def follow(self, topic: str) -> None:
        if not self.hears:
            await trio.sleep_forever()
        await self.selective.follow(topic)


class LeavesWithThePattern(SoundSelective):
    async def unfollow(self, topic: str) -> None:
        await self.selective.unfollow(topic)
        if "*" in topic:
            await self.selective.unfollow(topic.replace("*", "1"))


MUTANTS: list[tuple[Callable[[MemoryBroker], BrokerConsumer], str]] = [
    (NeverStarts, "run() calls started() soon"),
    (EndsAtOnce, "before it ends"),
    (StartsTooSoon, "what is published after started() is heard"),
    (StartsTwice, "started() is called once"),
    (DeliversBeforeItStarts, "before the first deliver()"),
    (LosesSome, "all of many are heard"),
    (HandsInTwice, "as often as it was published"),
    (HandsInPairs, "in the order of their publishing"),
    (ATaskForEach, "before the next one"),
    (LosesTheMeta, "the meta arrives as it was"),
    (AddsToTheMeta, "the meta arrives as it was"),
    (LosesWhoIsLeftOut, "whom it leaves out"),
    (LosesTheOrigin, "origin and id arrive"),
    (MakesUpIds, "no id is made up"),
    (NothingIsNull, "no null either"),
    (KeysInOrder, "the payload arrives as it was"),
    (TakesTheChannelForTheTopic, "the topic arrives as it was"),
    (OnlyAscii, "the type arrives as it was"),
    (NoPatienceWithTheSlow, "what came during a slow delivery"),
    (DiesOfGarbage, "what cannot be decoded is passed over"),
    (DeliversGarbage, "what cannot be decoded is passed over"),
    (MendsInSilence, "run() returns or raises when its link is lost"),
    (DeafInSilence, "run() returns or raises when its link is lost"),
    (RunsOnce, "before it ends"),
    (EndsAfterATime, ""),
    (SwallowsCancelled, "does not swallow a cancellation"),
    (FinishesFirst, "cancelled while it delivers"),
    (HearsEverything, "and no others"),
    (NeverLeaves, "follows no more"),
    (FollowsLater, "when follow() has returned"),
    (PatternsAreNames, "matches the patterns"),
    (FailsForPatterns, "a broker without patterns refuses them as INVALID_TOPIC"),
    (ForgetsWhatItFollows, ""),
    (FollowsWhileItHears, "do not wait for a link that is down"),
    (LeavesWithThePattern, "leaving a pattern"),
]


def factory(
    make: Callable[[MemoryBroker], BrokerConsumer],
) -> Callable[[], AbstractAsyncContextManager[tuple[BrokerConsumer, BrokerPeer]]]:
    @asynccontextmanager
    async def open_broker() -> AsyncGenerator[tuple[BrokerConsumer, BrokerPeer]]:
        broker = MemoryBroker()
        yield make(broker), Peer(broker)
        assert broker.links == 0

    return open_broker


@pytest.mark.parametrize(("make", "promise"), MUTANTS, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_consumer_that_breaks_a_promise_is_found_out(
    autojump_clock: MockClock, make: Callable[[MemoryBroker], BrokerConsumer], promise: str
) -> None:
    with pytest.raises(AssertionError) as broken:
        await check_broker_consumer(factory(make))
    assert promise in str(broken.value)
    assert broken.value.__notes__[0].startswith("while checking: ")


@pytest.mark.parametrize("make", [Sound, SoundSelective, KnowsNoPatterns])
async def test_ours_keep_every_promise(
    autojump_clock: MockClock, make: Callable[[MemoryBroker], BrokerConsumer]
) -> None:
    await check_broker_consumer(factory(make))


async def test_a_broker_without_garbage_is_proved_all_the_same(autojump_clock: MockClock) -> None:
    class Tidy:
        def __init__(self, broker: MemoryBroker) -> None:
            self._peer = Peer(broker)
            self.publish = self._peer.publish
            self.cut = self._peer.cut

        async def publish_garbage(self, topic: str) -> bool:
            return False

    @asynccontextmanager
    async def open_broker() -> AsyncGenerator[tuple[BrokerConsumer, BrokerPeer]]:
        broker = MemoryBroker()
        yield broker.consumer(), Tidy(broker)

    await check_broker_consumer(open_broker)


async def test_in_real_time_it_takes_a_few_seconds() -> None:
    with trio.fail_after(40):
        await check_broker_consumer(factory(SoundSelective))
