"""What goes along with a message: the client's own meta, and the caller's."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.client.links import NOW, GetUser, Hello, Server, open_pair
from trio_wskit import Rpc, message
from trio_wskit._core.handshake import Headers
from trio_wskit.client import Client
from trio_wskit.errors import PayloadInvalid

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@message("DONE")
class Done:
    pass


@message("TENANTS_OWN", meta={"tenantId": str})
class TenantsOwn(Rpc[Done]):
    pass


async def said(client: Client, server: Server, message: Any, meta: Any) -> dict[str, Any]:
    """The meta on the wire of a message, and of a request."""
    if isinstance(message, Hello):
        await client.send(message, meta=meta)
    else:
        with trio.move_on_after(1):
            await client.request(message, meta=meta)
    sent = (await server.heard())[0]
    found: dict[str, Any] = sent["meta"]
    return found


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("old_server", [False, True])
@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        (None, {"timestamp": NOW}),
        ({}, {"timestamp": NOW}),
        ({"traceparent": TRACE}, {"timestamp": NOW, "traceparent": TRACE}),
        ({"timestamp": 5}, {"timestamp": 5}),
        ({"clientId": "x", "receivedAt": 5, "correlationId": "y", "tenant": {"a": [1]}}, None),
        ({"timeoutMs": 7, "idempotencyKey": "k"}, {"timestamp": NOW, "timeoutMs": 7, "idempotencyKey": "k"}),
    ],
)
async def test_the_callers_meta_goes_along_without_what_is_not_the_callers_to_say(
    meta: Any, expected: Any, old_server: bool, asks: bool, autojump_clock: MockClock
) -> None:
    server = Server()
    if old_server:
        server.headers = Headers()
    async with open_pair(server) as (client, _):
        found = await said(client, server, GetUser("1") if asks else Hello("a"), meta)
        expected = dict(expected or {"timestamp": NOW, "tenant": {"a": [1]}})
        if asks:
            assert len(found.pop("correlationId")) == 36
            if not old_server:
                expected["timeoutMs"] = 1000  # of the scope, whatever the caller's meta says
        assert found == expected


async def test_meta_that_its_message_declares_is_checked(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        found = await said(client, server, TenantsOwn(), {"tenantId": "t"})
        assert found["tenantId"] == "t"
        await server.heard()
        with pytest.raises(PayloadInvalid) as caught:
            await client.request(TenantsOwn(), meta={"tenantId": 5})
        assert [issue["path"] for issue in caught.value.issues] == ["meta.tenantId"]
        assert await server.heard() == []


async def test_meta_that_is_no_json_is_said_at_once_also_without_a_connection(autojump_clock: MockClock) -> None:
    server = Server()
    server.failures.append(5.0)
    async with open_pair(server, wait=False) as (client, _):
        for _ in range(2):
            with pytest.raises(PayloadInvalid):
                await client.send(Hello("a"), meta={"when": object()})
            with pytest.raises(PayloadInvalid):
                await client.request(GetUser("1"), meta={"when": object()})
            with pytest.raises(PayloadInvalid):
                await client.send_json("X", object())
            with pytest.raises(PayloadInvalid):
                await client.request_json("X", {"a": float("nan")})
            await client.wait_open()
        assert (client.stats.pending, client.stats.queued) == (0, 0)
        assert await server.heard() == []


async def test_an_idempotency_key_of_the_argument_wins(autojump_clock: MockClock) -> None:
    async with open_pair() as (client, server):
        with trio.move_on_after(1):
            await client.request(GetUser("1"), meta={"idempotencyKey": "theirs"}, idempotency_key="mine")
        (sent, _) = await server.heard()
        assert sent["meta"]["idempotencyKey"] == "mine"
