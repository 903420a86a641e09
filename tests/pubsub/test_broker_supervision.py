"""A consumer that ends is run again; who listens through it learns that something was missed."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, final

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Said, open_house, settle
from trio_wskit import App, ConfigError, PubSubError, Router, open_app
from trio_wskit._core.backoff import Backoff
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit.abc import Deliver
from trio_wskit.pubsub import BrokeredPubSub, MemoryBroker, MemoryPubSub, RestartPolicy, TopicPattern, with_broker

Step = Callable[["Scripted", Deliver, "trio.TaskStatus[None]"], Awaitable[None]]


@final
class Scripted:
    """A consumer whose every run is a step of a script; the last one is repeated.

    Attributes:
        runs: when each run began.
        running: how many run now.
    """

    def __init__(self, *steps: Step) -> None:
        self.steps = steps
        self.runs: list[float] = []
        self.running = 0

    async def run(self, deliver: Deliver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.runs.append(trio.current_time())
        self.running += 1
        assert self.running == 1
        try:
            await self.steps[min(len(self.runs), len(self.steps)) - 1](self, deliver, task_status)
        finally:
            self.running -= 1


async def hears(_: Scripted, deliver: Deliver, status: trio.TaskStatus[None]) -> None:
    status.started()
    await deliver(PublishEnvelope("t", "SAID", b'{"text":"hello"}'))
    await trio.sleep_forever()


async def hears_for_a_second(_: Scripted, deliver: Deliver, status: trio.TaskStatus[None]) -> None:
    status.started()
    await trio.sleep(1)
    raise OSError("lost")


async def returns(_: Scripted, deliver: Deliver, status: trio.TaskStatus[None]) -> None:
    status.started()
    await trio.sleep(1)


async def fails(*_: object) -> None:
    await trio.lowlevel.checkpoint()
    raise OSError("refused")


async def fails_in_a_group(*_: object) -> None:
    raise ExceptionGroup("several", [OSError("lost"), ExceptionGroup("more", [EOFError()])])


async def hangs(*_: object) -> None:
    await trio.sleep_forever()


async def delivers_too_early(_: Scripted, deliver: Deliver, status: trio.TaskStatus[None]) -> None:
    await deliver(PublishEnvelope("t", "SAID"))


async def starts_twice(_: Scripted, deliver: Deliver, status: trio.TaskStatus[None]) -> None:
    status.started()
    status.started()


SECOND: Final = Backoff(initial_delay=1, max_delay=8)


def broker_of(*consumers: Scripted, **policy: Any) -> BrokeredPubSub:
    policy.setdefault("backoff", SECOND)
    restart = RestartPolicy(**policy)
    return with_broker(MemoryPubSub(), *consumers, restart=restart, randomness=lambda: 1.0)


# --- run again -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (fails, "refused"),
        (fails_in_a_group, "several"),
        (delivers_too_early, "before task_status.started"),
        (starts_twice, "twice"),
    ],
)
async def test_a_consumer_that_fails_is_run_again_with_more_patience_each_time(
    autojump_clock: MockClock, step: Step, words: str
) -> None:
    consumer = Scripted(step, step, step, step, step, step, hears)
    pubsub = broker_of(consumer)
    async with open_house(pubsub=pubsub) as house:
        (health,) = pubsub.health
        assert words in str(health.error)
        assert (health.name, health.state, health.failures) == ("Scripted", "waiting", 1)
        await house.app.wait_ready()
        begun = [at - consumer.runs[0] for at in consumer.runs]
        assert begun == [0, 1, 3, 7, 15, 23, 31]
        assert len(house.logged()) == 6


async def test_who_comes_back_does_so_at_a_moment_of_its_own(autojump_clock: MockClock) -> None:
    chances = iter([0.5, 0.25, 0.0])
    consumer = Scripted(fails, fails, fails, hears)
    pubsub = with_broker(
        MemoryPubSub(), consumer, restart=RestartPolicy(backoff=SECOND), randomness=lambda: next(chances)
    )
    async with open_house(pubsub=pubsub) as house:
        await house.app.wait_ready()
        assert [at - consumer.runs[0] for at in consumer.runs] == [0, 0.5, 1, 1]
        house.logged()


@pytest.mark.parametrize("step", [hears_for_a_second, returns])
async def test_one_that_is_lost_is_run_again_and_an_epoch_more_is_counted(
    autojump_clock: MockClock, step: Step
) -> None:
    consumer = Scripted(step, step, hears)
    pubsub = broker_of(consumer, settled_after=1)
    async with open_house(pubsub=pubsub) as house:
        assert (pubsub.epoch, pubsub.ready, house.app.ready) == (1, True, True)
        await trio.sleep(1.5)
        assert (pubsub.epoch, pubsub.ready, house.app.ready) == (1, False, False)
        await trio.sleep(1)
        assert (pubsub.epoch, pubsub.ready, house.app.ready) == (2, True, True)
        await trio.sleep(10)
        assert [at - consumer.runs[0] for at in consumer.runs] == [0, 2, 4]  # each had heard well: a row of one
        assert pubsub.epoch == 3
        assert len(house.logged()) == 2


async def test_one_that_hears_for_a_moment_only_is_not_well_yet(autojump_clock: MockClock) -> None:
    consumer = Scripted(hears_for_a_second)
    async with open_house(pubsub=broker_of(consumer, settled_after=1.5)) as house:
        await trio.sleep(9.5)
        assert [at - consumer.runs[0] for at in consumer.runs] == [0, 2, 5]
        await trio.sleep(2)
        assert len(consumer.runs) == 4
        house.logged()


async def test_an_attempt_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    consumer = Scripted(hangs, hangs, hears)
    pubsub = broker_of(consumer, start_timeout=5)
    began = trio.current_time()
    async with open_house(pubsub=pubsub) as house:
        assert trio.current_time() - began == 5
        assert isinstance(pubsub.health[0].error, trio.TooSlowError)
        await house.app.wait_ready()
        assert trio.current_time() - began == 5 + 1 + 5 + 2
        await trio.sleep(100)  # the limit is for the start alone
        assert house.app.ready
        house.logged()


async def test_what_was_missed_is_told_before_anything_newer_is_delivered(autojump_clock: MockClock) -> None:
    happened: list[str] = []

    async def speaks_at_once(_: Scripted, deliver: Deliver, status: trio.TaskStatus[None]) -> None:
        status.started()
        await deliver(PublishEnvelope("t", "SAID"))
        await trio.sleep(1)

    async def deliver(_: PublishEnvelope) -> None:
        happened.append("delivered")

    async def missed() -> None:
        await trio.sleep(0.5)
        happened.append("told")

    pubsub = broker_of(Scripted(speaks_at_once, speaks_at_once, speaks_at_once, hears), settled_after=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(pubsub.run, deliver, missed=missed))
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert happened == ["delivered", *("told", "delivered") * 3]


async def test_it_is_told_even_where_nothing_newer_comes(autojump_clock: MockClock) -> None:
    told: list[float] = []

    async def missed() -> None:
        told.append(trio.current_time())

    async def deliver(_: PublishEnvelope) -> None:
        raise AssertionError("nothing comes")

    pubsub = broker_of(Scripted(returns), settled_after=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(pubsub.run, deliver, missed=missed))
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert told == [2, 4]


async def test_whoever_hears_waits_while_it_is_told_and_what_is_missed_then_is_told_too(
    autojump_clock: MockClock,
) -> None:
    happened: list[tuple[float, str]] = []

    def note(what: str) -> None:
        happened.append((trio.current_time(), what))

    async def speaks_at_three(_: Scripted, deliver: Deliver, status: trio.TaskStatus[None]) -> None:
        status.started()
        await trio.sleep(3)
        await deliver(PublishEnvelope("t", "SAID"))
        await trio.sleep_forever()

    async def lost_later(_: Scripted, deliver: Deliver, status: trio.TaskStatus[None]) -> None:
        status.started()
        await trio.sleep(2)

    async def deliver(_: PublishEnvelope) -> None:
        note("delivered")

    async def missed() -> None:
        note("telling")
        await trio.sleep(4)

    async def is_quiet(_: Scripted, deliver: Deliver, status: trio.TaskStatus[None]) -> None:
        status.started()
        await trio.sleep_forever()

    pubsub = broker_of(Scripted(speaks_at_three), Scripted(returns, is_quiet), Scripted(lost_later, is_quiet))
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(pubsub.run, deliver, missed=missed))
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert happened == [(2, "telling"), (6, "telling"), (10, "delivered")]


async def test_telling_of_it_may_fail(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async def missed() -> None:
        raise KeyError("bug")

    delivered: list[PublishEnvelope] = []

    async def deliver(envelope: PublishEnvelope) -> None:
        delivered.append(envelope)

    pubsub = broker_of(Scripted(returns, hears))
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(pubsub.run, deliver, missed=missed))
        await trio.sleep(3)
        assert pubsub.ready
        nursery.cancel_scope.cancel()
    assert "telling that something was missed has failed" in caplog.text
    assert len(delivered) == 1


async def test_nobody_needs_to_be_told(autojump_clock: MockClock) -> None:
    delivered: list[PublishEnvelope] = []

    async def deliver(envelope: PublishEnvelope) -> None:
        delivered.append(envelope)

    pubsub = broker_of(Scripted(returns, hears))
    async with trio.open_nursery() as nursery:
        await nursery.start(pubsub.run, deliver)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    assert (pubsub.epoch, len(delivered)) == (2, 1)


async def test_telling_ends_with_the_app(autojump_clock: MockClock) -> None:
    async def missed() -> None:
        await trio.sleep_forever()

    async def deliver(_: PublishEnvelope) -> None:
        raise AssertionError("it is still being told")

    pubsub = broker_of(Scripted(returns, hears))
    for _ in range(2):
        with trio.move_on_after(5):
            await pubsub.run(deliver, missed=missed)
    assert pubsub._telling is None  # pyright: ignore[reportPrivateUsage]


# --- the end of patience ---------------------------------------------------------------------------------------------


async def test_an_app_whose_consumer_is_gone_goes_on_and_is_not_ready(autojump_clock: MockClock) -> None:
    gone, well = Scripted(fails), Scripted(hears)
    pubsub = broker_of(gone, well, max_attempts=3)
    async with open_house(pubsub=pubsub) as house:
        client = await house.connect()  # and takes new clients
        await client.session.topics.subscribe("t")
        await trio.sleep(500)
        assert [one.state for one in pubsub.health] == ["gone", "hearing"]
        assert (len(gone.runs), len(well.runs)) == (3, 1)
        assert not house.app.ready
        await house.app.publish("t", Said("hello"))
        assert await client.texts() == ["hello"]
        assert len(house.logged()) == 3
    assert [one.state for one in pubsub.health] == ["stopped", "stopped"]


async def test_an_app_may_fail_with_its_consumer(autojump_clock: MockClock) -> None:
    consumer = Scripted(hears_for_a_second, fails)
    pubsub = broker_of(consumer, max_attempts=2, then="fail")
    app = App(Router(), pubsub=pubsub)
    with pytest.raises(PubSubError, match="Scripted has failed 2 times in a row") as failed:
        async with open_app(app):
            await trio.sleep_forever()
    assert failed.value.reason == "ADAPTER_ERROR"
    assert failed.value.details["failures"] == 2
    assert str(failed.value.__cause__) == "refused"
    assert (app.is_open, pubsub.ready) == (False, False)


async def test_an_app_that_fails_says_goodbye(autojump_clock: MockClock) -> None:
    pubsub = broker_of(Scripted(hears_for_a_second), max_attempts=1, then="fail")
    closed: list[tuple[int, str]] = []

    async def live() -> None:
        async with open_house(pubsub=pubsub) as house:
            client = await house.connect()
            with trio.CancelScope(shield=True):
                closed.append(await client.closed())
            await trio.sleep_forever()

    with pytest.raises(PubSubError):
        await live()
    assert closed == [(1001, "going away")]


async def test_an_app_may_fail_before_it_is_open(autojump_clock: MockClock) -> None:
    app = App(Router(), pubsub=broker_of(Scripted(fails), max_attempts=1, then="fail"))
    for _ in range(2):  # and may be tried again
        with pytest.raises(PubSubError, match="1 times"):
            async with open_app(app):
                raise AssertionError("it never opens")


async def test_a_consumer_that_has_been_well_may_fail_as_often_as_at_first(autojump_clock: MockClock) -> None:
    consumer = Scripted(fails, hears_for_a_second, fails, fails, hears)
    pubsub = broker_of(consumer, max_attempts=3, settled_after=1, then="fail")
    with pytest.raises(PubSubError):  # the third in the row that begins with the second
        async with open_app(App(Router(), pubsub=pubsub)):
            await trio.sleep(500)
    assert len(consumer.runs) == 4


# --- open, ready, closed ---------------------------------------------------------------------------------------------


async def test_an_open_app_hears_already(autojump_clock: MockClock) -> None:
    async def slowly(_: Scripted, deliver: Deliver, status: trio.TaskStatus[None]) -> None:
        await trio.sleep(3)
        status.started()
        await trio.sleep_forever()

    async with open_house(pubsub=broker_of(Scripted(slowly), Scripted(hears))) as house:
        assert trio.current_time() == 3
        assert house.app.ready


async def test_ready_means_that_all_hear(autojump_clock: MockClock) -> None:
    pubsub = broker_of(Scripted(hears), Scripted(hears_for_a_second, fails, hears))
    became: list[float] = []
    async with open_house(pubsub=pubsub) as house:
        await trio.sleep(1.5)
        assert not house.app.ready

        async def wait() -> None:
            await house.app.wait_ready()
            became.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await trio.sleep(1)
            assert became == []
        assert became == [1 + 1 + 2] * 2
        house.logged()


async def test_the_epoch_rises_with_that_of_any_consumer(autojump_clock: MockClock) -> None:
    pubsub = broker_of(Scripted(hears), Scripted(returns, returns, hears), settled_after=1)
    async with open_house(pubsub=pubsub) as house:
        epochs = [pubsub.epoch]
        await trio.sleep(0.5)
        for _ in range(2):
            await trio.sleep(2)
            epochs.append(pubsub.epoch)
        assert epochs == [2, 3, 4]
        assert [one.epoch for one in pubsub.health] == [1, 3]
        house.logged()


async def test_an_app_without_a_broker_is_ready_when_it_is_open(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        await house.app.wait_ready()
    with pytest.raises(RuntimeError, match="not open"):
        await house.app.wait_ready()


async def test_waiting_to_be_ready_can_be_given_up(autojump_clock: MockClock) -> None:
    async with open_house(pubsub=broker_of(Scripted(fails, hangs), start_timeout=math.inf)) as house:
        with trio.move_on_after(50) as scope:
            await house.app.wait_ready()
        assert scope.cancelled_caught
        house.logged()


async def test_a_closed_app_has_stopped_its_consumers_and_may_open_again(autojump_clock: MockClock) -> None:
    consumer = Scripted(hears)
    pubsub = broker_of(consumer)
    app = App(Router(), pubsub=pubsub)
    for _ in range(2):
        async with open_app(app):
            assert (consumer.running, app.ready) == (1, True)
        assert (consumer.running, app.ready, pubsub.health[0].state) == (0, False, "stopped")
    assert pubsub.epoch == 2


async def test_one_broker_is_for_one_app(autojump_clock: MockClock) -> None:
    pubsub = broker_of(Scripted(hears))
    async with open_app(App(Router(), pubsub=pubsub)):
        with pytest.raises(RuntimeError, match="one app"):
            async with open_app(App(Router(), pubsub=pubsub)):
                pass
        assert pubsub.ready


async def test_a_broker_that_goes_and_comes_is_heard_again(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    pubsubs = [with_broker(broker.driver(), broker.consumer()) for _ in range(2)]
    async with open_house(pubsub=pubsubs[0]) as one, open_house(pubsub=pubsubs[1]) as two:
        client = await two.connect()
        await client.session.topics.subscribe("t")
        for n in range(5):
            broker.stop()
            await settle()
            assert (one.app.ready, two.app.ready) == (False, False)
            broker.start()
            for house in (one, two):
                await house.app.wait_ready()
            await one.app.publish("t", Said(str(n)))
        assert await client.texts() == list("01234")
        assert [pubsub.epoch for pubsub in pubsubs] == [6, 6]
        one.logged()
        two.logged()


async def test_who_asked_is_told_that_something_was_missed_and_who_did_not_is_not(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    pubsubs = [with_broker(broker.driver(), broker.consumer()) for _ in range(2)]
    async with open_house(pubsub=pubsubs[0]) as house, open_house(pubsub=pubsubs[1]) as other:
        asks, does_not = await other.connect(), await other.connect()
        for topic in ("t", TopicPattern("u:*")):
            await asks.session.topics.subscribe(topic, gaps=True)
            await does_not.session.topics.subscribe(topic)
        broker.cut()
        await settle()
        await house.app.publish("t", Said("lost"))
        for one in (house, other):
            await one.app.wait_ready()
        await house.app.publish("t", Said("heard"))
        heard = await asks.heard()
        assert sorted(one["payload"]["topic"] for one in heard[:-1]) == ["t", "u:*"]
        assert [one["type"] for one in heard] == ["$ws:gap", "$ws:gap", "SAID"]
        assert heard[-1]["payload"] == {"text": "heard"}
        assert await does_not.texts() == ["heard"]
        house.logged()
        other.logged()


async def test_a_consumer_may_have_a_name(autojump_clock: MockClock) -> None:
    consumer = Scripted(fails)
    consumer.name = "redis at eight"  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    pubsub = broker_of(consumer)
    async with open_house(pubsub=pubsub) as house:
        assert pubsub.health[0].name == "redis at eight"
        assert house.logged()[0].startswith("broker consumer redis at eight has ended")


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"max_attempts": True},
        {"max_attempts": 1.5},
        {"then": "panic"},
        {"start_timeout": 0},
        {"start_timeout": "1"},
        {"settled_after": -1},
        {"settled_after": math.nan},
        {"backoff": 1.0},
    ],
)
def test_a_policy_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RestartPolicy(**wrong)
