"""One link, on a connection that does what coredis' own does not do today."""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncGenerator
from typing import Any, cast, final

import pytest
import trio
from coredis.connection import BaseConnection, TCPLocation
from coredis.exceptions import MovedError, ResponseError
from trio.testing import MockClock

from trio_wskit.errors import PubSubError
from trio_wskit.pubsub._redis_link import Link, Refused


@final
class Connection:
    """Answers what the test says."""

    def __init__(self, *answers: object) -> None:
        self.location = TCPLocation("somewhere", 6379)
        self.usable = True
        self.reusable = True
        self.answers = list(answers)
        self.sent: list[bytes] = []
        self.silence = 0.0

    def send_command(self, command: bytes, *_: object) -> None:
        self.sent.append(command)

    async def _come(self) -> AsyncGenerator[Any]:
        for answer in self.answers:
            await trio.sleep(self.silence)
            yield answer
        await trio.sleep(self.silence)

    @property
    def push_messages(self) -> AsyncGenerator[Any]:
        return self._come()

    @property
    def streamed_messages(self) -> AsyncGenerator[Any]:
        return self._come()

    async def create_request(self, command: bytes, *_: object, decode: bool) -> Any:
        await trio.lowlevel.checkpoint()
        (answer,) = self.answers
        if isinstance(answer, Exception):
            raise answer
        return answer


def link_on(connection: Connection) -> Link:
    return Link(cast("BaseConnection", connection))


async def test_pushes_that_end_without_a_word_are_a_link_that_is_lost() -> None:
    came: list[list[Any]] = []
    pauses: list[int] = []
    with pytest.raises(PubSubError, match="has ended"):
        await link_on(Connection([b"message"], [b"pmessage"])).read(came.append, lambda: pauses.append(len(came)))
    assert came == [[b"message"], [b"pmessage"]]
    assert pauses == [1, 2]


async def test_a_fence_gives_the_errors_before_its_own_echo_and_passes_over_older_ones() -> None:
    connection = Connection(b"7", ResponseError("no"), MovedError("1 there:1"), b"0", b"later")
    errors = await link_on(connection).fence([(b"SUBSCRIBE", ("a",)), (b"SUBSCRIBE", ("b",))], 1.0)
    assert [(error.moved, "refused" in error.message) for error in errors] == [(False, True), (True, True)]
    assert connection.sent == [b"SUBSCRIBE", b"SUBSCRIBE", b"PING"]


async def test_a_fence_without_an_echo_is_a_link_that_is_lost(autojump_clock: MockClock) -> None:
    connection = Connection()
    connection.silence = 10
    with pytest.raises(PubSubError, match=r"somewhere:6379 has not answered within 1 s"):
        await link_on(connection).fence((), 1.0)
    assert trio.current_time() == 1


@pytest.mark.parametrize(
    ("error", "usable", "kind"),
    [(ResponseError("x"), True, Refused), (ResponseError("x"), False, PubSubError), (OSError("x"), True, PubSubError)],
)
async def test_an_error_is_the_servers_only_where_the_link_is_well(
    error: Exception, usable: bool, kind: type[PubSubError]
) -> None:
    connection = Connection(error)
    connection.usable = usable
    with pytest.raises(PubSubError) as caught:
        await link_on(connection).ask(b"PUBLISH", "a", b"x")
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error


def test_without_coredis_the_import_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("trio_wskit.pubsub._redis_link", "trio_wskit.pubsub.redis"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "coredis.connection", None)
    with pytest.raises(ImportError, match=r"trio-wskit\[redis\]"):
        importlib.import_module("trio_wskit.pubsub._redis_link")
