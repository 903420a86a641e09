"""A proof that cannot fail proves nothing: every promise of the driver is broken here once, and must be missed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from fnmatch import fnmatchcase

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.pubsub.drivers import ScriptedDriver
from trio_wskit._core.publishing import PublishEnvelope, PublishResult
from trio_wskit.abc import PubSubDriver
from trio_wskit.pubsub import MemoryBroker, MemoryPubSub, with_broker
from trio_wskit.testing import check_pubsub_driver


class Sound:
    """Does everything as it should be done, by asking somebody who knows."""

    def __init__(self) -> None:
        self.real = MemoryPubSub()

    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        return await self.real.publish(envelope)

    async def subscribe(self, client_id: str, topic: str) -> None:
        await self.real.subscribe(client_id, topic)

    async def unsubscribe(self, client_id: str, topic: str) -> None:
        await self.real.unsubscribe(client_id, topic)

    def local_subscribers(self, topic: str) -> Collection[str]:
        return self.real.local_subscribers(topic)

    def list_topics(self) -> Sequence[str]:
        return self.real.list_topics()

    def has_topic(self, topic: str) -> bool:
        return self.real.has_topic(topic)

    async def aclose(self) -> None:
        await self.real.aclose()


class HasSomethingAlready(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.real._index.add("somebody", "t")  # pyright: ignore[reportPrivateUsage]


class CountsTwice(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[str, str]] = []

    async def subscribe(self, client_id: str, topic: str) -> None:
        await super().subscribe(client_id, topic)
        self.pairs.append((client_id, topic))

    def local_subscribers(self, topic: str) -> Collection[str]:
        return [client_id for client_id, name in self.pairs if name == topic]


class SubscribesLater(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.later: list[tuple[str, str]] = []

    async def subscribe(self, client_id: str, topic: str) -> None:
        for one in self.later:
            await super().subscribe(*one)
        self.later = [(client_id, topic)]


class UnsubscribesEverybody(Sound):
    async def unsubscribe(self, client_id: str, topic: str) -> None:
        for one in list(self.real.local_subscribers(topic)):
            await super().unsubscribe(one, topic)


class UnsubscribesFromEverything(Sound):
    async def unsubscribe(self, client_id: str, topic: str) -> None:
        for name in self.real.list_topics():
            await super().unsubscribe(client_id, name)


class RefusesWhatIsNotThere(Sound):
    async def unsubscribe(self, client_id: str, topic: str) -> None:
        if client_id not in self.real.local_subscribers(topic):
            raise KeyError(topic)
        await super().unsubscribe(client_id, topic)


class KeepsEmptyTopics(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}

    async def subscribe(self, client_id: str, topic: str) -> None:
        await super().subscribe(client_id, topic)
        self.names[topic] = None

    def list_topics(self) -> Sequence[str]:
        return tuple(self.names)


class HasTopicsForEver(KeepsEmptyTopics):
    def list_topics(self) -> Sequence[str]:
        return super(KeepsEmptyTopics, self).list_topics()

    def has_topic(self, topic: str) -> bool:
        return topic in self.names


class ListsALiveView(KeepsEmptyTopics):
    def __init__(self) -> None:
        super().__init__()
        self.live: list[str] = []

    async def subscribe(self, client_id: str, topic: str) -> None:
        await super().subscribe(client_id, topic)
        self.live[:] = self.real.list_topics()

    async def unsubscribe(self, client_id: str, topic: str) -> None:
        await super().unsubscribe(client_id, topic)
        self.live[:] = self.real.list_topics()

    def list_topics(self) -> Sequence[str]:
        return self.live


class NamesWithoutCase(Sound):
    async def subscribe(self, client_id: str, topic: str) -> None:
        await super().subscribe(client_id, topic.lower())

    def local_subscribers(self, topic: str) -> Collection[str]:
        return super().local_subscribers(topic.lower())


class PatternsAreNames(Sound):
    def local_subscribers(self, topic: str) -> Collection[str]:
        return self.real._index._exact.subscribers(topic)  # pyright: ignore[reportPrivateUsage]

    async def subscribe(self, client_id: str, topic: str) -> None:
        self.real._index._exact.add(client_id, topic)  # pyright: ignore[reportPrivateUsage]

    async def unsubscribe(self, client_id: str, topic: str) -> None:
        self.real._index._exact.remove(client_id, topic)  # pyright: ignore[reportPrivateUsage]


class PatternsOfTheShell(Sound):
    def local_subscribers(self, topic: str) -> Collection[str]:
        found = dict.fromkeys(super().local_subscribers(topic))
        for name in self.real.list_topics():
            if name != topic and fnmatchcase(topic, name):
                found.update(dict.fromkeys(super().local_subscribers(name)))
        return list(found)


class TellsMoreThanThereAre(Sound):
    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        return await super().publish(attrs.evolve(envelope, exclude=None))


class GuessesHigh(Sound):
    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        result = await super().publish(envelope)
        return attrs.evolve(result, capability="estimate", matched_local=result.matched_local + 1)


class KnowsTheUnknown(Sound):
    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        return attrs.evolve(await super().publish(envelope), capability="unknown")


class NobodyIsAFailure(Sound):
    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        result = await super().publish(envelope)
        return result if result.matched_local else PublishResult.failure("ADAPTER_ERROR")


class DeliversItself(Sound):
    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        result = await super().publish(envelope)
        return attrs.evolve(result, delivered=result.matched_local)


class LeavesOutForEver(Sound):
    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        result = await super().publish(envelope)
        if envelope.exclude is not None:
            await self.unsubscribe(envelope.exclude, envelope.topic)
        return result


class NeedsAPayload(Sound):
    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        assert envelope.payload is not None
        return await super().publish(envelope)


class OneAtATime(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.busy = False

    async def subscribe(self, client_id: str, topic: str) -> None:
        if self.busy:
            raise trio.BusyResourceError("another one is at it")
        self.busy = True
        await trio.lowlevel.checkpoint()
        await super().subscribe(client_id, topic)
        self.busy = False


class StuckAfterACancellation(OneAtATime):
    async def subscribe(self, client_id: str, topic: str) -> None:
        if self.busy:
            await trio.sleep_forever()
        await super().subscribe(client_id, topic)


class RemembersTheUndone(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.meant: set[tuple[str, str]] = set()

    async def subscribe(self, client_id: str, topic: str) -> None:
        await super().subscribe(client_id, topic)
        await trio.lowlevel.checkpoint()
        self.meant.add((client_id, topic))

    async def unsubscribe(self, client_id: str, topic: str) -> None:
        if (client_id, topic) in self.meant:
            self.meant.remove((client_id, topic))
            await super().unsubscribe(client_id, topic)


class ForgetsTheCrowd(Sound):
    def local_subscribers(self, topic: str) -> Collection[str]:
        return list(super().local_subscribers(topic))[:100]


class ClosesOnce(Sound):
    closed = False

    async def aclose(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        self.closed = True


class RefusesWhenItIsClosed(Sound):
    """As it may be."""

    closed = False

    async def aclose(self) -> None:
        self.closed = True

    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        if self.closed:
            raise trio.ClosedResourceError
        return await super().publish(envelope)


class CannotSayThatItIsClosed(ClosesOnce):
    async def aclose(self) -> None:
        self.closed = True

    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        return await super().publish(envelope) if not self.closed else None  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


MUTANTS: list[tuple[Callable[[], PubSubDriver], str]] = [
    (HasSomethingAlready, "a new driver lists no topics"),
    (CountsTwice, "subscribing again changes nothing"),
    (SubscribesLater, "when subscribe returns"),
    (UnsubscribesEverybody, "and the others stay"),
    (UnsubscribesFromEverything, "about one topic alone"),
    (RefusesWhatIsNotThere, "t"),
    (KeepsEmptyTopics, "and is listed no more"),
    (HasTopicsForEver, "gone with its last subscriber"),
    (ListsALiveView, "does not change"),
    (NamesWithoutCase, "is a topic of its own"),
    (PatternsAreNames, "matched by topic and pattern"),
    (PatternsOfTheShell, "is a topic of its own"),
    (TellsMoreThanThereAre, "matched_local is the 2 subscribers"),
    (GuessesHigh, "not above what is there"),
    (KnowsTheUnknown, "0 where it is unknown"),
    (NobodyIsAFailure, "with the broker there succeeds"),
    (DeliversItself, "delivers nothing itself"),
    (LeavesOutForEver, "matched_local is the 3 subscribers"),
    (NeedsAPayload, ""),
    (OneAtATime, "another one is at it"),
    (StuckAfterACancellation, "every call ends"),
    (RemembersTheUndone, "undoes a subscribe that was cancelled"),
    (ForgetsTheCrowd, "500 subscribers are that many"),
    (ClosesOnce, ""),
    (CannotSayThatItIsClosed, "also when it is closed"),
]


def factory(make: Callable[[], PubSubDriver]) -> Callable[[], AbstractAsyncContextManager[PubSubDriver]]:
    @asynccontextmanager
    async def open_driver() -> AsyncGenerator[PubSubDriver]:
        yield make()

    return open_driver


@pytest.mark.parametrize(("make", "promise"), MUTANTS, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_driver_that_breaks_a_promise_is_found_out(
    autojump_clock: MockClock, make: Callable[[], PubSubDriver], promise: str
) -> None:
    with pytest.raises(Exception) as broken:  # noqa: PT011 - what the driver itself raises comes out as it is
        await check_pubsub_driver(factory(make))
    assert promise in str(broken.value)
    assert broken.value.__notes__[0].startswith("while checking: ")


def unknown() -> PubSubDriver:
    driver = ScriptedDriver()
    driver.answer = PublishResult(ok=True, capability="unknown")
    return driver


def slow() -> PubSubDriver:
    driver = ScriptedDriver()
    driver.pause = 0.01
    return driver


@pytest.mark.parametrize(
    "make",
    [
        Sound,
        RefusesWhenItIsClosed,
        MemoryPubSub,
        unknown,
        slow,
        lambda: MemoryBroker().driver(),
        lambda: with_broker(MemoryPubSub(), MemoryBroker().consumer()),
        lambda: with_broker(MemoryPubSub(), MemoryBroker().selective_consumer()),
    ],
)
async def test_ours_keep_every_promise(autojump_clock: MockClock, make: Callable[[], PubSubDriver]) -> None:
    await check_pubsub_driver(factory(make))
