from __future__ import annotations

from tests.pubsub.drivers import ScriptedDriver
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit.abc import PubSubDriver
from trio_wskit.pubsub import MemoryPubSub


async def subscribed(*pairs: tuple[str, str]) -> MemoryPubSub:
    """A driver with these clients and topics."""
    driver = MemoryPubSub()
    for client, topic in pairs:
        await driver.subscribe(client, topic)
    return driver


async def test_subscribers_are_those_who_subscribed_each_once_in_order() -> None:
    driver = await subscribed(("b", "t"), ("a", "t"), ("b", "t"), ("c", "u"))
    assert list(driver.local_subscribers("t")) == ["b", "a"]
    assert list(driver.local_subscribers("u")) == ["c"]


async def test_a_topic_that_nobody_knows_has_no_subscribers() -> None:
    driver = await subscribed(("a", "t"))
    assert list(driver.local_subscribers("u")) == []
    assert not driver.has_topic("u")


async def test_leaving_what_one_is_not_in_is_no_change() -> None:
    driver = await subscribed(("a", "t"))
    for client, topic in (("b", "t"), ("a", "u"), ("b", "u")):
        await driver.unsubscribe(client, topic)
    assert list(driver.local_subscribers("t")) == ["a"]
    await driver.unsubscribe("a", "t")
    await driver.unsubscribe("a", "t")
    assert list(driver.local_subscribers("t")) == []


async def test_a_topic_is_there_from_its_first_subscriber_to_its_last() -> None:
    driver = await subscribed()
    assert list(driver.list_topics()) == []
    assert not driver.has_topic("t")
    await driver.subscribe("a", "t")
    await driver.subscribe("b", "t")
    await driver.subscribe("b", "u")
    assert set(driver.list_topics()) == {"t", "u"}
    await driver.unsubscribe("a", "t")
    assert driver.has_topic("t")
    await driver.unsubscribe("b", "t")
    assert not driver.has_topic("t")
    assert list(driver.list_topics()) == ["u"]


async def test_the_list_of_topics_is_a_copy() -> None:
    driver = await subscribed(("a", "t"))
    topics = driver.list_topics()
    assert isinstance(topics, tuple)
    await driver.subscribe("a", "u")
    assert topics == ("t",)


async def test_a_publish_tells_exactly_how_many_get_it() -> None:
    driver = await subscribed(("a", "t"), ("b", "t"), ("c", "u"))
    for topic, exclude, expected in (
        ("t", None, 2),
        ("t", "a", 1),
        ("t", "c", 2),
        ("u", "c", 0),
        ("nobody", None, 0),
        ("nobody", "a", 0),
    ):
        result = await driver.publish(PublishEnvelope(topic, "SAID", exclude=exclude))
        assert (result.ok, result.capability, result.matched_local) == (True, "exact", expected)
        assert (result.delivered, result.dropped) == (0, 0)  # that is the hub's


async def test_drivers_share_nothing() -> None:
    await subscribed(("a", "t"))
    assert list((await subscribed()).list_topics()) == []


async def test_closing_a_driver_that_holds_nothing_is_no_error_however_often() -> None:
    driver = await subscribed()
    await driver.aclose()
    await driver.aclose()


async def test_it_is_a_driver_and_so_is_what_other_tests_use() -> None:
    drivers: list[PubSubDriver] = [MemoryPubSub(), ScriptedDriver()]  # the type checkers look at this
    for driver in drivers:
        await driver.subscribe("a", "t")
        assert driver.has_topic("t")
