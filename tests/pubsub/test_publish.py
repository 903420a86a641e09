from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast, get_args

import pytest
import trio
from trio.testing import MockClock

from tests.pubsub.drivers import ScriptedDriver
from tests.sessions import NOW, House, Said, Say, open_house, settle
from trio_wskit import App, ConnectionClosed, Context, PublishResult, Router, WsKitError, message
from trio_wskit._core.publishing import RETRYABLE, PublishEnvelope, PublishErrorCode
from trio_wskit.pubsub import PubSubPolicy, TopicPattern, TopicRules


@message("NUMBER")
class Number:
    n: int = 0


WRONG: Any = "x"


async def _no(*_: object) -> bool:
    return False


def _failed(error: Exception) -> ScriptedDriver:
    driver = ScriptedDriver()
    driver.failing = {"publish"}
    driver.error = error  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    return driver


def _bad_name(topic: str) -> str:
    raise KeyError(topic)


FAILURES: dict[PublishErrorCode, list[tuple[dict[str, Any], str, object]]] = {
    "VALIDATION": [
        (
            {
                "pubsub": ScriptedDriver(),
                "policy": PubSubPolicy(normalise=lambda name: name if name == "t" else _bad_name(name)),
            },
            "u",
            Said(),
        ),
        ({}, "t", Number(WRONG)),
        ({}, "no!", Said()),
        ({}, "", Said()),
        ({}, "t" * 129, Said()),
        ({}, cast("str", 5), Said()),
    ],
    "ACL_PUBLISH": [({"policy": PubSubPolicy(authorise_publish=_no)}, "t", Said())],
    "PAYLOAD_TOO_LARGE": [({"topics": TopicRules(max_message_bytes=100)}, "t", Said("x" * 100))],
    "UNSUPPORTED": [({}, "room:*", Said()), ({}, TopicPattern("**"), Said())],
    "BACKPRESSURE": [({"pubsub": _failed(trio.WouldBlock())}, "t", Said())],
    "CONNECTION_CLOSED": [
        ({"pubsub": _failed(ConnectionClosed())}, "t", Said()),
        ({"pubsub": _failed(trio.ClosedResourceError())}, "t", Said()),
        ({"pubsub": _failed(trio.BrokenResourceError())}, "t", Said()),
    ],
    "ADAPTER_ERROR": [({"pubsub": _failed(OSError())}, "t", Said())],
}


@pytest.mark.parametrize(
    ("code", "options", "topic", "what"),
    [(code, *case) for code, cases in FAILURES.items() for case in cases],
)
async def test_what_goes_wrong_at_run_time_is_in_the_result(
    autojump_clock: MockClock, code: PublishErrorCode, options: dict[str, Any], topic: str, what: object
) -> None:
    async with open_house(**options) as house:
        client = await house.connect()
        await client.session.topics.subscribe("t")
        for result in (await house.app.publish(topic, what), await client.session.publish(topic, what)):
            assert (result.ok, result.error, result.retryable) == (False, code, RETRYABLE[code])
            assert (result.matched_local, result.delivered) == (0, 0)
            assert result.cause is not None or result.details
        assert await client.heard() == []


def test_every_code_has_its_case() -> None:
    assert {*FAILURES, "STATE"} == set(get_args(PublishErrorCode))


async def test_an_app_that_is_open_no_more_publishes_nothing() -> None:
    app = App(Router())
    result = await app.publish("t", Said())
    assert (result.error, result.retryable, result.details) == ("STATE", False, {"why": "the app is not open"})


async def test_a_detached_client_of_a_closed_app_publishes_nothing(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        client = await house.connect()
    assert (await client.session.publish("t", Said())).error == "STATE"


async def test_only_so_many_publishes_wait_for_the_driver(autojump_clock: MockClock) -> None:
    driver = ScriptedDriver()
    driver.pause = 1
    results: list[PublishResult] = []

    async def publish(house: House) -> None:
        results.append(await house.app.publish("t", Said()))

    async with open_house(pubsub=driver, topics=TopicRules(max_publishing=2)) as house:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(publish, house)
            await settle()
            assert [(one.error, one.retryable, one.details) for one in results] == [
                ("BACKPRESSURE", True, {"limit": 2})
            ]
            with trio.move_on_after(0.5):
                nursery.cancel_scope.cancel()
                await trio.sleep_forever()
        driver.pause = 0
        assert (await house.app.publish("t", Said())).ok  # the cancelled ones count no more


@pytest.mark.parametrize("refusal", [lambda: WsKitError("PERMISSION_DENIED", "no"), lambda: KeyError("bug")])
async def test_a_policy_that_raises_refuses(autojump_clock: MockClock, refusal: Callable[[], Exception]) -> None:
    error = refusal()

    async def authorise(*_: object) -> bool:
        raise error

    async with open_house(policy=PubSubPolicy(authorise_publish=authorise)) as house:
        result = await house.app.publish("t", Said())
        assert (result.error, result.cause, result.details) == ("ACL_PUBLISH", error, {"topic": "t"})


async def test_the_policy_is_asked_for_context_session_and_app_alike(autojump_clock: MockClock) -> None:
    asked: list[tuple[object, str, object]] = []
    results: list[PublishResult] = []
    router = Router()

    async def authorise(client: object, topic: str, what: object) -> bool:
        asked.append((client, topic, what))
        return True

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        results.append(await ctx.publish("T", Said("ctx"), exclude_self=True, partition_key="k", meta={"a": 1}))

    driver = ScriptedDriver()
    policy = PubSubPolicy(normalise=str.lower, authorise_publish=authorise)
    async with open_house(router, policy=policy, pubsub=driver) as house:
        one, two = await house.connect(), await house.connect()
        for client in (one, two):
            await client.session.topics.subscribe("t")
        one.say("now")
        assert await one.heard() == []
        await one.session.publish("T", Said("session"))
        await house.app.publish("T", Said("app"), exclude=two.client_id, meta={"excludeClientId": one.client_id})
        assert asked == [
            (one.session, "t", Said("ctx")),
            (one.session, "t", Said("session")),
            (None, "t", Said("app")),
        ]
        assert [(r.matched_local, r.delivered, r.conflated, r.matching) for r in results] == [(1, 1, 0, "exact")]
        meta = {"timestamp": NOW, "a": 1}
        assert driver.envelopes[0] == PublishEnvelope("t", "SAID", b'{"text":"ctx"}', meta, one.client_id, "k")
        assert await one.texts() == ["session", "app"]
        assert [(got["payload"]["text"], got["meta"]) for got in await two.heard()] == [
            ("ctx", {"timestamp": NOW, "a": 1}),
            ("session", {"timestamp": NOW}),
        ]


async def test_observers_hear_of_refusals_too(autojump_clock: MockClock) -> None:
    heard: list[tuple[str, str | None]] = []
    router = Router()
    router.observe(on_publish=lambda envelope, result: heard.append((envelope.topic, result.error)))
    async with open_house(router) as house:
        await house.app.publish("a:*", Said())
        await house.app.publish("a", Said())
    assert heard == [("a:*", "UNSUPPORTED"), ("a", None)]
