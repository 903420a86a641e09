from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.handshake import Headers, HttpResponse, Request, origin_allowed

UPGRADE = Headers([("Upgrade", "WebSocket"), ("Connection", "keep-alive, Upgrade")])


# --- headers ---------------------------------------------------------------------------------------------------------


def test_a_header_is_found_in_any_case() -> None:
    headers = Headers([("X-Token", "abc")])
    assert headers["x-token"] == headers["X-TOKEN"] == "abc"
    assert "x-Token" in headers
    assert headers.get("other") is None


def test_a_repeated_field_is_joined_in_its_order() -> None:
    headers = Headers([("Accept", "a"), ("Host", "h"), ("accept", "b")])
    assert headers["accept"] == "a, b"
    assert list(headers) == ["accept", "host"]
    assert len(headers) == 2


def test_tokens_are_split_stripped_and_in_lower_case() -> None:
    headers = Headers([("Connection", "keep-alive , Upgrade,, ")])
    assert headers.tokens("connection") == ["keep-alive", "upgrade"]
    assert headers.tokens("upgrade") == []


def test_a_repr_shows_no_value_for_it_may_be_a_secret() -> None:
    assert repr(Headers([("Cookie", "session=abc")])) == "<Headers cookie>"


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", {}),
        ("/chat?room=1&name=", "/chat", {"room": "1", "name": ""}),
        ("/a?x=1&x=2", "/a", {"x": "2"}),
        ("/caf%C3%A9%20?q=%26", "/café ", {"q": "&"}),
        ("/a#fragment?x=1", "/a", {}),
        ("?x=1", "/", {"x": "1"}),
        ("", "/", {}),
        ("http://example.org/chat?x=1", "/chat", {"x": "1"}),
        ("http://example.org", "/", {}),
        ("*", "*", {}),
        # RFC 9112 section 3.2.1: an origin-form is a path, whatever it starts with.
        ("//healthz", "//healthz", {}),
        ("//[", "//[", {}),
        ("/a?x=http://b/c", "/a", {"x": "http://b/c"}),
    ],
)
def test_a_target_is_split_into_path_and_query(target: str, path: str, query: dict[str, str]) -> None:
    request = Request(target=target)
    assert request.path == path
    assert request.query == query


@given(st.text())
def test_no_target_makes_path_or_query_fail(target: str) -> None:
    request = Request(target=target)
    assert request.path
    assert request.query is not None


def test_subprotocols_keep_their_order_and_case() -> None:
    request = Request(headers=Headers([("Sec-WebSocket-Protocol", "Chat.v2, chat.v1 ,"), ("host", "h")]))
    assert request.subprotocols == ["Chat.v2", "chat.v1"]
    assert Request().subprotocols == []


def test_an_upgrade_needs_both_of_its_fields() -> None:
    assert Request(headers=UPGRADE).is_upgrade
    assert not Request(headers=Headers([("Upgrade", "websocket")])).is_upgrade
    assert not Request(headers=Headers([("Connection", "Upgrade")])).is_upgrade
    assert not Request(headers=Headers([("Upgrade", "h2c"), ("Connection", "upgrade")])).is_upgrade


# --- answers ---------------------------------------------------------------------------------------------------------


def test_an_answer_says_its_length_in_bytes_and_that_the_connection_closes() -> None:
    whole = HttpResponse(200, "é\n").to_bytes()
    assert whole == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
        b"\xc3\xa9\n"
    )


def test_the_head_alone_is_that_of_the_whole_answer() -> None:
    response = HttpResponse(200, b"abc", "application/octet-stream")
    assert response.to_bytes(head_only=True) + b"abc" == response.to_bytes()


def test_further_fields_come_after_the_own_and_replace_them_in_any_case() -> None:
    response = HttpResponse(429, headers={"Retry-After": "1", "content-type": "application/json"})
    head, _, _ = response.to_bytes().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"Retry-After: 1" in head
    assert head.lower().count(b"content-type") == 1
    assert b"application/json" in head


def test_a_status_of_ones_own_has_some_phrase() -> None:
    assert HttpResponse(599).to_bytes().startswith(b"HTTP/1.1 599 Unknown\r\n")


@pytest.mark.parametrize("headers", [{"X": "a\r\nSet-Cookie: b"}, {"X": "a\nb"}, {"X\r": "a"}])
def test_a_header_with_a_line_break_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="has a line break"):
        HttpResponse(headers=headers).to_bytes()


# --- origins ---------------------------------------------------------------------------------------------------------


def request(origin: str | None, host: str | None = "example.org") -> Request:
    pairs = {"origin": origin, "host": host}
    return Request(headers=Headers([(name, value) for name, value in pairs.items() if value is not None]))


def test_who_sends_no_origin_is_no_browser_and_may_come_in() -> None:
    assert origin_allowed(request(None), None)
    assert origin_allowed(request(None), frozenset())


@pytest.mark.parametrize("origin", ["https://example.org", "http://EXAMPLE.org ", "https://example.org:8443"])
def test_without_a_list_a_page_of_the_same_host_may_come_in(origin: str) -> None:
    host = "Example.org:8443" if ":8443" in origin else "example.ORG"
    assert origin_allowed(request(origin, host), None)


@pytest.mark.parametrize(
    "origin", ["https://evil.org", "https://example.org.evil.org", "https://example.org:1", "null"]
)
def test_without_a_list_a_page_of_another_host_may_not(origin: str) -> None:
    assert not origin_allowed(request(origin), None)


@pytest.mark.parametrize("origin", ["null", "", "garbage", "https://example.org"])
def test_without_a_host_no_page_is_of_the_same_host(origin: str) -> None:
    # A sandboxed page sends "null", which names no host either: nothing must not equal nothing.
    assert not origin_allowed(request(origin, None), None)


def test_a_list_is_compared_as_a_whole_in_lower_case() -> None:
    allowed = frozenset({"https://example.org"})
    assert origin_allowed(request("HTTPS://Example.org", "elsewhere"), allowed)
    assert not origin_allowed(request("https://example.org:8443"), allowed)
    assert not origin_allowed(request("http://example.org"), allowed)


def test_an_empty_list_lets_no_page_in_and_a_star_every_page() -> None:
    assert not origin_allowed(request("https://example.org"), frozenset())
    assert origin_allowed(request("https://evil.org"), frozenset({"*"}))


@given(st.text())
def test_no_origin_makes_the_question_fail(origin: str) -> None:
    assert origin_allowed(request(origin), None) in (True, False)


def test_an_origin_that_is_no_url_may_not_come_in() -> None:
    assert not origin_allowed(request("http://[::1"), None)
