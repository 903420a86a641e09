"""A driver and its consumers as one: what others publish comes in, each once, and what we published does not come back.

What comes in goes to the subscribers of this process and nowhere else. It is never given to the driver, so nothing can
go round in a circle, however the brokers are joined.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast, final

import attrs
import trio

from trio_wskit._core.publishing import PublishEnvelope, PublishResult
from trio_wskit.abc import BrokerConsumer, BrokeredDriver, Deliver, PubSubDriver, SelectiveConsumer
from trio_wskit.errors import ConfigError, PubSubError
from trio_wskit.pubsub._supervise import ConsumerHealth, RestartPolicy, Supervisor, name_of

__all__ = ["Accept", "BrokerCounts", "BrokeredPubSub", "Transform", "with_broker"]

logger = logging.getLogger("trio_wskit")

Accept = Callable[[PublishEnvelope], bool]
Transform = Callable[[PublishEnvelope], PublishEnvelope | None]

_SKIPS_PER_PASS: Final = 64  # envelopes that go nowhere still let the others run this often


@final
@attrs.define
class BrokerCounts:
    """What became of the envelopes that consumers handed in; each is counted once.

    Attributes:
        delivered: given to the subscribers of this process, whether or not there were any.
        own: published by this process, and delivered when it did so.
        duplicates: heard before, from this consumer or another one.
        refused: not accepted by a filter, or dropped by a transform.
        failed: a filter, a transform or the delivery raised.
    """

    delivered: int = 0
    own: int = 0
    duplicates: int = 0
    refused: int = 0
    failed: int = 0


@final
class _Recent:
    """The latest ids that were heard, up to a bound."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._seen: dict[tuple[str | None, str], None] = {}

    def is_new(self, origin: str | None, id: str) -> bool:  # noqa: A002
        """True the first time. Then it is remembered until so many others have come."""
        key = (origin, id)
        seen = self._seen
        if key in seen:
            return False
        seen[key] = None
        if len(seen) > self._bound:
            del seen[next(iter(seen))]
        return True

    def __len__(self) -> int:
        return len(self._seen)


@final
class BrokeredPubSub:
    """A driver and its consumers; `with_broker` makes one. An `App` takes it for its ``pubsub``.

    Attributes:
        origin: the id by which other processes know what this one published.
        counts: what became of the envelopes that came in.
    """

    def __init__(
        self,
        driver: PubSubDriver,
        consumers: Sequence[BrokerConsumer],
        *,
        accept: Sequence[Accept],
        transform: Sequence[Transform],
        restart: RestartPolicy,
        remember: int,
        randomness: Callable[[], float],
    ) -> None:
        self.origin: str = secrets.token_hex(8)
        self.counts: BrokerCounts = BrokerCounts()
        self._driver = driver
        self._accept = accept
        self._transform = transform
        self._published = 0
        self._recent = _Recent(remember)
        self._until_pass = _SKIPS_PER_PASS
        self._missed: Callable[[], Awaitable[None]] | None = None
        self._nursery: trio.Nursery | None = None  # there while it runs
        self._telling: trio.Event | None = None  # there while those who listen are told that something was missed
        self._missed_more = False
        self._supervisors = [
            Supervisor(consumer, restart, self._look_again, self._tell_missed, randomness) for consumer in consumers
        ]
        self._selective = [consumer for consumer in consumers if isinstance(consumer, SelectiveConsumer)]
        self._followed: set[str] = set()
        self._turns: dict[str, list[trio.Event]] = {}  # who waits for whom, for each topic that is being changed
        self._changed = trio.Event()
        self._is_running = False

    # --- the driver --------------------------------------------------------------------------------------------------

    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        """Give the envelope an origin and an id, and send it on its way; as the driver does."""
        self._published += 1
        return await self._driver.publish(envelope.stamped(self.origin, str(self._published)))

    async def subscribe(self, client_id: str, topic: str) -> None:
        """Subscribe, and for the first subscriber have the consumers follow the topic; as the driver does."""
        if not self._selective:
            await self._driver.subscribe(client_id, topic)
            return
        async with self._turn(topic):
            await self._driver.subscribe(client_id, topic)
            if topic not in self._followed:
                try:
                    for consumer in self._selective:
                        await consumer.follow(topic)
                except Exception:  # a cancelled one is undone by whoever called
                    await self._leave(client_id, topic)
                    raise
                self._followed.add(topic)

    async def unsubscribe(self, client_id: str, topic: str) -> None:
        """Unsubscribe, and after the last subscriber have the consumers leave the topic; as the driver does."""
        if not self._selective:
            await self._driver.unsubscribe(client_id, topic)
            return
        async with self._turn(topic):
            await self._leave(client_id, topic)

    async def _leave(self, client_id: str, topic: str) -> None:
        await self._driver.unsubscribe(client_id, topic)
        if not self._driver.has_topic(topic):
            self._followed.discard(topic)  # first: should it fail, the next subscriber asks again
            for consumer in self._selective:
                try:
                    await consumer.unfollow(topic)
                except Exception:  # the client has left all the same, and what is heard in vain is delivered to nobody
                    logger.exception("broker consumer %s could not leave topic %s", name_of(consumer), topic)

    @asynccontextmanager
    async def _turn(self, topic: str) -> AsyncGenerator[None]:
        """One at a time for each topic, in the order in which they came."""
        queue = self._turns.setdefault(topic, [])
        mine = trio.Event()
        queue.append(mine)
        try:
            if queue[0] is not mine:
                await mine.wait()
            yield
        finally:
            queue.remove(mine)
            if queue:
                queue[0].set()  # who is at it already does not mind
            else:
                del self._turns[topic]

    def local_subscribers(self, topic: str) -> Collection[str]:
        """As the driver."""
        return self._driver.local_subscribers(topic)

    def list_topics(self) -> Sequence[str]:
        """As the driver."""
        return self._driver.list_topics()

    def has_topic(self, topic: str) -> bool:
        """As the driver."""
        return self._driver.has_topic(topic)

    async def aclose(self) -> None:
        """Close the driver. The consumers are stopped by cancelling `run`."""
        await self._driver.aclose()

    # --- the way in --------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """True while every consumer hears."""
        return all(one.state == "hearing" for one in self._supervisors)

    @property
    def health(self) -> tuple[ConsumerHealth, ...]:
        """How each consumer is doing, in the order in which they were given."""
        return tuple(one.health for one in self._supervisors)

    @property
    def epoch(self) -> int:
        """Rises each time that a consumer begins to hear: where it has risen, something may have been missed."""
        return sum(one.epoch for one in self._supervisors)

    async def wait_ready(self) -> None:
        """Wait until every consumer hears. It may be so no more when this returns. Cancelled: nothing has changed."""
        await trio.lowlevel.checkpoint()
        while not self.ready:
            await self._changed.wait()

    def _look_again(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _tell_missed(self) -> None:
        """Begin to tell; what comes in meanwhile waits."""
        self._missed_more = True
        if self._telling is None and self._missed is not None and self._nursery is not None:
            self._telling = trio.Event()
            self._nursery.start_soon(self._tell, self._missed, self._telling)

    async def _tell(self, missed: Callable[[], Awaitable[None]], told: trio.Event) -> None:
        try:
            while self._missed_more:
                self._missed_more = False
                try:
                    await missed()
                except Exception:
                    logger.exception("telling that something was missed has failed")
        finally:
            self._telling = None
            told.set()

    async def run(
        self,
        deliver: Deliver,
        *,
        missed: Callable[[], Awaitable[None]] | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run the consumers, and run again those that end, until cancelled.

        Args:
            deliver: gives an envelope to the subscribers of this process. What it raises is logged.
            missed: awaited when a consumer hears again after it was deaf, before anything newer is delivered.
            task_status: told when each consumer hears, or its first attempt has failed.

        Raises:
            PubSubError: ADAPTER_ERROR: a consumer was given up, and the policy's ``then`` is ``fail``.
            RuntimeError: it runs already.

        Cancelled: what is being delivered may have reached some subscribers only.
        """
        if self._is_running:
            raise RuntimeError("it runs already: one app to each with_broker()")
        self._is_running = True
        self._missed = missed
        failed: PubSubError | None = None

        async def heard(envelope: PublishEnvelope) -> None:
            await self._heard(envelope, deliver)

        async def supervise(supervisor: Supervisor) -> None:
            nonlocal failed
            try:
                await supervisor.run(heard)
            except PubSubError as error:  # bare, without the group that the nursery would make of it
                failed = error
                nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for supervisor in self._supervisors:
                    nursery.start_soon(supervise, supervisor)
                while not all(one.was_tried for one in self._supervisors):
                    await self._changed.wait()
                task_status.started()
        finally:
            self._is_running = False
            self._missed = self._nursery = None
            self._look_again()
        if failed is not None:
            raise failed

    async def _heard(self, envelope: PublishEnvelope, deliver: Deliver) -> None:
        counts = self.counts
        if envelope.origin == self.origin:
            counts.own += 1
        elif envelope.id is not None and not self._recent.is_new(envelope.origin, envelope.id):
            counts.duplicates += 1
        else:
            try:
                found = self._sifted(envelope)
                if found is not None:
                    while self._telling is not None:
                        await self._telling.wait()
                    await deliver(found)
                    counts.delivered += 1
                    return
                counts.refused += 1
            except Exception:
                counts.failed += 1
                if not counts.failed & (counts.failed - 1):  # a bug fails each time: tell 1, 2, 4, 8, …
                    logger.exception(
                        "an envelope of topic %s from a broker is lost; %d so far", envelope.topic, counts.failed
                    )
        self._until_pass -= 1
        if self._until_pass > 0:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._until_pass = _SKIPS_PER_PASS
            await trio.lowlevel.checkpoint()

    def _sifted(self, envelope: PublishEnvelope) -> PublishEnvelope | None:
        if not all(accepts(envelope) for accepts in self._accept):
            return None
        for transform in self._transform:
            found = transform(envelope)
            if found is None:
                return None
            envelope = found
        return envelope


def with_broker(
    driver: PubSubDriver,
    *consumers: BrokerConsumer,
    accept: Accept | Iterable[Accept] = (),
    transform: Transform | Iterable[Transform] = (),
    restart: RestartPolicy | None = None,
    remember: int = 4096,
    randomness: Callable[[], float] = random.random,
) -> BrokeredPubSub:
    """Join a driver, which sends out, and consumers, which listen, to what an `App` takes for its ``pubsub``.

    What this process publishes is delivered here at once, and not again when a broker gives it back. What others
    publish is delivered once, however many consumers hear it: envelopes are told apart by origin and id.

    Args:
        driver: the index of this process' subscriptions, and the way out.
        consumers: the ways in; at least one.
        accept: one filter or several, asked in order: an envelope for which one gives False is not delivered.
        transform: one function or several, applied in order to what was accepted: each gives an envelope, or None to
            drop it. Filters and transforms never wait; where one raises, the envelope is skipped.
        restart: when a consumer that has ended is run again.
        remember: how many envelopes back a duplicate is found; each takes about 300 bytes.
        randomness: gives numbers from 0 to 1, for the back-off.

    Raises:
        ConfigError: an argument is of the wrong kind.
    """
    if not consumers:
        raise ConfigError("with_broker() takes at least one consumer; a driver alone needs no with_broker()")
    if isinstance(driver, BrokeredDriver):
        raise ConfigError("with_broker() takes a driver without a broker: give all consumers to one with_broker()")
    for consumer in consumers:
        if not callable(getattr(cast("object", consumer), "run", None)):
            raise ConfigError(f"with_broker() takes consumers, and {consumer!r} has no run()")
    policy = RestartPolicy() if restart is None else restart
    if not isinstance(cast("object", policy), RestartPolicy):
        raise ConfigError(f"with_broker(restart=…) takes a RestartPolicy, not {restart!r}")
    if not isinstance(cast("object", remember), int) or isinstance(remember, bool) or remember < 1:
        raise ConfigError(f"with_broker(remember=…) takes a whole number above 0, not {remember!r}")
    return BrokeredPubSub(
        driver,
        consumers,
        accept=_functions("accept", accept),
        transform=_functions("transform", transform),
        restart=policy,
        remember=remember,
        randomness=randomness,
    )


def _functions(name: str, given: Any) -> tuple[Any, ...]:
    functions: tuple[Any, ...] = (given,) if callable(given) else tuple(given)
    for function in functions:
        if not callable(function):
            raise ConfigError(f"with_broker({name}=…) takes functions, not {function!r}")
    return functions
