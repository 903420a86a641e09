"""Prove a broker's consumer: `await check_broker_consumer(open_broker)` in a test of your own.

Every check is a promise of `trio_wskit.abc.BrokerConsumer`, or `SelectiveConsumer` for one that is one; its failure
says which. Let the peer publish through the driver that belongs to the consumer: then both ends are proved.

What no test can see from outside is a buffer that grows while `deliver` waits. Look for it in the code.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol, TypeAlias, final

import trio

from trio_wskit._core.json_text import dumps, loads
from trio_wskit._core.publishing import LOCAL_META, PublishEnvelope
from trio_wskit.abc import BrokerConsumer, SelectiveConsumer
from trio_wskit.errors import PubSubError

__all__ = ["BrokerFactory", "BrokerPeer", "check_broker_consumer"]


class BrokerPeer(Protocol):
    """Somebody else at the same broker."""

    async def publish(self, envelope: PublishEnvelope) -> None:
        """Publish as another process does, and wait until the broker has it."""
        ...

    async def cut(self) -> None:
        """Break the link of the consumer under test, as a broker that falls over does. It can connect again at once."""
        ...

    async def publish_garbage(self, topic: str) -> bool:
        """Publish to the topic what nobody can decode. False where there is no such thing."""
        ...


BrokerFactory: TypeAlias = "Callable[[], AbstractAsyncContextManager[tuple[BrokerConsumer, BrokerPeer]]]"
"""Opens a consumer that does not run yet, with a peer at the same broker."""

_AT_MOST: Final = 10.0  # seconds for what must happen by itself
_QUIET: Final = 0.1  # seconds in which nothing more comes
_MANY: Final = 200


async def check_broker_consumer(open_broker: BrokerFactory) -> None:
    """Check everything that `trio_wskit.abc.BrokerConsumer` promises, and `SelectiveConsumer` for one that is one.

    Runs in real time (about three seconds) as well as under a clock that jumps.

    Args:
        open_broker: opens the consumer under test and its peer; called once for each check.

    Raises:
        AssertionError: a promise is broken; the message says which.

    Cancelled: the consumer in use is dropped.
    """
    for check in _CHECKS:
        try:
            async with open_broker() as (consumer, peer):
                if check in _SELECTIVE_CHECKS and not isinstance(consumer, SelectiveConsumer):
                    continue
                with trio.move_on_after(6 * _AT_MOST) as patience:
                    await check(_Ear(consumer), peer)
                _expect(not patience.cancelled_caught, "every call ends")
        except Exception as broken:
            broken.add_note(f"while checking: {check.__name__[1:].replace('_', ' ')}")
            raise


def _expect(condition: object, promise: str, got: object = None) -> None:
    if not condition:
        raise AssertionError(promise if got is None else f"{promise}; got {got!r}")


@final
class _Ear:
    """Runs a consumer, and hears. What the consumer does wrong meanwhile is said later, outside of it."""

    def __init__(self, consumer: BrokerConsumer) -> None:
        self._consumer = consumer
        self._seen: set[tuple[str | None, str]] = set()
        self._inside = False
        self._fault: str | None = None
        self._news = trio.Event()
        self.heard: list[PublishEnvelope] = []
        self.may_go_on = trio.Event()
        self.may_go_on.set()
        self.is_started = False
        self.has_ended = False
        self.error: Exception | None = None
        self.scope = trio.CancelScope()

    @property
    def selective(self) -> SelectiveConsumer | None:
        return self._consumer if isinstance(self._consumer, SelectiveConsumer) else None

    async def follow(self, *topics: str) -> None:
        """Have a consumer that must be told follow these topics."""
        if self.selective is not None:
            for topic in topics:
                await self.selective.follow(topic)

    def _tell(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()

    def started(self, value: None = None) -> None:
        if self.is_started:
            self._fault = "started() is called once"
        self.is_started = True
        self._tell()

    async def deliver(self, envelope: PublishEnvelope) -> None:
        if not self.is_started:
            self._fault = "started() is called before the first deliver()"
        if self._inside:
            self._fault = "deliver() is awaited before the next one, so that order is kept and nothing piles up"
        self._inside = True
        try:
            await trio.lowlevel.checkpoint()
            while not self.may_go_on.is_set():
                await self.may_go_on.wait()
            key = (envelope.origin, envelope.id or "")
            if envelope.id is None or key not in self._seen:  # as with_broker does
                self._seen.add(key)
                self.heard.append(envelope)
        finally:
            self._inside = False
            self._tell()

    async def _run(self) -> None:
        with trio.CancelScope() as self.scope:
            try:
                await self._consumer.run(self.deliver, task_status=self)
            except Exception as error:
                self.error = error
        self.has_ended = True
        self._tell()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Run it, and wait until it has started; at the end stop it."""
        failed: BaseException | None = None
        self.is_started = self.has_ended = False
        self.error = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run)
            try:
                await self.until(lambda: self.is_started or self.has_ended, "run() calls started() soon")
                _expect(self.is_started, "run() calls started() before it ends", self.error)
                yield
                self.check()
            except BaseException as error:  # bare, without the group that the nursery would make of it
                failed = error
            self.may_go_on.set()  # a consumer that shields its delivery must not hold us up
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed

    def check(self) -> None:
        _expect(self._fault is None, self._fault or "")

    async def until(self, happened: Callable[[], bool], promise: str) -> None:
        with trio.move_on_after(_AT_MOST):
            while not happened():
                await self._news.wait()
        self.check()
        _expect(happened(), promise)

    async def hears(self, count: int, promise: str) -> list[PublishEnvelope]:
        """Wait for so many envelopes, and that no more come; give and forget them."""
        with trio.move_on_after(_AT_MOST):
            while len(self.heard) < count and not self.has_ended:
                await self._news.wait()
        await trio.sleep(_QUIET)
        self.check()
        heard, self.heard = self.heard, []
        if len(heard) != count:
            ended = f"; run() had ended with {self.error!r}" if self.has_ended else ""
            raise AssertionError(f"{promise}: {count} envelopes, not {len(heard)}{ended}")
        return heard

    async def stop(self, promise: str) -> None:
        self.scope.cancel()
        await self.until(lambda: self.has_ended, promise)
        _expect(self.scope.cancelled_caught, "a consumer does not swallow a cancellation")


def _numbered(count: int, topic: str = "t") -> list[PublishEnvelope]:
    return [PublishEnvelope(topic, "NEWS", b'{"n":%d}' % n, origin="peer", id=f"{n}") for n in range(count)]


def _numbers(heard: Sequence[PublishEnvelope]) -> list[int]:
    return [loads(one.payload or b"{}").get("n", -1) for one in heard]


async def _hears_from_when_it_has_started(ear: _Ear, peer: BrokerPeer) -> None:
    await ear.follow("t")
    async with ear.running():
        await peer.publish(PublishEnvelope("t", "NEWS", b'{"n":7}', origin="peer", id="7"))
        heard = await ear.hears(1, "what is published after started() is heard")
        _expect(_numbers(heard) == [7], "what is heard is what was published", heard)


async def _in_order_and_once(ear: _Ear, peer: BrokerPeer) -> None:
    await ear.follow("t")
    async with ear.running():
        for envelope in _numbered(_MANY):
            await peer.publish(envelope)
        heard = await ear.hears(_MANY, "all of many are heard, each once")
        _expect(
            _numbers(heard) == list(range(_MANY)), "they are heard in the order of their publishing", _numbers(heard)
        )


async def _nobody_numbered_it(ear: _Ear, peer: BrokerPeer) -> None:
    await ear.follow("t")
    async with ear.running():
        for _ in range(3):
            await peer.publish(PublishEnvelope("t", "NEWS", b'{"n":1}'))
        heard = await ear.hears(3, "what has no id is heard as often as it was published")
        _expect(all(one.id is None for one in heard), "no id is made up for what has none", heard)


async def _what_is_heard_is_what_was_published(ear: _Ear, peer: BrokerPeer) -> None:
    text = '{"z":"é\\u0000\\"🎉","a":[1.5,-0.25,9007199254740993,null,true,{"":[]}]}'.encode()
    envelopes = (
        PublishEnvelope("t", "NEWS", origin="peer", id="1"),
        PublishEnvelope("t", "NEWS", b"null", origin="peer", id="2"),
        PublishEnvelope("t", "НОВОСТИ", text, {"timestamp": 1, "by": {"whom": ["ü", None]}}, origin="peer", id="3"),
        PublishEnvelope("t", "NEWS", b'"%b"' % (b"x" * 100_000), origin="peer", id="4"),
        PublishEnvelope("t", "NEWS", b"[]", {}, "018f-client", None, "peer", "5"),
        PublishEnvelope("t:room/1.a_b-c", "NEWS", b"0", origin="another", id="6"),
    )
    await ear.follow("t", "t:room/1.a_b-c")
    async with ear.running():
        for envelope in envelopes:
            await peer.publish(envelope)
        heard = await ear.hears(len(envelopes), "whatever is in it is heard")
    for sent, got in zip(envelopes, heard, strict=True):
        _expect(got.topic == sent.topic, "the topic arrives as it was", got.topic)
        _expect(got.type == sent.type, "the type arrives as it was", got.type)
        if sent.payload is None:
            _expect(got.payload is None, "a message without payload has none, and no null either", got.payload)
        else:
            same = got.payload is not None and dumps(loads(got.payload)) == dumps(loads(sent.payload))
            _expect(same, "the payload arrives as it was, key for key", (got.payload or b"")[:200])
        meta = dict(got.meta)
        exclude = meta.pop(LOCAL_META, None) or got.exclude
        _expect(meta == sent.meta, "the meta arrives as it was", meta)
        _expect(exclude == sent.exclude, "whom it leaves out is told, in exclude or the meta", exclude)
        stamp = (got.origin, got.id)
        _expect(stamp == (sent.origin, sent.id), "origin and id arrive as they were: they stop loops", stamp)


async def _a_slow_delivery(ear: _Ear, peer: BrokerPeer) -> None:
    await ear.follow("t")
    async with ear.running():
        ear.may_go_on = trio.Event()
        for envelope in _numbered(50):
            await peer.publish(envelope)
        await trio.sleep(_QUIET)
        _expect(not ear.heard, "a delivery that waits holds up the next")
        ear.may_go_on.set()
        heard = await ear.hears(50, "what came during a slow delivery is heard after it")
        _expect(_numbers(heard) == list(range(50)), "in order", _numbers(heard))


async def _garbage(ear: _Ear, peer: BrokerPeer) -> None:
    await ear.follow("t")
    async with ear.running():
        for number, envelope in enumerate(_numbered(3)):
            if not await peer.publish_garbage("t"):
                break
            await peer.publish(envelope)
            heard = await ear.hears(1, "what cannot be decoded is passed over, and what follows is heard")
            _expect(_numbers(heard) == [number], "nothing else is heard", heard)


async def _a_link_that_breaks(ear: _Ear, peer: BrokerPeer) -> None:
    await ear.follow("t")
    for number in range(3):
        async with ear.running():
            await peer.publish(PublishEnvelope("t", "NEWS", b'{"n":%d}' % number, origin="peer", id=f"{number}"))
            await ear.hears(1, "it hears, also when it is run again")
            await peer.cut()
            promise = "run() returns or raises when its link is lost: whoever supervises it must know"
            await ear.until(lambda: ear.has_ended, promise)
    async with ear.running():
        await trio.sleep(_QUIET)
        _expect(not ear.has_ended, "a link that holds goes on", ear.error)


async def _cancelled_while_it_listens(ear: _Ear, peer: BrokerPeer) -> None:
    await ear.follow("t")
    for number in range(3):
        async with ear.running():
            await peer.publish(PublishEnvelope("t", "NEWS", b"{}", origin="peer", id=f"{number}"))
            await ear.hears(1, "it can be run again after it was cancelled")
            await ear.stop("it ends when it is cancelled while it listens")


async def _cancelled_while_it_delivers(ear: _Ear, peer: BrokerPeer) -> None:
    await ear.follow("t")
    async with ear.running():
        ear.may_go_on = trio.Event()
        for envelope in _numbered(3):
            await peer.publish(envelope)
        await trio.sleep(_QUIET)
        await ear.stop("it ends when it is cancelled while it delivers")
        ear.may_go_on.set()
        await trio.sleep(_QUIET)
        _expect(not ear.heard, "it delivers nothing after it was cancelled", ear.heard)
    async with ear.running():
        await peer.publish(PublishEnvelope("t", "NEWS", b"{}", origin="peer", id="later"))
        await ear.until(lambda: any(one.id == "later" for one in ear.heard), "and hears when it is run again")


async def _hears_what_it_follows(ear: _Ear, peer: BrokerPeer) -> None:
    assert ear.selective is not None
    await ear.follow("before")
    async with ear.running():
        await ear.follow("while")
        for topic in ("before", "while", "neither", "BEFORE"):
            await peer.publish(PublishEnvelope(topic, "NEWS", b"{}", origin="peer", id=topic))
        heard = await ear.hears(2, "it hears the topics that it follows and no others")
        _expect([one.topic for one in heard] == ["before", "while"], "those two", heard)
        await ear.follow("while")
        await ear.selective.unfollow("before")
        await ear.selective.unfollow("before")
        await ear.selective.unfollow("neither")
        await trio.sleep(_QUIET)
        for topic in ("before", "while"):
            await peer.publish(PublishEnvelope(topic, "NEWS", b"{}", origin="peer", id=f"{topic} again"))
        heard = await ear.hears(1, "it does not hear what it follows no more")
        _expect(heard[0].topic == "while", "and goes on with the rest", heard)


async def _follows_at_once(ear: _Ear, peer: BrokerPeer) -> None:
    async with ear.running():
        for number in range(20):
            await ear.follow(f"t{number}")
            await peer.publish(PublishEnvelope(f"t{number}", "NEWS", b"{}", origin="peer", id=f"{number}"))
        await ear.hears(20, "what is published when follow() has returned is heard")


async def _follows_patterns(ear: _Ear, peer: BrokerPeer) -> None:
    assert ear.selective is not None
    try:
        await ear.follow("room:*", "room:1")
    except PubSubError as refused:
        _expect(refused.reason == "INVALID_TOPIC", "a broker without patterns refuses them as INVALID_TOPIC", refused)
        return
    async with ear.running():
        await ear.follow("hall:**")
        for topic in ("room:1", "room:2", "hall:1:2", "door:1"):
            await peer.publish(PublishEnvelope(topic, "NEWS", b"{}", origin="peer", id=topic))
        await trio.sleep(_QUIET)
        await ear.until(lambda: len(ear.heard) >= 3, "it hears what matches the patterns that it follows")
        # A broker's own patterns may be wider than ours: the index of the driver sorts that out.
        topics = [one.topic for one in ear.heard if one.topic != "door:1"]
        _expect(topics == ["room:1", "room:2", "hall:1:2"], "each once, and in order", topics)
        ear.heard.clear()
        await ear.selective.unfollow("room:*")
        await trio.sleep(_QUIET)
        for topic in ("room:2", "room:1"):
            await peer.publish(PublishEnvelope(topic, "NEWS", b"{}", origin="peer", id=f"{topic} again"))
        heard = await ear.hears(1, "leaving a pattern leaves the topics that it follows besides")
        _expect(heard[0].topic == "room:1", "that one", heard)


async def _remembers_what_it_follows(ear: _Ear, peer: BrokerPeer) -> None:
    assert ear.selective is not None
    await ear.follow("old", "gone")
    async with ear.running():
        await ear.follow("new")
        await peer.cut()
        await ear.until(lambda: ear.has_ended, "run() ends when its link is lost")
    with trio.move_on_after(_AT_MOST) as patience:
        await ear.follow("newer")
        await ear.selective.unfollow("gone")
    _expect(not patience.cancelled_caught, "follow() and unfollow() do not wait for a link that is down")
    async with ear.running():
        for topic in ("old", "new", "newer", "gone"):
            await peer.publish(PublishEnvelope(topic, "NEWS", b"{}", origin="peer", id=topic))
        heard = await ear.hears(3, "run() listens to all that is followed before it calls started()")
        _expect([one.topic for one in heard] == ["old", "new", "newer"], "old and new", heard)


_SELECTIVE_CHECKS: Final = (
    _follows_at_once,
    _hears_what_it_follows,
    _follows_patterns,
    _remembers_what_it_follows,
)
_CHECKS: Final = (
    _hears_from_when_it_has_started,
    _in_order_and_once,
    _nobody_numbered_it,
    _what_is_heard_is_what_was_published,
    _a_slow_delivery,
    _garbage,
    _a_link_that_breaks,
    _cancelled_while_it_listens,
    _cancelled_while_it_delivers,
    *_SELECTIVE_CHECKS,
)
