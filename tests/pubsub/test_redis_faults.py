"""The link when the server is killed, stopped, restarted, slow, or gone; and here, when nobody takes what comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, final

import pytest
import trio

from tests.pubsub.redis_parts import Parts, channels, enveloped, gone, listening, open_parts
from tests.serving import until
from tests.valkey import COREDIS_RUBBISH, Server, free_port
from trio_wskit import PubSubError
from trio_wskit._core.publishing import PublishEnvelope

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]


@asynccontextmanager
async def at_most(seconds: float) -> AsyncGenerator[None]:
    start = trio.current_time()
    yield
    assert trio.current_time() - start < seconds


async def published(parts: Parts, text: str, topic: str = "room:1") -> None:
    """Publish until it succeeds; a few seconds are enough, whatever the machine does besides."""
    with trio.fail_after(10):
        while not await parts.publish(text, topic):  # noqa: ASYNC110 - nobody there tells us
            await trio.sleep(0.02)


@final
class Wire:
    """A link to the server that can be held up, or cut in silence: without an end, for those who wait for one."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._links: list[trio.CancelScope] = []
        self._may_pass = trio.Event()
        self._may_pass.set()
        self.url = ""
        self.opened = 0
        self._pause = 0.0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"redis://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._link, listeners)

    def hold(self) -> None:
        self._may_pass = trio.Event()

    def let_go(self) -> None:
        self._may_pass.set()

    def slow_down(self) -> None:
        """From now on no more than half a megabyte a second."""
        self._pause = 0.03

    def cut(self) -> None:
        for scope in self._links:
            scope.cancel()
        self._links.clear()

    async def _link(self, client: trio.SocketStream) -> None:
        self.opened += 1
        server = await trio.open_tcp_stream("127.0.0.1", self._server.port)
        async with client, server, trio.open_nursery() as nursery:
            self._links.append(nursery.cancel_scope)

            async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                try:
                    async for data in source:
                        await self._may_pass.wait()
                        for start in range(0, len(data), 16_000):
                            await trio.sleep(self._pause)
                            await sink.send_all(data[start : start + 16_000])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(pump, client, server)
            nursery.start_soon(pump, server, client)


@asynccontextmanager
async def wired(server: Server) -> AsyncGenerator[Wire]:
    wire = Wire(server)
    async with trio.open_nursery() as nursery:
        await nursery.start(wire.run)
        yield wire
        nursery.cancel_scope.cancel()


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


# --- stopped ---


async def test_a_server_that_stops_is_noticed_and_heard_again(own_server: Server) -> None:
    async with listening(own_server.url, "a") as one:
        own_server.pause()
        async with at_most(3):
            await until(lambda: one.errors)
        assert "has not answered" in str(one.errors[0])
        own_server.resume()
        await until(lambda: one.epochs == 2)
        await published(one, "1", "a")
        await until(lambda: one.texts[-1:] == ["1"])


async def test_a_publish_to_a_server_that_has_stopped_fails_in_time_and_the_next_ones_at_once(
    own_server: Server,
) -> None:
    async with open_parts(own_server.url, max_wait=0.2, connect_timeout=0.2) as one:
        assert await one.publish("1")
        own_server.pause()
        async with at_most(2), trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one.publish, str(number))
        result = await one.driver.publish(enveloped("x"))
        assert (result.ok, result.error) == (False, "ADAPTER_ERROR")
        own_server.resume()
        await published(one, "2")


async def test_a_topic_of_a_server_that_has_stopped_fails_in_time(own_server: Server) -> None:
    async with listening(own_server.url, "a", max_wait=0.2, check_every=5) as one:
        own_server.pause()
        async with at_most(2):
            with pytest.raises(PubSubError, match="not confirmed"):
                await one.selective.follow("b")
        await one.selective.unfollow("b")
        own_server.resume()
        await until(lambda: channels(own_server) == {"ws:a"})
        with trio.fail_after(10):
            while "ws:c" not in channels(own_server):
                with suppress(PubSubError):
                    await one.selective.follow("c")
        await until(lambda: channels(own_server) == {"ws:a", "ws:c"})
        assert one.epochs == 1


async def test_the_block_ends_in_time_though_the_server_has_stopped(own_server: Server) -> None:
    async with at_most(3):
        async with listening(own_server.url, "a", check_every=60) as one:
            assert await one.publish("1")
            own_server.pause()
        own_server.resume()


async def test_who_publishes_while_the_block_ends_is_told_so_at_once(own_server: Server) -> None:
    results: list[bool] = []

    async def publish(one: Parts, text: str) -> None:
        results.append(await one.publish(text))

    for is_open in (True, False):
        async with trio.open_nursery() as nursery:
            async with open_parts(own_server.url, max_wait=30, connect_timeout=30) as one:
                assert not is_open or await one.publish("1")
                own_server.pause()
                for number in range(5):
                    nursery.start_soon(publish, one, f"{number}")
                await trio.sleep(0.05)
            with trio.fail_after(5):
                await until(lambda: len(results) % 5 == 0 and results)
        own_server.resume()
    assert results == [False] * 10


async def test_a_publish_whose_answer_is_lost_is_not_sent_again(own_server: Server) -> None:
    async with listening(own_server.url, "a") as one, wired(own_server) as wire, open_parts(wire.url) as other:
        assert await other.publish("1", "a")
        async with trio.open_nursery() as nursery:
            results: list[bool] = []

            async def publish() -> None:
                results.append(await other.publish("2", "a"))

            wire.hold()
            nursery.start_soon(publish)
            await trio.sleep(0.05)
            wire.cut()
        assert results == [False]
        wire.let_go()
        await published(other, "3", "a")
        await until(lambda: one.texts[-1:] == ["3"])
        assert one.texts in (["1", "3"], ["1", "2", "3"])


async def test_a_link_that_has_not_answered_in_time_is_used_no_more(own_server: Server) -> None:
    async with wired(own_server) as wire, open_parts(wire.url, max_wait=0.2) as one:
        assert await one.publish("1")
        wire.hold()
        assert not await one.publish("2")
        wire.let_go()
        await published(one, "3")
        assert wire.opened == 2


# --- cancelled ---


async def test_cancelled_while_a_topic_waits_leaves_nothing_once_it_is_unfollowed(own_server: Server) -> None:
    async with wired(own_server) as wire, listening(wire.url, check_every=5, max_wait=5) as one:
        for _ in range(10):
            wire.hold()
            with trio.move_on_after(0.02) as scope:
                await one.selective.follow("a")
            assert scope.cancelled_caught
            await one.selective.unfollow("a")
            wire.let_go()
            await one.selective.follow("b")
            await one.selective.unfollow("b")
        await gone(own_server)
        await one.selective.follow("a")
        await published(one, "1", "a")
        await until(lambda: one.texts == ["1"])
        assert one.epochs == 1


async def test_a_publish_that_is_cancelled_takes_no_other_with_it(own_server: Server) -> None:
    async with open_parts(own_server.url) as one, listening(own_server.url, "a") as other:
        async with trio.open_nursery() as nursery:
            for number in range(40):

                async def publish(number: int = number) -> None:
                    with trio.CancelScope() as scope:
                        if number % 2:
                            scope.cancel()
                        await one.publish(str(number), "a")

                nursery.start_soon(publish)
        assert await one.publish("last", "a")
        await until(lambda: "last" in other.texts)
        assert {str(number) for number in range(0, 40, 2)} <= set(other.texts)


async def test_whoever_opens_the_link_and_gives_up_takes_it_from_nobody(own_server: Server) -> None:
    async with wired(own_server) as wire, open_parts(wire.url, max_wait=5) as one:
        wire.hold()
        results: list[bool] = []

        async def patient() -> None:
            results.append(await one.publish("1"))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.05):
                await one.publish("0")
            nursery.start_soon(patient)
            await trio.sleep(0.05)
            wire.let_go()
        assert results == [True]
        assert wire.opened == 1


async def test_a_link_on_which_something_comes_is_not_given_up_though_the_ping_is_far_behind(
    own_server: Server,
) -> None:
    async with wired(own_server) as wire, listening(wire.url, "a", check_every=0.2) as one:
        wire.slow_down()
        async with open_parts(own_server.url) as other:
            payload = b'"' + b"x" * 20_000 + b'"'
            for number in range(60):
                assert (await other.driver.publish(PublishEnvelope("a", "T", payload, origin="o", id=str(number)))).ok
        await until(lambda: len(one.came) == 60)
        assert one.errors == []


@pytest.mark.parametrize("after", [0.0, 0.001, 0.003, 0.01])
async def test_a_run_that_is_cancelled_while_it_begins_leaves_nothing(own_server: Server, after: float) -> None:
    async with open_parts(own_server.url) as one:
        for number in range(200):
            await one.selective.follow(f"t:{number}")
        with trio.move_on_after(after):
            await one.consumer.run(one.deliver)
        await gone(own_server)
        async with trio.open_nursery() as nursery:
            await nursery.start(one.supervise)
            await published(one, "1", "t:7")
            await until(lambda: one.texts == ["1"])
            nursery.cancel_scope.cancel()


# --- nobody takes what comes ---


async def slow_delivery(
    server: Server, options: dict[str, Any], payload: bytes, enough: Callable[[Parts], bool]
) -> None:
    may_go_on = trio.Event()
    came: list[PublishEnvelope] = []

    async def deliver(envelope: PublishEnvelope) -> None:
        await may_go_on.wait()
        came.append(envelope)

    async with open_parts(server.url, **options) as one, open_parts(server.url) as other:
        await one.selective.follow("a")
        async with trio.open_nursery() as nursery:

            async def run(*, task_status: trio.TaskStatus[None]) -> None:
                await one.supervise(deliver, task_status=task_status)

            await nursery.start(run)
            with trio.fail_after(20):
                for number in range(300):
                    envelope = PublishEnvelope("a", "T", payload, origin="o", id=str(number))
                    assert (await other.driver.publish(envelope)).ok
            await until(lambda: one.errors)
            assert enough(one)
            assert "more comes from Redis than is delivered" in str(one.errors[0])
            may_go_on.set()
            with trio.fail_after(10):  # some of it goes where nobody listens just then
                while not came or came[-1].id != "last":
                    assert (await other.driver.publish(enveloped("last", "a"))).ok
                    await trio.sleep(0.02)
            assert one.epochs >= 2
            assert "5" not in [envelope.id for envelope in came]  # it waited, and belongs to an epoch that is over
            nursery.cancel_scope.cancel()


async def test_where_delivery_stands_still_the_link_is_given_up_rather_than_the_memory(own_server: Server) -> None:
    await slow_delivery(own_server, {"max_waiting": 100}, b"1", lambda one: one.consumer.counts.overflows >= 1)


async def test_what_waits_for_delivery_is_bounded_in_bytes_too(own_server: Server) -> None:
    payload = b'"' + b"x" * 1000 + b'"'
    await slow_delivery(own_server, {"max_waiting_bytes": 100_000}, payload, lambda one: len(one.came) == 0)
