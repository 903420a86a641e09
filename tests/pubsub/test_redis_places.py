"""Where the server is: in a cluster, behind sentinels, behind TLS."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.pubsub.redis_parts import channels, enveloped, gone, listening, open_parts, published
from tests.serving import until
from tests.transports.peers import client_tls, server_tls
from tests.valkey import BINARIES, COREDIS_RUBBISH, Server, free_port
from trio_wskit import PubSubError
from trio_wskit._core.sharding import slot_of
from trio_wskit.pubsub.redis import RedisSentinel

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]

TOPICS = [f"t:{number}" for number in range(20)]
# Of a cluster of two, each with half of the slots.
LOW = next(topic for topic in TOPICS if slot_of(f"ws:{topic}") < 8192)
HIGH = next(topic for topic in TOPICS if slot_of(f"ws:{topic}") >= 8192)


# --- a cluster ---


@contextmanager
def cluster_of_two(folder: Path) -> Generator[tuple[Server, Server]]:
    ports = free_port(), free_port()
    options = {"cluster_enabled": "yes", "cluster_require_full_coverage": "no", "cluster_node_timeout": "500"}
    folders = folder / "one", folder / "two"
    for own in folders:
        own.mkdir()
    with (
        Server(folders[0], cluster_port=str(ports[0]), **options) as one,
        Server(folders[1], cluster_port=str(ports[1]), **options) as two,
    ):
        one.command("CLUSTER", "ADDSLOTSRANGE", "0", "8191")
        two.command("CLUSTER", "ADDSLOTSRANGE", "8192", "16383")
        two.command("CLUSTER", "MEET", "127.0.0.1", str(one.port), str(ports[0]))
        for server in (one, two):
            server.wait_for_cluster()
            while server.command("CLUSTER", "SLOTS").count(b"127.0.0.1") < 2:
                pass
        yield one, two


@pytest.fixture
def pair(tmp_path: Path) -> Generator[tuple[Server, Server]]:
    with cluster_of_two(tmp_path) as servers:
        yield servers


async def test_topics_are_spread_over_the_nodes_of_a_cluster(pair: tuple[Server, Server]) -> None:
    one, two = pair
    async with (
        listening([one.url, two.url], *TOPICS, mode="sharded") as ours,
        open_parts(two.url, mode="sharded", estimate=True) as other,
    ):
        assert channels(one, "SHARDCHANNELS") | channels(two, "SHARDCHANNELS") == {f"ws:{topic}" for topic in TOPICS}
        assert all(slot_of(name) < 8192 for name in channels(one, "SHARDCHANNELS"))
        assert channels(one, "SHARDCHANNELS")
        assert channels(two, "SHARDCHANNELS")
        for number, topic in enumerate(TOPICS):
            result = await other.driver.publish(enveloped(f"{number}", topic))
            assert (result.ok, result.details) == (True, {"processes": 1})
        await until(lambda: len(ours.came) == len(TOPICS))
        assert sorted(ours.texts, key=int) == [str(number) for number in range(len(TOPICS))]
        for topic in TOPICS:
            await ours.selective.unfollow(topic)
        await gone(one)
        await gone(two)
        assert ours.epochs == 1


async def test_topics_without_shards_reach_every_node_of_a_cluster(pair: tuple[Server, Server]) -> None:
    one, two = pair
    async with listening(one.url, "a", "p:*") as ours, open_parts(two.url) as other:
        assert await other.publish("1", "a")
        assert await other.publish("2", "p:x")
        await until(lambda: ours.texts == ["1", "2"])


async def test_a_slot_that_moves_begins_an_epoch_and_is_followed(pair: tuple[Server, Server]) -> None:
    one, two = pair
    async with (
        listening([one.url], LOW, HIGH, mode="sharded") as ours,
        open_parts(one.url, mode="sharded") as other,
    ):
        await published(other, "1", LOW)
        await until(lambda: ours.texts == ["1"])
        new_owner = two.command("CLUSTER", "MYID").split(b"\r\n")[1].decode()
        slot = str(slot_of(f"ws:{LOW}"))
        for server in (two, one):
            assert server.command("CLUSTER", "SETSLOT", slot, "NODE", new_owner) == b"+OK\r\n"
        await until(lambda: ours.epochs >= 2 and f"ws:{LOW}" in channels(two, "SHARDCHANNELS"))
        await published(other, "2", LOW)
        await published(other, "3", HIGH)
        await until(lambda: ours.texts[-2:] == ["2", "3"])


async def test_a_node_that_is_gone_takes_its_own_topics_alone_and_begins_an_epoch_when_it_is_back(
    pair: tuple[Server, Server],
) -> None:
    one, two = pair
    async with (
        listening([one.url, two.url], LOW, HIGH, mode="sharded") as ours,
        open_parts([one.url, two.url], mode="sharded") as other,
    ):
        two.kill()
        await until(lambda: ours.epochs == 2)
        await published(other, "1", LOW)
        await until(lambda: ours.texts == ["1"])
        assert not await other.publish("lost", HIGH)
        with pytest.raises(PubSubError, match="not there"):
            await ours.selective.follow(HIGH)
        two.start()
        await until(lambda: ours.epochs == 3, seconds=20)
        await published(other, "2", HIGH)
        await until(lambda: ours.texts == ["1", "2"])


async def test_a_cluster_without_slots_is_none(tmp_path: Path) -> None:
    with Server(tmp_path, cluster_enabled="yes", cluster_port=str(free_port())) as server:
        async with open_parts(server.url, mode="sharded") as parts:
            with pytest.raises(PubSubError, match="has no slots"):
                await parts.consumer.run(parts.deliver)
            assert not await parts.publish("1")


# --- sentinels ---


@contextmanager
def sentinel(folder: Path, primary: Server) -> Generator[int]:
    """One sentinel that watches a primary under the name "mine", and decides by itself."""
    port = free_port()
    settings = folder / "sentinel.conf"
    settings.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor mine 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds mine 300\nsentinel failover-timeout mine 3000\n",
        "utf-8",
    )
    command = [str(BINARIES["valkey-server"]), str(settings), "--sentinel"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


async def test_the_primary_is_found_by_asking_sentinels_and_found_again_after_a_failover(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    with (
        Server(tmp_path / "one") as first,
        Server(tmp_path / "two", replicaof=f"127.0.0.1 {first.port}") as second,
        sentinel(tmp_path / "three", first) as port,
    ):
        target = RedisSentinel(sentinels=["redis://127.0.0.1:1", f"redis://127.0.0.1:{port}"], service="mine")
        await until(lambda: b"online" in first.command("INFO", "replication"))
        with trio.fail_after(30):
            while True:  # until the sentinel answers at all
                try:
                    async with open_parts(target) as early:
                        with trio.move_on_after(0.2):
                            await early.consumer.run(early.deliver)
                        break
                except PubSubError:
                    await trio.sleep(0.05)
        async with listening(target, "a") as parts:
            assert "ws:a" in channels(first)  # sentinels talk there as well
            await published(parts, "1", "a")
            await until(lambda: parts.texts == ["1"])
            await until(lambda: replicas(port) == 1, seconds=30)  # it looks every ten seconds
            first.kill()
            await until(lambda: parts.epochs == 2, seconds=40)
            assert "ws:a" in channels(second)
            await published(parts, "2", "a")
            await until(lambda: parts.texts == ["1", "2"])


def replicas(port: int) -> int:
    """How many the sentinel knows of."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
        link.sendall(b"SENTINEL REPLICAS mine\r\n")
        return int(link.recv(65536).split(b"\r\n")[0][1:])


async def test_a_primary_that_is_none_any_more_is_not_taken(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with Server(tmp_path / "one") as server, sentinel(tmp_path / "two", server) as port:
        server.command("REPLICAOF", "127.0.0.1", str(free_port()))
        target = RedisSentinel(sentinels=[f"redis://127.0.0.1:{port}"], service="mine")
        async with open_parts(target) as parts:
            with trio.fail_after(20):
                while True:
                    with pytest.raises(PubSubError) as caught:
                        await parts.consumer.run(parts.deliver)
                    if "no primary any more" in str(caught.value):
                        break
                    await trio.sleep(0.05)  # the sentinel is not there yet


async def test_a_service_that_no_sentinel_knows_is_not_there(tmp_path: Path) -> None:
    target = RedisSentinel(sentinels=[f"redis://127.0.0.1:{free_port()}"], service="mine")
    async with open_parts(target) as parts:
        with pytest.raises(PubSubError, match="no sentinel knows the primary of 'mine'"):
            await parts.consumer.run(parts.deliver)


# --- TLS ---


@asynccontextmanager
async def behind_tls(server: Server) -> AsyncGenerator[int]:
    """The tests' Valkey is built without TLS: something in front of it speaks it."""

    async def serve(client: trio.SSLStream[trio.SocketStream]) -> None:
        async with client, await trio.open_tcp_stream("127.0.0.1", server.port) as beneath, trio.open_nursery() as n:

            async def pump(source: Any, sink: Any) -> None:
                try:
                    while data := await source.receive_some(65536):
                        await sink.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                n.cancel_scope.cancel()

            n.start_soon(pump, client, beneath)
            n.start_soon(pump, beneath, client)

    listeners = await trio.open_ssl_over_tcp_listeners(0, server_tls(), host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield int(listeners[0].transport_listener.socket.getsockname()[1])  # type: ignore[attr-defined]
        nursery.cancel_scope.cancel()


async def test_over_tls_the_certificate_and_the_hosts_name_are_looked_at(shared_server: Server) -> None:
    async with behind_tls(shared_server) as port:
        async with listening(f"rediss://localhost:{port}", "a", tls=client_tls()) as parts:
            assert await parts.publish("1", "a")
            await until(lambda: parts.texts == ["1"])
        # The certificate is for localhost and 127.0.0.1; the same address has another name here.
        for url, tls in ((f"rediss://[::ffff:127.0.0.1]:{port}", client_tls()), (f"rediss://localhost:{port}", None)):
            async with open_parts(url, tls=tls) as parts:
                with pytest.raises(PubSubError, match=r"CERTIFICATE_VERIFY_FAILED|certificate"):
                    await parts.consumer.run(parts.deliver)
                assert not await parts.publish("1", "a")


async def test_a_password_goes_with_the_url(own_server: Server) -> None:
    own_server.command("CONFIG", "SET", "requirepass", "p@ss/word")
    url = own_server.url.replace("//", "//:p%40ss%2Fword@")
    async with listening(f"{url}/3", "a") as parts:
        assert await parts.publish("1", "a")
        await until(lambda: parts.texts == ["1"])
    async with open_parts(own_server.url) as parts:
        with pytest.raises(PubSubError) as caught:
            await parts.consumer.run(parts.deliver)
    assert "word" not in str(caught.value)
