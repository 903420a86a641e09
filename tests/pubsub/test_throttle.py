from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Said, open_house, settle
from trio_wskit import ConfigError, PublishResult
from trio_wskit.pubsub import ThrottledPublisher, open_throttled


@final
class Press:
    """Notes what is published, and when."""

    def __init__(self) -> None:
        self.log: list[tuple[float, str, Any]] = []
        self.seconds = 0.0
        self.result = PublishResult(ok=True)
        self.error: Exception | None = None

    async def publish(self, topic: str, message: Any) -> PublishResult:
        await trio.lowlevel.checkpoint()
        self.log.append((trio.current_time(), topic, message))
        await trio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.result

    def throttled(self, window: float, *args: Any, **options: Any) -> ThrottledPublisher[Any]:
        return ThrottledPublisher(self.publish, window, *args, **options)


async def test_the_first_goes_at_once_and_then_the_last_of_each_window(autojump_clock: MockClock) -> None:
    press = Press()
    async with open_throttled(press.throttled(1)) as prices:
        for n in range(8):
            await prices.publish("a", n)
            await trio.sleep(0.3)
    assert [(round(at, 9), message) for at, _, message in press.log] == [(0, 0), (1, 3), (2, 6), (2.4, 7)]
    assert (prices.published, prices.replaced, prices.failed, prices.kept) == (4, 4, 0, 0)


async def test_every_topic_has_windows_of_its_own(autojump_clock: MockClock) -> None:
    press = Press()
    async with open_throttled(press.throttled(1)) as prices:
        await prices.publish("a", 1)
        await trio.sleep(0.4)
        await prices.publish("b", 1)
        await prices.publish("a", 2)
        await settle()
        await prices.publish("b", 2)
        await trio.sleep(5)
        assert press.log == [(0, "a", 1), (0.4, "b", 1), (1, "a", 2), (1.4, "b", 2)]


async def test_a_topic_that_was_quiet_for_a_window_goes_at_once_again(autojump_clock: MockClock) -> None:
    press = Press()
    async with open_throttled(press.throttled(1)) as prices:
        for at in (0, 1.5, 3.0):
            await trio.sleep_until(at)
            await prices.publish("a", at)
        await settle()
        assert [at for at, _, _ in press.log] == [0, 1.5, 3.0]


async def test_a_batch_is_joined_by_the_application(autojump_clock: MockClock) -> None:
    press = Press()

    def join(messages: Sequence[list[int]]) -> list[int]:
        return [n for message in messages for n in message]

    async with open_throttled(press.throttled(1, "batch", join=join)) as events:
        for n in range(5):
            await events.publish("a", [n])
            await trio.sleep(0.3)
    assert [message for _, _, message in press.log] == [[0], [1, 2, 3], [4]]
    assert (events.published, events.joined, events.replaced) == (3, 3, 0)


async def test_what_is_kept_is_published_at_the_end_and_waited_for(autojump_clock: MockClock) -> None:
    press = Press()
    press.seconds = 0.5
    async with open_throttled(press.throttled(60)) as prices:
        for topic in "ab":
            await prices.publish(topic, 1)
        await trio.sleep(2)
        for topic in "ab":
            await prices.publish(topic, 2)
            await prices.publish(topic, 3)
    assert trio.current_time() == 3
    assert [(topic, message) for _, topic, message in press.log] == [("a", 1), ("b", 1), ("a", 3), ("b", 3)]
    with pytest.raises(trio.ClosedResourceError):
        await prices.publish("a", 4)


async def test_who_is_cancelled_publishes_no_more(autojump_clock: MockClock) -> None:
    press = Press()
    with trio.move_on_after(1) as scope:
        async with open_throttled(press.throttled(60)) as prices:
            await prices.publish("a", 1)
            await settle()
            await prices.publish("a", 2)
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert [message for _, _, message in press.log] == [1]


async def test_an_exception_leaves_the_block_as_it_is_and_nothing_more_is_published(autojump_clock: MockClock) -> None:
    press = Press()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with open_throttled(press.throttled(60)) as prices:
            await prices.publish("a", 1)
            await settle()
            await prices.publish("a", 2)
            raise ZeroDivisionError
    assert [message for _, _, message in press.log] == [1]


@pytest.mark.parametrize("what", ["publish", "join"])
async def test_what_publish_or_join_raises_ends_the_block(autojump_clock: MockClock, what: str) -> None:
    press = Press()
    error = OSError("out of paper")
    if what == "publish":
        press.error = error

    def join(messages: Sequence[Any]) -> Any:
        raise error

    events = press.throttled(1, "batch", join=join)
    with pytest.raises(OSError, match="out of paper"):  # noqa: PT012
        async with open_throttled(events):
            for _ in range(3):
                await events.publish("a", 1)
            await trio.sleep_forever()
    with pytest.raises(trio.ClosedResourceError):
        events.publish_nowait("a", 1)


async def test_a_failure_is_counted_and_the_next_message_goes_all_the_same(autojump_clock: MockClock) -> None:
    press = Press()
    press.result = PublishResult.failure("ADAPTER_ERROR")
    async with open_throttled(press.throttled(1)) as prices:
        for n in range(2):
            await prices.publish("a", n)
            await settle()
    assert (prices.published, prices.failed) == (2, 2)


async def test_topics_are_bounded_and_who_comes_then_waits(autojump_clock: MockClock) -> None:
    press = Press()
    async with open_throttled(press.throttled(1, max_topics=2)) as prices:
        await prices.publish("a", 1)
        await prices.publish("b", 1)
        await settle()
        with pytest.raises(trio.WouldBlock):
            prices.publish_nowait("c", 1)
        prices.publish_nowait("a", 2)  # it has its window
        with trio.move_on_after(0.5) as scope:
            await prices.publish("c", 0)
        assert scope.cancelled_caught
        await prices.publish("c", 1)
        assert trio.current_time() == 1  # "b" had nothing more
    assert {topic: message for _, topic, message in press.log} == {"a": 2, "b": 1, "c": 1}


async def test_messages_of_a_batch_are_bounded_and_who_comes_then_waits(autojump_clock: MockClock) -> None:
    press = Press()
    async with open_throttled(press.throttled(1, "batch", join=list, max_messages=2)) as events:
        for n in range(6):
            await events.publish("a", n)
            assert events.kept <= 2
            await settle()
        assert trio.current_time() == 2
    assert [message for _, _, message in press.log] == [0, [1, 2], [3, 4], 5]


async def test_a_close_ends_the_waiting_for_room(autojump_clock: MockClock) -> None:
    press = Press()
    async with trio.open_nursery() as nursery, open_throttled(press.throttled(1, max_topics=1)) as prices:
        await prices.publish("a", 1)

        async def late() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await prices.publish("b", 1)

        nursery.start_soon(late)
        await settle()


async def test_a_publish_that_takes_longer_than_a_window_is_never_overtaken(autojump_clock: MockClock) -> None:
    press = Press()
    press.seconds = 3
    async with open_throttled(press.throttled(1)) as prices:
        for n in range(5):
            await prices.publish("a", n)
            await trio.sleep(0.9)
    assert [(at, message) for at, _, message in press.log] == [(0, 0), (3, 3), (6, 4)]


async def test_thousands_of_topics_let_others_run(autojump_clock: MockClock) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async def publish(topic: str, message: Any) -> PublishResult:
        return PublishResult(ok=True)

    async with trio.open_nursery() as nursery:
        async with open_throttled(ThrottledPublisher(publish, 1.0)) as prices:
            for n in range(1000):
                prices.publish_nowait(str(n), n)
            nursery.start_soon(other)
        assert turns >= 1000 // 64
        nursery.cancel_scope.cancel()


async def test_an_app_gives_one_that_publishes_to_its_topics(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        client = await house.connect()
        await client.session.topics.subscribe("t")
        async with house.app.throttled(1.0) as prices:
            for n in range(10):
                await prices.publish("t", Said(str(n)))
        assert (await client.texts())[-1] == "9"
        assert prices.published <= 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"window": 0}, "a window of a finite number"),
        ({"window": float("inf")}, "a window of a finite number"),
        ({"window": True}, "a window of a finite number"),
        ({"mode": "first"}, "'last' or 'batch'"),
        ({"mode": "batch"}, "join="),
        ({"join": list}, "join="),
        ({"max_topics": 0}, "max_topics"),
        ({"max_messages": 1.5}, "max_messages"),
        ({"publish": None}, "an async function"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(arguments: dict[str, Any], complaint: str) -> None:
    given: dict[str, Any] = {"publish": Press().publish, "window": 1, **arguments}
    with pytest.raises(ConfigError, match=complaint):
        ThrottledPublisher(**given)
