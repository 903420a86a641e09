"""Driver and consumer on a real server that is well: names, acknowledgements, and what is left behind."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.pubsub.redis_parts import channels, enveloped, gone, listening, open_parts, patterns
from tests.serving import Client, connect, until
from tests.valkey import COREDIS_RUBBISH, Server
from trio_wskit import ConfigError, PubSubError
from trio_wskit import Server as WebServer
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit.abc import BrokerConsumer, PubSubDriver, SelectiveConsumer
from trio_wskit.pubsub.redis import RedisSentinel, open_redis_pubsub

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]


@pytest.fixture
def server(shared_server: Server) -> Server:
    return shared_server


async def test_the_parts_are_what_the_seams_ask_for(server: Server) -> None:
    async with open_redis_pubsub(server.url) as (driver, consumer):
        as_driver: PubSubDriver = driver
        as_consumer: BrokerConsumer = consumer
        assert isinstance(as_consumer, SelectiveConsumer)
        assert as_driver.list_topics() == ()
    async with open_redis_pubsub(server.url, mode="wskit") as (_, all_topics):
        assert not isinstance(all_topics, SelectiveConsumer)


async def test_what_one_publishes_the_other_hears_whole_and_in_order(server: Server) -> None:
    async with listening(server.url, "room:1") as one, open_parts(server.url) as other:
        sent = [
            enveloped("1", meta={"a": [1, None]}, exclude="c1"),
            PublishEnvelope("room:1", "BARE", None, {}, origin="o", id="2"),
            *(enveloped(str(number)) for number in range(3, 100)),
        ]
        for envelope in sent:
            result = await other.driver.publish(envelope)
            assert (result.ok, result.capability, result.matched_local) == (True, "unknown", 0)
        await until(lambda: len(one.came) == len(sent))
        assert one.came == sent
        assert one.consumer.counts.received == 99


async def test_only_topics_that_are_followed_are_asked_for(server: Server) -> None:
    async with listening(server.url, "room:1") as one:
        assert channels(server) == {"ws:room:1"}
        assert patterns(server) == 0
        await one.selective.follow("room:2")
        assert channels(server) == {"ws:room:1", "ws:room:2"}
        assert await one.publish("x", "room:3")
        assert await one.publish("y", "room:2")
        await until(lambda: one.came)
        assert one.texts == ["y"]


async def test_nothing_is_missed_once_follow_has_returned(server: Server) -> None:
    async with listening(server.url) as one, open_parts(server.url) as other:
        for number in range(50):
            topic = f"t:{number}"
            await one.selective.follow(topic)
            assert await other.publish(str(number), topic)
        await until(lambda: len(one.came) == 50)
        assert one.texts == [str(number) for number in range(50)]


async def test_what_nobody_follows_any_more_is_left_and_nothing_stays_on_the_server(server: Server) -> None:
    async with listening(server.url, "a", "b", "p:*") as one:
        await one.selective.unfollow("a")
        await until(lambda: channels(server) == {"ws:b"})
        assert await one.publish("no", "a")
        assert await one.publish("yes", "b")
        await until(lambda: one.came)
        await one.selective.unfollow("b")
        await one.selective.unfollow("p:*")
        await one.selective.unfollow("p:*")
        await one.selective.unfollow("never")
        await gone(server)
        assert one.texts == ["yes"]
        assert one.errors == []


async def test_the_end_of_the_run_leaves_nothing_on_the_server(server: Server) -> None:
    async with listening(server.url, "a", "p:**"):
        assert patterns(server) == 1
    await gone(server)


async def test_follow_and_unfollow_in_quick_succession_end_as_the_last_one_says(server: Server) -> None:
    async with listening(server.url) as one:
        for _ in range(20):
            await one.selective.follow("a")
            await one.selective.unfollow("a")
            await one.selective.unfollow("b")
            await one.selective.follow("b")
        await until(lambda: channels(server) == {"ws:b"})
        await one.selective.unfollow("b")
        await one.selective.follow("a")
        assert await one.publish("1", "a")
        await until(lambda: one.texts == ["1"])
        await until(lambda: channels(server) == {"ws:a"})


async def test_thousands_of_topics_are_followed_and_left(server: Server) -> None:
    async with listening(server.url, max_wait=60, check_every=30) as one:
        names = [f"t:{number}" for number in range(4000)]
        with trio.fail_after(50):
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(one.selective.follow, name)
        assert int(server.command("PUBSUB", "NUMSUB", names[0], "ws:t:3999").split(b":")[-1]) == 1
        assert await one.publish("x", "t:3999")
        await until(lambda: one.texts == ["x"])
        for name in names:
            await one.selective.unfollow(name)
        await gone(server)


# --- patterns ---


async def test_patterns_become_those_of_redis_with_everything_else_escaped(server: Server) -> None:
    async with (
        listening(server.url, "room:*", prefix="a*[x]?\\:") as one,
        open_parts(server.url, prefix="a*[x]?\\:") as same,
        open_parts(server.url, prefix="abx?\\:") as alike,
    ):
        assert await alike.publish("no", "room:1")
        assert await same.publish("yes", "room:1")
        await until(lambda: one.came)
        assert one.texts == ["yes"]


async def test_two_patterns_that_are_one_to_redis_are_left_with_the_last(server: Server) -> None:
    async with listening(server.url, "a:*", "a:**") as one:
        assert patterns(server) == 1
        await one.selective.unfollow("a:*")
        assert await one.publish("1", "a:b:c")
        await until(lambda: one.texts == ["1"])
        await one.selective.unfollow("a:**")
        await gone(server)


async def test_a_message_that_a_topic_and_a_pattern_match_comes_twice_with_one_id(server: Server) -> None:
    async with listening(server.url, "a:b", "a:*") as one:
        assert await one.publish("1", "a:b")
        assert await one.publish("2", "a:c")
        await until(lambda: len(one.came) == 3)
        assert one.texts == ["1", "1", "2"]


async def test_shards_have_no_patterns(server: Server) -> None:
    async with listening(server.url, "a", mode="sharded") as one:
        with pytest.raises(PubSubError) as caught:
            await one.selective.follow("a:*")
        assert (caught.value.reason, caught.value.details["why"]) == ("INVALID_TOPIC", "unsupported")
        await one.selective.unfollow("a:*")
        assert await one.publish("1", "a")
        await until(lambda: one.texts == ["1"])


# --- what is no envelope ---


async def test_what_is_no_envelope_is_counted_and_skipped(server: Server) -> None:
    deep = '{"topic":"a","type":"T","v":1,"payload":' + "[" * 5000 + "]" * 5000 + "}"
    async with listening(server.url, "a", max_envelope_bytes=20_000) as one:
        for bad in (
            "garbage",
            "",
            "\x00",
            "[]",
            '{"topic":"a","type":"T"}',
            '{"topic":"a","type":"T","v":2}',
            '{"topic":"b","type":"T","v":1}',
            '{"topic":"a","type":"$ws:gap","v":1}',
            '{"topic":"a*","type":"T","v":1}',
            deep,
            '"' + "x" * 20_000 + '"',
        ):
            server.command("PUBLISH", "ws:a", bad)
        assert await one.publish("good", "a")
        await until(lambda: one.came)
        assert one.texts == ["good"]
        assert one.consumer.counts.bad == {
            "not JSON": 3,
            "not an envelope": 3,
            "another version": 2,
            "another channel": 1,
            "too deep": 1,
            "too big": 1,
        }
        assert one.errors == []


async def test_ws_kits_envelopes_are_taken_in_its_mode_alone(server: Server) -> None:
    raw = '{"topic":"room:1","payload":{"text":"x"},"type":"NEWS","meta":{"tag":"t","excludeClientId":"c"}}'
    async with (
        open_parts(server.url, mode="wskit", prefix="app:") as theirs,
        listening(server.url, "room:1", prefix="app:") as ours,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(theirs.supervise)
        server.command("PUBLISH", "app:room:1", raw)
        assert await ours.publish("2")
        await until(lambda: len(theirs.came) == 2 and ours.came)
        assert theirs.came[0] == PublishEnvelope("room:1", "NEWS", b'{"text":"x"}', {"tag": "t"}, "c")
        assert theirs.came[1] == enveloped("2")
        assert ours.texts == ["2"]
        assert ours.consumer.counts.bad == {"another version": 1}
        nursery.cancel_scope.cancel()


async def test_ws_kits_mode_hears_every_topic_of_its_prefix_and_no_other(server: Server) -> None:
    async with open_parts(server.url, mode="wskit", prefix="a[b]*:") as one, trio.open_nursery() as nursery:
        await nursery.start(one.supervise)
        assert patterns(server) == 1
        server.command("PUBLISH", "abx:t", '{"topic":"t","type":"NO"}')
        for topic in ("t", "t:u", "ü"):
            assert await one.publish(topic, topic)
        await until(lambda: one.texts == ["t", "t:u", "ü"])
        nursery.cancel_scope.cancel()


# --- what a publish says ---


async def test_an_estimate_tells_how_many_processes_listen(server: Server) -> None:
    async with (
        listening(server.url, "t") as one,
        listening(server.url, "t"),
        open_parts(server.url, estimate=True) as o,
    ):
        await o.driver.subscribe("c1", "t")
        await o.driver.subscribe("c2", "t")
        result = await o.driver.publish(enveloped("1", "t", exclude="c2"))
        assert (result.ok, result.capability, result.matched_local) == (True, "estimate", 1)
        assert result.details == {"processes": 2}
        await until(lambda: one.came)
        nobody = await o.driver.publish(enveloped("1", "u"))
        assert (nobody.capability, nobody.matched_local, nobody.details) == ("estimate", 0, {"processes": 0})


async def test_an_envelope_that_is_too_large_is_not_sent(server: Server) -> None:
    async with open_parts(server.url, max_envelope_bytes=1000) as one:
        result = await one.driver.publish(PublishEnvelope("t", "T", b'"' + b"x" * 1000 + b'"'))
        assert (result.error, result.retryable, result.details["limit"]) == ("PAYLOAD_TOO_LARGE", False, 1000)
        assert await one.publish("small", "t")


async def test_what_waits_for_an_answer_is_bounded_in_bytes(server: Server) -> None:
    async with open_parts(server.url, max_publishing_bytes=1000) as one:
        failed: list[Any] = []

        async def publish() -> None:
            result = await one.driver.publish(PublishEnvelope("t", "T", b'"' + b"x" * 400 + b'"'))
            if not result.ok:
                failed.append((result.error, result.retryable, dict(result.details)))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(publish)
        assert failed == [("BACKPRESSURE", True, {"limit": 1000})] * 3
        for _ in range(3):
            await publish()
        assert len(failed) == 3


async def test_a_closed_driver_publishes_nothing(server: Server) -> None:
    async with open_parts(server.url) as one:
        assert await one.publish("1")
        await one.driver.aclose()
        result = await one.driver.publish(enveloped("2"))
        assert (result.ok, result.error) == (False, "CONNECTION_CLOSED")


async def test_the_drivers_index_is_of_this_process(server: Server) -> None:
    async with open_parts(server.url) as one:
        await one.driver.subscribe("c", "a:b")
        await one.driver.subscribe("d", "a:*")
        assert list(one.driver.local_subscribers("a:b")) == ["c", "d"]
        assert one.driver.list_topics() == ("a:b", "a:*")
        assert one.driver.has_topic("a:*")
        await one.driver.unsubscribe("c", "a:b")
        assert not one.driver.has_topic("a:b")
        assert channels(server) == set()


# --- what goes wrong before anything does ---


async def test_what_the_block_raises_leaves_it_bare(server: Server) -> None:
    async def fail() -> None:
        async with open_redis_pubsub(server.url) as (driver, _):
            assert (await driver.publish(enveloped("1"))).ok
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()


async def test_a_consumer_runs_once_at_a_time(server: Server) -> None:
    async with listening(server.url) as one:
        with pytest.raises(RuntimeError, match="runs already"):
            await one.consumer.run(one.deliver)


async def test_what_delivery_raises_ends_the_run_as_it_is(server: Server) -> None:
    async def broken(envelope: PublishEnvelope) -> None:
        raise LookupError(envelope.topic)

    async with open_parts(server.url) as one:
        await one.selective.follow("t")
        with pytest.RaisesGroup(LookupError):
            async with trio.open_nursery() as nursery:
                await nursery.start(one.consumer.run, broken)
                assert await one.publish("1", "t")
        await gone(server)


async def test_a_topic_that_the_server_forbids_fails_alone(own_server: Server) -> None:
    own_server.command("ACL", "SETUSER", "some", "on", ">pw", "+@all", "resetchannels", "&ws:ok:*")
    url = own_server.url.replace("//", "//some:pw@")
    async with listening(url, "ok:1") as one:
        errors: list[PubSubError] = []

        async def follow(topic: str) -> None:
            try:
                await one.selective.follow(topic)
            except PubSubError as error:
                errors.append(error)
                await one.selective.unfollow(topic)

        async with trio.open_nursery() as nursery:
            for topic in ("ok:2", "not", "ok:3", "neither"):
                nursery.start_soon(follow, topic)
        assert [(error.reason, "refuses" in error.message) for error in errors] == [("ADAPTER_ERROR", True)] * 2
        assert channels(own_server) == {"ws:ok:1", "ws:ok:2", "ws:ok:3"}
        result = await one.driver.publish(enveloped("1", "not"))
        assert (result.ok, result.error) == (False, "ADAPTER_ERROR")
        assert "permission" in str(result.cause)
        assert await one.publish("2", "ok:1")
        await until(lambda: one.texts == ["2"])
        assert one.epochs == 1


GUIDE = Path(__file__).parents[2] / "docs" / "howto" / "redis.md"


async def test_a_user_with_the_rights_that_the_guide_names_will_do(own_server: Server) -> None:
    text = " ".join(re.findall(r"`((?:\+[a-z|]+ ?)+)`", GUIDE.read_text("utf-8")))
    assert len(text.split()) == 14
    own_server.command("ACL", "SETUSER", "some", "on", ">pw", "&chat:*", *text.split())
    url = own_server.url.replace("//", "//some:pw@")
    for mode in ("topics", "sharded", "wskit"):
        async with open_parts(url, mode=mode, prefix="chat:", estimate=mode == "topics") as one:
            if mode != "wskit":
                await one.selective.follow("a")
            async with trio.open_nursery() as nursery:
                await nursery.start(one.supervise)
                assert await one.publish("1", "a")
                await until(lambda one=one: one.texts == ["1"])  # type: ignore[misc]
                if mode != "wskit":
                    await one.selective.unfollow("a")
                    await gone(own_server)
                nursery.cancel_scope.cancel()


@contextmanager
def running(program: Path, server: Server) -> Generator[str]:
    """Run it on a port of its choice while the block runs, and give its URL."""
    command = [sys.executable, str(program), "0"]
    environment = {**os.environ, "REDIS_URL": server.url}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.e2e
async def test_the_program_of_the_guide_joins_two_processes(shared_server: Server, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    program = tmp_path / "chat.py"
    program.write_text(code, "utf-8")
    async with AsyncExitStack() as stack:
        clients: list[Client] = []
        for _ in range(2):
            url = stack.enter_context(running(program, shared_server))
            clients.append(await stack.enter_async_context(await connect(WebServer([url], 0))))
        one, two = clients
        for client in clients:
            await client.send("JOIN", {"room": "a"}, call="1")
            assert (await client.receive())["payload"] == {"ok": True}
        await one.send("SAY", {"room": "a", "text": "hello"}, call="2")
        assert (await one.receive())["payload"] == {"ok": True}
        with trio.fail_after(10):
            assert (await two.receive())["payload"] == {"room": "a", "text": "hello"}
        for client in clients:
            client.cut()


async def test_a_remembered_topic_that_the_server_forbids_ends_the_run(own_server: Server) -> None:
    own_server.command("ACL", "SETUSER", "some", "on", ">pw", "+@all", "resetchannels", "&ws:ok:*")
    async with open_parts(own_server.url.replace("//", "//some:pw@")) as one:
        await one.selective.follow("not")
        with pytest.raises(PubSubError, match="refuses SUBSCRIBE 'ws:not'"):
            await one.consumer.run(one.deliver)


@pytest.mark.parametrize(
    ("target", "options", "fault"),
    [
        ("http://x", {}, "begins with redis://"),
        ("redis://:secret@x:notaport", {}, "is no URL"),
        ("redis:///0", {}, "names no host"),
        ("rediss://x?ssl_cert_reqs=none", {}, "ssl.SSLContext"),
        ("redis://x", {"tls": ssl.create_default_context()}, "for rediss://"),
        ([], {}, "at least one"),
        (RedisSentinel(sentinels=[], service="s"), {}, "at least one URL"),
        (RedisSentinel(sentinels=["redis://s"], service="s", url="unix:///x"), {}, "redis:// or rediss://"),
        ("redis://x", {"mode": "shards"}, "'topics', 'sharded' or 'wskit'"),
        ("redis://x", {"while_down": "wait"}, "'refuse' or 'remember'"),
        ("redis://x", {"max_wait": 0}, "max_wait"),
        ("redis://x", {"max_wait": float("inf")}, "max_wait"),
        ("redis://x", {"check_every": True}, "check_every"),
        ("redis://x", {"max_waiting": 1.5}, "max_waiting"),
        ("redis://x", {"max_envelope_bytes": -1}, "max_envelope_bytes"),
    ],
)
async def test_options_that_make_no_sense_are_refused(target: Any, options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as caught:
        async with open_redis_pubsub(target, **options):
            pass
    assert "secret" not in str(caught.value)


async def test_a_unix_socket_will_do(tmp_path: Path) -> None:
    with Server(tmp_path, unixsocket=str(tmp_path / "s")):
        async with listening(f"unix://{tmp_path}/s", "t") as one:
            assert await one.publish("1", "t")
            await until(lambda: one.texts == ["1"])


async def test_of_several_urls_the_first_that_answers_is_taken(server: Server) -> None:
    async with listening(["redis://127.0.0.1:1", server.url], "t") as one:
        assert await one.publish("1", "t")
        await until(lambda: one.texts == ["1"])
