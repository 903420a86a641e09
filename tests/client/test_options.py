"""Tokens, and options that make no sense."""

from __future__ import annotations

from typing import Any

import pytest
from trio.testing import MockClock

from tests.client.links import Server, open_pair, settle
from trio_wskit import QueueOptions, Reconnect, Retry, TokenAuth
from trio_wskit.client import Attach, Handshake, open_client
from trio_wskit.client._auth import Credentials
from trio_wskit.errors import ConfigError, ConnectFailed

ANYTHING: Any = "anything"


@pytest.mark.parametrize(
    ("attach", "options", "expected"),
    [
        ("query", {}, Handshake("/p?x=1&access_token=a+b%26%C3%BC", ("chat",))),
        ("query", {"query_parameter": "x"}, Handshake("/p?x=a+b%26%C3%BC", ("chat",))),
        ("protocol", {}, Handshake("/p?x=1", ("chat", "bearer.tik"))),
        (
            "protocol",
            {"protocol_prefix": "jwt.", "protocol_position": "prepend"},
            Handshake("/p?x=1", ("jwt.tik", "chat")),
        ),
        ("header", {}, Handshake("/p?x=1", ("chat",), (("X", "1"), ("Authorization", "Bearer tik")))),
        ("header", {"header": "x", "scheme": ""}, Handshake("/p?x=1", ("chat",), (("x", "tik"),))),
    ],
)
async def test_the_token_goes_where_it_is_wanted(
    attach: Attach, options: dict[str, Any], expected: Handshake, autojump_clock: MockClock
) -> None:
    token = "a b&ü" if attach == "query" else "tik"
    auth = TokenAuth(lambda: token, attach=attach, **options)
    url = "ws://server.test/p?x=1"
    headers = {"X": "1"} if attach == "header" else None
    async with open_pair(url=url, auth=auth, subprotocols=["chat", "", "chat"], headers=headers) as (_, server):
        assert server.handshakes == [expected]
        assert "tik" not in repr(server.handshakes) + repr(auth)


@pytest.mark.parametrize("token", [None, ""])
async def test_no_token_changes_nothing(token: str | None, autojump_clock: MockClock) -> None:
    async with open_pair(auth=TokenAuth(lambda: token)) as (_, server):
        assert server.handshakes == [Handshake("/path")]


async def test_each_attempt_asks_for_a_fresh_token_and_an_error_is_an_attempt_that_failed(
    autojump_clock: MockClock,
) -> None:
    tokens: list[str | Exception] = ["one", OSError("secret"), "two"]
    logged: list[str] = []
    errors: list[str] = []

    async def token() -> str:
        found = tokens.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async with open_pair(auth=TokenAuth(token), logged=logged) as (client, server):
        client.on_error(lambda error, _: errors.append(str(error)))
        with client.states() as changes:
            server.peer.close(1001, "good bye, one")
            await settle()
            await client.wait_open()
            assert [one.target for one in server.handshakes] == ["/path?access_token=one", "/path?access_token=two"]
            reasons = [str((await changes.receive()).reason) for _ in range(4)]
    assert reasons[1] == "connection closed with 1001 (good bye, •••)"
    assert reasons[3] == "no connection to ws://server.test/path: OSError"
    assert errors == ["secret"]  # the hook is the application's own
    assert logged == []


@pytest.mark.parametrize("attach", ["protocol", "header"])
async def test_a_token_that_cannot_be_sent_fails_without_being_shown(attach: Attach, autojump_clock: MockClock) -> None:
    with pytest.raises(ConnectFailed, match="the token cannot be sent") as caught:
        async with open_pair(auth=TokenAuth("se\ncret", attach=attach), reconnect=None, logged=[]):
            pytest.fail("not reached")
    assert "cret" not in str(caught.value)


async def test_a_connector_that_tells_the_token_is_not_repeated(autojump_clock: MockClock) -> None:
    server = Server()
    server.failures = [ConnectFailed("refused: token secret is not good")]
    with pytest.raises(ConnectFailed, match="token ••• is not good"):
        async with open_pair(server, auth=TokenAuth("secret"), reconnect=None, logged=[]):
            pytest.fail("not reached")


@pytest.mark.parametrize(
    "make",
    [
        lambda: TokenAuth("t", protocol_prefix="a b"),
        lambda: TokenAuth("t", protocol_prefix="a,"),
        lambda: TokenAuth("t", attach=ANYTHING),
        lambda: TokenAuth("t", protocol_position=ANYTHING),
        lambda: TokenAuth("t", header="no header"),
        lambda: Reconnect(max_attempts=-1),
        lambda: Retry(max_attempts=0),
        lambda: Reconnect(restart_delay=(2, 1)),
        lambda: Reconnect(initial_delay=-1),
        lambda: QueueOptions(policy=ANYTHING),
        lambda: QueueOptions(max_messages=0),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"auth": "token"}, "auth takes a TokenAuth, not str"),
        ({"headers": [("X", "y")]}, "headers takes a Mapping, not list"),
        ({"headers": {"Host": "h"}}, "headers takes fields that the handshake itself does not set, and not 'Host'"),
        ({"headers": {"X y": "h"}}, "and not 'X y'"),
        ({"headers": {"X": "a\nb"}}, "the header field 'X' has characters outside of visible ASCII"),
        ({"subprotocols": "chat"}, "subprotocols takes a list of names"),
        ({"subprotocols": ["a b"]}, "a subprotocol is a token of RFC 9110"),
        ({"reconnect": True}, "reconnect takes a Reconnect, not bool"),
        ({"queue": "off"}, "queue takes a QueueOptions, not str"),
        ({"retry": 3}, "retry takes a Retry, not int"),
        ({"limits": 3}, "limits takes a Limits, not int"),
        ({"proxy": "h:3128"}, "proxy takes a URL of the form http://host:port or https://host:port"),
        ({"max_pending": 0}, "max_pending takes a whole number above 0"),
        ({"handler_capacity": 0}, "capacity takes a whole number above 0"),
    ],
)
async def test_an_option_of_another_kind_is_refused_at_once(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        async with open_client("ws://h.test/", **options):
            pytest.fail("not reached")


async def test_who_waits_for_a_first_connection_is_told_once_why_there_is_none(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    server = Server()
    for _ in range(5):
        server.refuse(503)
    async with open_pair(server) as (client, _):
        server.peer.cut()
        await settle()
        await client.wait_open()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["ws://server.test/path: refused; trying again in 0.1 s"]


@pytest.mark.parametrize(
    "url",
    ["http://h/", "ws:///", "ws://h/#f", "ws://h:99999/", "ws://h:0/", "h", "ws://a..b.ü/", "ws://[::1/?token=secret"],
)
async def test_a_url_that_is_none_is_refused_without_its_query(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        async with open_client(url):
            pytest.fail("not reached")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/p", "/p?t=T"),
        ("/p?t=old&x=1", "/p?t=T&x=1"),
        ("/p?t=old&x=1&t=older", "/p?t=T&x=1"),
        ("/p?flag&empty=", "/p?flag=&empty=&t=T"),
    ],
)
def test_a_token_is_there_once_and_what_the_url_has_stays(target: str, expected: str) -> None:
    auth = TokenAuth("T", query_parameter="t")
    assert auth.apply(Handshake(target), Credentials(token="T")).target == expected
