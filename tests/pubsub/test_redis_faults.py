"""The link when the server is gone, killed or restarted, or throws us out."""

from __future__ import annotations

import json

import pytest
import trio

from tests.pubsub.redis_parts import (
    Parts,
    at_most,
    channels,
    enveloped,
    listening,
    open_parts,
    published,
    wired,
)
from tests.serving import until
from tests.valkey import COREDIS_RUBBISH, Server, free_port
from trio_wskit import PubSubError
from trio_wskit._core.redis_envelope import encode_envelope

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]


# --- nobody there ---


async def test_without_a_server_the_run_fails_and_a_publish_too() -> None:
    async with open_parts(f"redis://127.0.0.1:{free_port()}") as one, at_most(5):
        with pytest.raises(PubSubError, match="cannot be reached"):
            await one.consumer.run(one.deliver)
        first = await one.driver.publish(enveloped("1"))
        assert (first.ok, first.error, first.retryable) == (False, "ADAPTER_ERROR", True)
        second = await one.driver.publish(enveloped("1"))
        assert "tried again in" in str(second.cause)


async def test_a_topic_waits_for_the_link_and_then_fails(own_server: Server) -> None:
    async with listening(own_server.url, "a", max_wait=0.2) as one:
        own_server.kill()
        await until(lambda: one.errors)
        async with at_most(2):
            with pytest.raises(PubSubError, match="not confirmed the topic in time") as caught:
                await one.selective.follow("b")
        assert caught.value.reason == "ADAPTER_ERROR"
        await one.selective.unfollow("b")
        own_server.start()
        await until(lambda: one.epochs == 2)
        assert channels(own_server) == {"ws:a"}


async def test_many_topics_one_after_another_wait_together_no_longer_than_one(own_server: Server) -> None:
    async with listening(own_server.url, max_wait=0.3, check_every=5) as one, at_most(3):
        own_server.pause()
        await until_each_fails(one, 50)
        own_server.resume()
        own_server.kill()
        await until(lambda: one.errors)
        await until_each_fails(one, 50)


async def until_each_fails(one: Parts, times: int) -> None:
    for number in range(times):
        with pytest.raises(PubSubError, match="not confirmed"):
            await one.selective.follow(f"t:{number}")
        await one.selective.unfollow(f"t:{number}")


async def test_a_topic_that_waits_is_heard_when_the_link_is_back_in_time(own_server: Server) -> None:
    async with listening(own_server.url, max_wait=10) as one:
        own_server.kill()
        await until(lambda: one.errors)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.selective.follow, "b")
            await trio.sleep(0.1)
            own_server.start()
        await published(one, "1", "b")
        await until(lambda: one.texts == ["1"])


async def test_before_the_first_run_topics_are_only_remembered() -> None:
    async with open_parts(f"redis://127.0.0.1:{free_port()}") as one, at_most(0.4):
        await one.selective.follow("a")
        await one.selective.follow("b:*")


# --- killed, restarted ---


async def test_after_a_restart_every_topic_is_heard_before_the_epoch_begins(own_server: Server) -> None:
    topics = [f"t:{number}" for number in range(1500)]
    async with listening(own_server.url, *topics, "p:*") as one:
        await published(one, "1", "t:0")
        await until(lambda: one.texts == ["1"])
        own_server.kill()
        await until(lambda: one.errors)
        own_server.start()
        await until(lambda: one.epochs == 2)
        assert len(channels(own_server)) >= 1000  # the first 64 KiB of the answer
        for number in (0, 700, 1499):
            await published(one, f"t{number}", f"t:{number}")
        await published(one, "p", "p:1")
        await until(lambda: one.texts == ["1", "t0", "t700", "t1499", "p"])


async def test_an_end_in_silence_is_noticed_as_well(own_server: Server) -> None:
    # coredis' own iterator ends without a word after such an end, and the server goes on counting the subscription.
    async with wired(own_server) as wire, listening(wire.url, "a") as one:
        for epoch in (2, 3, 4):
            wire.cut()
            await until(lambda epoch=epoch: one.epochs == epoch)  # type: ignore[misc]
            await published(one, str(epoch), "a")
            await until(lambda epoch=epoch: one.texts[-1:] == [str(epoch)])  # type: ignore[misc]
        assert len(one.errors) == 3


async def test_the_server_may_throw_a_client_out(own_server: Server) -> None:
    async with listening(own_server.url, "a") as one:
        own_server.command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: one.epochs == 2)
        await published(one, "1", "a")
        await until(lambda: one.texts == ["1"])


async def test_much_traffic_does_not_keep_a_run_with_many_topics_from_beginning(own_server: Server) -> None:
    topics = [f"t:{number}" for number in range(3000)]
    message = encode_envelope(enveloped("x", "t:0")).decode()
    burst = "".join(f"PUBLISH ws:t:0 {json.dumps(message)}\r\n" for _ in range(50)).encode()

    async def publish() -> None:
        while True:
            async with await trio.open_tcp_stream("127.0.0.1", own_server.port) as link:
                for _ in range(50):
                    await link.send_all(burst)
                    answers = 0
                    while answers < 50:
                        answers += (await link.receive_some(65536)).count(b"\r\n")

    async with listening(own_server.url, *topics, max_waiting=60) as one, trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        for epoch in (2, 3, 4):
            await until(lambda: one.came)
            own_server.command("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda epoch=epoch: one.epochs == epoch)  # type: ignore[misc]
            one.came.clear()
        nursery.cancel_scope.cancel()
        assert one.consumer.counts.overflows == 0
        assert one.consumer.counts.bad == {}


async def test_a_topic_that_comes_while_a_run_begins_is_heard_when_it_has_begun(own_server: Server) -> None:
    async with wired(own_server) as wire, open_parts(wire.url, max_wait=10, check_every=10) as one:
        for number in range(600):
            await one.selective.follow(f"t:{number}")
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                await one.selective.follow("t:3")
                await published(one, "1", "t:3")

            nursery.start_soon(nursery.start, one.supervise)
            while not channels(own_server):
                await trio.lowlevel.checkpoint()
            wire.hold()
            for _ in range(5):
                nursery.start_soon(follow)
            await trio.sleep(0.05)
            wire.let_go()
            await until(lambda: len(one.came) == 5)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("end", ["kill", "throw out"])
async def test_under_load_nothing_is_lost_without_an_epoch_more(own_server: Server, end: str) -> None:
    """Each envelope that was published well, and has not come, was published before an epoch began."""
    sent: list[tuple[int, str]] = []
    async with open_parts(own_server.url) as other, listening(own_server.url, "a") as one:

        async def publish() -> None:
            number = 0
            while True:
                number += 1
                epoch = one.epochs
                if await other.publish(str(number), "a") and epoch == one.epochs:
                    sent.append((epoch, str(number)))
                else:
                    await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            for epoch in (2, 3, 4):
                await until(lambda: len(one.came) > 50)
                if end == "kill":
                    own_server.kill()
                    own_server.start()
                else:
                    own_server.command("CLIENT", "KILL", "TYPE", "pubsub")
                one.came.clear()
                await until(lambda epoch=epoch: one.epochs == epoch)  # type: ignore[misc]
            before = len(sent)
            await until(lambda: len(sent) > before + 100)
            nursery.cancel_scope.cancel()
        last = [text for epoch, text in sent[before:] if epoch == 4]
        await until(lambda: one.texts[-1] >= last[-1] or last[-1] in one.texts)
        assert set(last) <= set(one.texts)
        assert one.texts == sorted(one.texts, key=int)
