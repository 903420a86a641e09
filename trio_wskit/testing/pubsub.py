"""Prove a pub/sub driver: `await check_pubsub_driver(open_driver)` in a test of your own.

Every check is a promise of `trio_wskit.abc.PubSubDriver`; its failure says which. Whether what it sends out arrives is
proved together with a consumer: see `check_broker_consumer`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeAlias, cast, get_args

import trio

from trio_wskit._core.patterns import TopicPattern
from trio_wskit._core.publishing import Capability, Matching, PublishEnvelope, PublishResult
from trio_wskit.abc import PubSubDriver

__all__ = ["PubSubDriverFactory", "check_pubsub_driver"]

PubSubDriverFactory: TypeAlias = "Callable[[], AbstractAsyncContextManager[PubSubDriver]]"
"""Opens a driver without subscriptions, its broker there; whatever is left of it when the block ends is dropped."""

_AT_MOST: Final = 30.0  # seconds for one check
_MANY: Final = 500


async def check_pubsub_driver(open_driver: PubSubDriverFactory) -> None:
    """Check everything that `trio_wskit.abc.PubSubDriver` promises.

    Runs in real time as well as under a clock that jumps.

    Args:
        open_driver: opens the driver under test; called once for each check. A driver that is made for `with_broker`
            comes without its consumers.

    Raises:
        AssertionError: a promise is broken; the message says which.

    Cancelled: the driver in use is dropped.
    """
    for check in _CHECKS:
        try:
            async with open_driver() as driver:
                with trio.move_on_after(_AT_MOST) as patience:
                    await check(driver)
                _expect(not patience.cancelled_caught, "every call ends")
        except Exception as broken:
            broken.add_note(f"while checking: {check.__name__[1:].replace('_', ' ')}")
            raise


def _expect(condition: object, promise: str, got: object = None) -> None:
    if not condition:
        raise AssertionError(promise if got is None else f"{promise}; got {got!r}")


def _who(driver: PubSubDriver, topic: str) -> list[str]:
    found = driver.local_subscribers(topic)
    _expect(len(found) == len(list(found)), "local_subscribers knows how many they are", found)
    return list(found)


def _same(found: Collection[str], right: Collection[str], promise: str) -> None:
    _expect(sorted(found) == sorted(right), f"{promise}: {sorted(right)!r}", sorted(found))


async def _a_new_driver_is_empty(driver: PubSubDriver) -> None:
    _expect(list(driver.list_topics()) == [], "a new driver lists no topics", driver.list_topics())
    _expect(driver.has_topic("t") is False, "a new driver has no topic")
    _same(_who(driver, "t"), [], "a topic that nobody knows has no subscribers")


async def _subscribing(driver: PubSubDriver) -> None:
    await driver.subscribe("one", "t")
    _same(_who(driver, "t"), ["one"], "who has subscribed is a local subscriber when subscribe returns")
    _expect(driver.has_topic("t") is True, "a topic with a subscriber is there")
    await driver.subscribe("two", "t")
    _same(_who(driver, "t"), ["one", "two"], "a second client joins the first")
    await driver.subscribe("one", "t")
    _same(_who(driver, "t"), ["one", "two"], "subscribing again changes nothing")
    await driver.subscribe("one", "u")
    _same(_who(driver, "u"), ["one"], "topics are apart")
    _same(driver.list_topics(), ["t", "u"], "list_topics lists each topic once")


async def _unsubscribing(driver: PubSubDriver) -> None:
    for client_id in ("one", "two"):
        for topic in ("t", "u"):
            await driver.subscribe(client_id, topic)
    await driver.unsubscribe("one", "t")
    _same(_who(driver, "t"), ["two"], "who has unsubscribed is none any more, and the others stay")
    _same(_who(driver, "u"), ["one", "two"], "unsubscribing is about one topic alone")
    await driver.unsubscribe("one", "t")
    await driver.unsubscribe("nobody", "t")
    await driver.unsubscribe("one", "never heard of")
    _same(_who(driver, "t"), ["two"], "unsubscribing what is not there changes nothing")
    before = driver.list_topics()
    await driver.unsubscribe("two", "t")
    _expect(driver.has_topic("t") is False, "a topic is gone with its last subscriber")
    _same(driver.list_topics(), ["u"], "and is listed no more")
    _same(before, ["t", "u"], "what list_topics has returned does not change")
    await driver.subscribe("two", "t")
    _same(_who(driver, "t"), ["two"], "who comes again is there again")


async def _names_are_what_they_are(driver: PubSubDriver) -> None:
    names = ("room:1", "ROOM:1", "room:1 ", "room", "room:", ":room", "room:[12]", "room:?", "комната", "r" * 128)
    for name in names:
        await driver.subscribe(f"client of {name}", name)
    for name in names:
        _same(_who(driver, name), [f"client of {name}"], f"{name!r} is a topic of its own")
    _same(driver.list_topics(), names, "names are not changed")
    for name in names:
        await driver.unsubscribe(f"client of {name}", name)
    _same(driver.list_topics(), [], "nothing is left")


async def _patterns(driver: PubSubDriver) -> None:
    for client_id, pattern in (("star", "room:*"), ("below", "room:**"), ("middle", "*:1"), ("all", "**")):
        await driver.subscribe(client_id, TopicPattern(pattern))
    await driver.subscribe("exact", "room:1")
    await driver.subscribe("star", "room:1")
    for topic, right in (
        ("room:1", ["star", "below", "middle", "all", "exact"]),
        ("room:2", ["star", "below", "all"]),
        ("room:1:typing", ["below", "all"]),
        ("room", ["all"]),
        ("hall:1", ["middle", "all"]),
        ("room:[12]", ["star", "below", "all"]),
    ):
        _same(_who(driver, topic), right, f"{topic!r} is matched by topic and pattern, each client once")
    _expect(driver.has_topic("room:*") is True, "a pattern that somebody subscribes to is there")
    _same(driver.list_topics(), ["room:*", "room:**", "*:1", "**", "room:1"], "patterns are listed as they are")
    await driver.unsubscribe("star", "room:1")
    _same(_who(driver, "room:2"), ["star", "below", "all"], "leaving a topic leaves the pattern alone")
    await driver.unsubscribe("star", TopicPattern("room:*"))
    _same(_who(driver, "room:2"), ["below", "all"], "leaving a pattern leaves the others alone")
    _expect(driver.has_topic("room:*") is False, "a pattern is gone with its last subscriber")


async def _publish(driver: PubSubDriver, envelope: PublishEnvelope) -> PublishResult:
    """Publish where all is well, and look at the shape of the result."""
    result = await driver.publish(envelope)
    _expect(isinstance(cast("object", result), PublishResult), "publish returns a PublishResult", result)
    _expect(result.ok and result.error is None, "a publish with the broker there succeeds", result)
    _expect(result.capability in get_args(Capability), "capability is exact, estimate or unknown", result)
    _expect(result.matching in get_args(Matching), "matching is exact, prefix or pattern", result)
    _expect((result.delivered, result.dropped) == (0, 0), "a driver delivers nothing itself", result)
    return result


async def _figures(driver: PubSubDriver) -> None:
    for client_id in ("one", "two", "three"):
        await driver.subscribe(client_id, "t")
    for exclude, right in ((None, 3), ("two", 2), ("nobody", 3)):
        result = await _publish(driver, PublishEnvelope("t", "NEWS", b"{}", exclude=exclude))
        match result.capability:
            case "exact":
                promise = f"matched_local is the {right} subscribers who get it"
                _expect(result.matched_local == right, promise, result.matched_local)
            case "estimate":
                _expect(0 <= result.matched_local <= right, "an estimate is not above what is there", result)
            case _:
                _expect(result.matched_local == 0, "matched_local is 0 where it is unknown", result.matched_local)
    _same(_who(driver, "t"), ["one", "two", "three"], "whom a message leaves out stays a subscriber")
    result = await _publish(driver, PublishEnvelope("nobody's", "NEWS", b"{}"))
    _expect(result.matched_local == 0, "a topic without subscribers matches none, and is no failure", result)


async def _whatever_is_published(driver: PubSubDriver) -> None:
    await driver.subscribe("one", "t")
    text = '{"text":"é\\u0000\\"🎉"}'.encode()
    for envelope in (
        PublishEnvelope("t", "NEWS"),
        PublishEnvelope("t", "NEWS", b"null"),
        PublishEnvelope("t", "НОВОСТИ", text, {"timestamp": 1, "by": {"whom": ["ü", None, 1.5]}}),
        PublishEnvelope("t", "NEWS", b'"%b"' % (b"x" * 100_000)),
        PublishEnvelope("t", "NEWS", b"[]", {}, "one", "key", "origin", "1"),
    ):
        await _publish(driver, envelope)
        _same(driver.list_topics(), ["t"], "publishing changes no subscription")


async def _at_the_same_time(driver: PubSubDriver) -> None:
    async def come_and_go(number: int) -> None:
        await driver.subscribe(f"{number}", "t")
        await driver.subscribe(f"{number}", f"t{number % 7}")
        await _publish(driver, PublishEnvelope("t", "NEWS", b"{}"))
        if number % 2:
            await driver.unsubscribe(f"{number}", "t")
        await driver.unsubscribe(f"{number}", f"t{number % 7}")

    failures: list[Exception] = []

    async def keep(number: int) -> None:
        try:
            await come_and_go(number)
        except Exception as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(keep, number)
    if failures:
        raise failures[0]
    _same(_who(driver, "t"), [str(n) for n in range(0, 50, 2)], "clients at the same time do not disturb one another")
    _same(driver.list_topics(), ["t"], "and leave nothing")


async def _cancelled(driver: PubSubDriver) -> None:
    await driver.subscribe("stays", "t")
    with trio.CancelScope() as scope:
        scope.cancel()
        await driver.subscribe("goes", "t")
        await driver.publish(PublishEnvelope("t", "NEWS", b"{}"))
    await driver.unsubscribe("goes", "t")
    _same(_who(driver, "t"), ["stays"], "unsubscribe undoes a subscribe that was cancelled")
    with trio.CancelScope() as scope:
        scope.cancel()
        await driver.unsubscribe("stays", "t")
    await driver.unsubscribe("stays", "t")
    await driver.subscribe("new", "t")
    _same(_who(driver, "t"), ["new"], "after something was cancelled the next operation works")
    await _publish(driver, PublishEnvelope("t", "NEWS", b"{}"))


async def _many_come_and_go(driver: PubSubDriver) -> None:
    clients = [f"{number}" for number in range(_MANY)]
    for client_id in clients:
        await driver.subscribe(client_id, "t")
    _same(_who(driver, "t"), clients, f"{_MANY} subscribers are that many")
    for client_id in reversed(clients):
        await driver.unsubscribe(client_id, "t")
    _expect(list(driver.list_topics()) == [], "when all have left nothing is left", driver.list_topics())


async def _closing(driver: PubSubDriver) -> None:
    await driver.subscribe("one", "t")
    await driver.aclose()
    await driver.aclose()  # no harm
    try:
        result = await driver.publish(PublishEnvelope("t", "NEWS", b"{}"))
    except Exception:  # a failure in the result, as the hub makes it
        return
    _expect(
        isinstance(cast("object", result), PublishResult),
        "publish returns a PublishResult, also when it is closed",
        result,
    )


_CHECKS: Final = (
    _a_new_driver_is_empty,
    _subscribing,
    _unsubscribing,
    _names_are_what_they_are,
    _patterns,
    _figures,
    _whatever_is_published,
    _at_the_same_time,
    _cancelled,
    _many_come_and_go,
    _closing,
)
