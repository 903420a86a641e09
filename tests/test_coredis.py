"""What the stores on Redis have in common; what each makes of it is in its own tests, on real servers."""

from __future__ import annotations

import random
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from coredis import Redis

from tests.limiter.conftest import coredis_rubbish as coredis_rubbish
from tests.valkey import COREDIS_RUBBISH, Server
from trio_wskit import ConfigError, WsKitError
from trio_wskit._coredis import Place, Script, as_raised, open_script


@asynccontextmanager
async def a_room(*, fails: bool = False) -> AsyncGenerator[None]:
    async def fail() -> None:
        await trio.sleep(1)
        raise OSError("the room's own")

    async with trio.open_nursery() as nursery:
        if fails:
            nursery.start_soon(fail)
        yield
        nursery.cancel_scope.cancel()


async def test_what_the_block_raises_leaves_the_room_as_it_was_raised() -> None:
    for raised in (KeyError("mine"), ExceptionGroup("mine", [KeyError("a"), ExceptionGroup("b", [OSError("c")])])):
        with pytest.raises(type(raised)) as caught:
            async with as_raised(a_room()):
                raise raised
        assert caught.value is raised


async def test_what_the_room_raises_leaves_it_too(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="the room's own")):
        async with as_raised(a_room(fails=True)):
            await trio.sleep_forever()


async def test_where_both_fail_nothing_is_hidden(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.RaisesGroup(OSError, KeyError):
        async with as_raised(a_room(fails=True)):
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("mine")


async def test_a_cancelled_block_is_just_cancelled() -> None:
    with trio.move_on_after(0) as scope:
        async with as_raised(a_room()):
            await trio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:6379", "begins with redis://, rediss:// or unix://, and 'localhost:6379' does not"),
        ("", "begins with redis://"),
        ("http://x", "begins with redis://"),
        ("redis://:secret@[x", "that is no URL for Redis: Invalid IPv6 URL"),
        ("redis://:secret@x:99999", "'redis://x:99999' is no URL for Redis: Port out of range"),
        ("redis://:secret@x:port", "'redis://x:port' is no URL"),
        ("redis:///0", "names no host"),
        ("rediss://:secret@x?ssl_cert_reqs=none", "belong into an ssl.SSLContext"),
    ],
)
async def test_what_is_no_url_for_redis_is_refused_when_it_is_given_and_shows_no_password(url: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        async with opened(url):
            raise AssertionError("it opened")
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("target", [None, 5, object(), b"redis://x"])
async def test_what_is_neither_a_url_nor_a_client_is_refused(target: Any) -> None:
    with pytest.raises(ConfigError, match="Redis for tests is a URL or a client of coredis, not"):
        async with opened(target):
            raise AssertionError("it opened")


async def test_a_context_for_tls_goes_with_a_url_for_it() -> None:
    tls = ssl.create_default_context()
    with pytest.raises(ConfigError, match=r"tls=… is for rediss:// URLs"):
        async with opened("redis://x", tls=tls):
            raise AssertionError("it opened")
    with pytest.raises(ConfigError, match=r"tls=… goes with a URL"):
        async with opened(Redis("x"), tls=tls):
            raise AssertionError("it opened")


def test_the_hosts_name_is_looked_at() -> None:
    connection: Any = Place("rediss://x", None).make()
    context = connection._ssl_context
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)


KEYS = ["{n}:nodes", "{n}:numbers", "{n}:version"]
WORDS = ("count", "{n}:", "topic")


@pytest.mark.usefixtures("coredis_rubbish")
@pytest.mark.filterwarnings(COREDIS_RUBBISH)
async def test_a_server_that_stops_again_and_again_under_load_is_asked_again(tmp_path: Path) -> None:
    """With coredis' pool now and then a place was lost; three of four such runs ended without any."""
    with Server(tmp_path) as server:
        async with opened(server.url, connect_timeout=0.1) as script:

            async def ask_on() -> None:
                while True:
                    with suppress(WsKitError):
                        assert await script.ask(KEYS, WORDS, 0.1, "test") == [0]
                    await trio.sleep(random.random() * 0.02)

            async with trio.open_nursery() as nursery:
                for _ in range(9):
                    nursery.start_soon(ask_on)
                for number in range(12):
                    await trio.sleep(0.12)
                    server.pause()
                    await trio.sleep((number % 6 + 1) * 0.04)  # shorter and longer than a call may take
                    server.resume()
                nursery.cancel_scope.cancel()
            with trio.fail_after(10):
                while True:
                    with suppress(WsKitError):
                        assert await script.ask(KEYS, WORDS, 1, "test") == [0]
                        break
                    await trio.sleep(0.05)


@pytest.mark.usefixtures("coredis_rubbish")
@pytest.mark.filterwarnings(COREDIS_RUBBISH)
async def test_who_gives_up_takes_the_connection_from_nobody(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        async with opened(server.url) as script, trio.open_nursery() as nursery:
            answers: list[Any] = []

            async def ask() -> None:
                answers.append(await script.ask(KEYS, WORDS, 5, "test"))

            async def give_up() -> None:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await ask()

            before = connections(server)
            nursery.start_soon(give_up)
            for _ in range(3):
                nursery.start_soon(ask)
            with trio.fail_after(5):
                while len(answers) < 3:  # noqa: ASYNC110 - nobody tells us
                    await trio.sleep(0.01)
        assert answers == [[0]] * 3
        assert connections(server) == before + 2  # theirs together, and the one that asks for this


def connections(server: Server) -> int:
    """How many the server has had."""
    told = server.command("INFO", "stats").decode()
    return int(told.split("total_connections_received:")[1].split("\r")[0])


async def test_nobody_there_is_said_with_the_reason_and_tried_anew_each_time(tmp_path: Path) -> None:
    server = Server(tmp_path)
    async with opened(server.url) as script:
        for _ in range(2):
            with pytest.raises(WsKitError, match="UNAVAILABLE: The test is unavailable") as caught:
                await script.ask(KEYS, WORDS, 2, "test")
            assert "cannot be reached" in str(caught.value.__cause__)
        with server:
            assert await script.ask(KEYS, WORDS, 2, "test") == [0]


def opened(
    target: Any, tls: ssl.SSLContext | None = None, connect_timeout: float = 1
) -> AbstractAsyncContextManager[Script]:
    return open_script(
        target,
        "trio_wskit.presence",
        "presence.lua",
        tls=tls,
        connect_timeout=connect_timeout,
        use="tests",
        twice="it is done twice",
    )


@pytest.mark.parametrize("module", ["presence.redis", "pubsub.redis_history"])
def test_without_coredis_the_import_says_what_to_install(module: str) -> None:
    package = module.partition(".")[0]
    code = f"import sys; sys.modules['coredis'] = None; import trio_wskit.{package}; import trio_wskit.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    says = "ImportError: What is shared over Redis needs coredis: pip install 'trio-wskit[redis]'"
    assert done.stderr.strip().endswith(says)
