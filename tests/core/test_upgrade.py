from __future__ import annotations

import pytest
from websockets.client import ClientProtocol
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from trio_wskit._core.extensions import DEFLATE_OFFER
from trio_wskit._core.handshake import Headers
from trio_wskit._core.upgrade import Upgrade, UpgradeRequest, accept_upgrade, parse_response_head
from trio_wskit.errors import LocalProtocolError, Reject, RemoteProtocolError

# RFC 6455 section 1.3.
NONCE = b"the sample nonce"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

GOOD = {
    "Host": "example.org",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def request(**changes: str | None) -> Headers:
    fields = {**GOOD, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return Headers((name, value) for name, value in fields.items() if value is not None)


def test_a_good_request_is_accepted_as_in_the_rfc() -> None:
    upgrade = accept_upgrade(request())
    assert upgrade == Upgrade(
        headers=[("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", ACCEPT)]
    )
    assert upgrade.to_bytes([("x-client-id", "1")]) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nx-client-id: 1\r\n\r\n"
    )


def test_header_pairs_will_do_and_names_may_have_any_case() -> None:
    pairs = [(name.upper(), value) for name, value in GOOD.items()]
    assert accept_upgrade(pairs) == accept_upgrade(request())


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Upgrade": None}, 426),
        ({"Upgrade": "h2c"}, 426),
        ({"Connection": "close"}, 426),
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Version": None}, 426),
        ({"Sec_WebSocket_Key": None}, 400),
        ({"Sec_WebSocket_Key": "c2hvcnQ="}, 400),
        ({"Sec_WebSocket_Key": "not base64!"}, 400),
        ({"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ"}, 400),
        ({"Sec_WebSocket_Key": "ä" * 24}, 400),
        ({"Sec_WebSocket_Extensions": "foo bar"}, 400),
    ],
)
def test_a_bad_request_is_refused_with_a_status(changes: dict[str, str | None], status: int) -> None:
    with pytest.raises(Reject) as caught:
        accept_upgrade(request(**changes))
    assert caught.value.status == status
    assert caught.value.body


def test_a_refusal_says_what_would_do() -> None:
    with pytest.raises(Reject) as caught:
        accept_upgrade(request(Sec_WebSocket_Version="8"))
    assert caught.value.headers == {"Sec-WebSocket-Version": "13"}


@pytest.mark.parametrize(
    ("offered", "spoken", "chosen"),
    [
        ("a, b", ["b", "a"], "b"),
        ("a,b", ["c"], None),
        ("A", ["a"], None),
        (None, ["a"], None),
        ("a", [], None),
    ],
)
def test_our_first_subprotocol_that_the_client_offers_is_chosen(
    offered: str | None, spoken: list[str], chosen: str | None
) -> None:
    upgrade = accept_upgrade(request(Sec_WebSocket_Protocol=offered), subprotocols=spoken)
    assert upgrade.subprotocol == chosen
    assert dict(upgrade.headers).get("Sec-WebSocket-Protocol") == chosen


def test_compression_is_agreed_on_only_where_both_want_it() -> None:
    offering = request(Sec_WebSocket_Extensions="permessage-deflate; server_max_window_bits=10")
    assert accept_upgrade(offering).deflate_window_bits is None
    assert accept_upgrade(request(), deflate=True).deflate_window_bits is None
    upgrade = accept_upgrade(offering, deflate=True)
    assert upgrade.deflate_window_bits == 10
    assert dict(upgrade.headers)["Sec-WebSocket-Extensions"].startswith("permessage-deflate; ")


@pytest.mark.parametrize("field", [("x", "a\r\nb"), ("x\n", "a"), ("x", "€")])
def test_no_field_can_break_out_of_the_head(field: tuple[str, str]) -> None:
    with pytest.raises(LocalProtocolError):
        Upgrade().to_bytes([field])
    with pytest.raises(LocalProtocolError):
        UpgradeRequest(host="h", nonce=NONCE, extra_headers=[field]).to_bytes()


def test_a_clients_request_is_written_as_in_the_rfc() -> None:
    wanted = UpgradeRequest(
        host="server.example.com",
        target="/chat?a=b",
        nonce=NONCE,
        subprotocols=["chat", "superchat"],
        deflate=True,
        extra_headers=[("Origin", "http://example.com")],
    )
    assert wanted.to_bytes().decode().split("\r\n") == [
        "GET /chat?a=b HTTP/1.1",
        "Host: server.example.com",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: chat, superchat",
        f"Sec-WebSocket-Extensions: {DEFLATE_OFFER}",
        "Origin: http://example.com",
        "",
        "",
    ]


@pytest.mark.parametrize("target", ["chat", "/a b", "/a#b", "/ä", "/a\r\nX: y", ""])
def test_a_target_that_is_none_is_refused(target: str) -> None:
    with pytest.raises(LocalProtocolError, match="target of a request"):
        UpgradeRequest(host="h", target=target, nonce=NONCE).to_bytes()


def test_a_subprotocol_that_is_no_token_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="subprotocol is a token"):
        UpgradeRequest(host="h", nonce=NONCE, subprotocols=["a b"]).to_bytes()


AGREED = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
ANSWER = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": ACCEPT}


def answer(**changes: str) -> Headers:
    return Headers({**ANSWER, **{name.replace("_", "-"): value for name, value in changes.items()}}.items())


def test_a_client_takes_a_good_answer() -> None:
    ours = UpgradeRequest(host="h", nonce=NONCE, subprotocols=["a"], deflate=True)
    upgrade = ours.check_response(101, answer(Sec_WebSocket_Protocol="a", Sec_WebSocket_Extensions=AGREED))
    assert (upgrade.subprotocol, upgrade.deflate_window_bits) == ("a", 15)
    assert dict(upgrade.headers)["sec-websocket-accept"] == ACCEPT
    assert ours.check_response(101, answer()).subprotocol is None


@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        (answer(Upgrade="h2c"), "does not upgrade"),
        (answer(Connection="close"), "does not upgrade"),
        (answer(Sec_WebSocket_Accept="x"), "does not answer our key"),
        (answer(Sec_WebSocket_Protocol="b"), "subprotocol 'b', which was not offered"),
        (answer(Sec_WebSocket_Extensions=AGREED), "extension that was not offered"),
        (answer(Sec_WebSocket_Extensions="a b"), "not a list of extensions"),
    ],
)
def test_a_client_refuses_an_answer_to_another_request(headers: Headers, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        UpgradeRequest(host="h", nonce=NONCE, subprotocols=["a"]).check_response(101, headers)


def test_a_client_is_told_with_which_status_it_was_refused() -> None:
    ours = UpgradeRequest(host="h", nonce=NONCE)
    with pytest.raises(Reject) as caught:
        ours.check_response(429, Headers([("Retry-After", "5")]))
    assert (caught.value.status, caught.value.headers) == (429, {"retry-after": "5"})
    with pytest.raises(RemoteProtocolError, match="status 200"):
        ours.check_response(200, Headers())


def test_the_head_of_an_answer_is_read() -> None:
    status, headers = parse_response_head(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade:websocket\r\nX: a \r\nx: b")
    assert status == 101
    assert dict(headers) == {"upgrade": "websocket", "x": "a, b"}
    assert parse_response_head(b"HTTP/1.1 404")[0] == 404


@pytest.mark.parametrize(
    "head",
    [b"", b"HTTP/1.0 101 ok", b"HTTP/1.1 1", b"SSH-2.0", b"HTTP/1.1 101 ok\r\nno colon", b"HTTP/1.1 101 ok\r\na b: c"],
)
def test_what_is_no_head_is_refused(head: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_response_head(head)


def test_websockets_accepts_our_request_and_we_its_answer() -> None:
    ours = UpgradeRequest(host="localhost", nonce=NONCE, subprotocols=["a"], deflate=True)
    server = ServerProtocol(subprotocols=[])
    server.receive_data(ours.to_bytes())
    (theirs,) = server.events_received()
    assert isinstance(theirs, Request)
    server.send_response(server.accept(theirs))
    head = b"".join(server.data_to_send()).removesuffix(b"\r\n\r\n")
    assert ours.check_response(*parse_response_head(head)).deflate_window_bits is None


def test_websockets_takes_our_answer_to_its_request() -> None:
    client = ClientProtocol(parse_uri("ws://localhost/"))
    theirs = client.connect()
    client.send_request(theirs)
    upgrade = accept_upgrade(list(theirs.headers.raw_items()), deflate=True)
    client.receive_data(upgrade.to_bytes())
    (event,) = client.events_received()
    assert isinstance(event, Response)
    assert client.handshake_exc is None
