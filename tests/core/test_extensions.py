from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidHeader
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, ServerPerMessageDeflateFactory
from websockets.headers import parse_extension

from trio_wskit._core.extensions import DEFLATE_OFFER, Extension, accept_deflate, agreed_window_bits, parse_extensions

READ: list[tuple[str, list[Extension]]] = [
    ("", []),
    (" , ,", []),
    ("foo", [("foo", [])]),
    ("foo, bar; a; b=2", [("foo", []), ("bar", [("a", None), ("b", "2")])]),
    (' foo ; a = "quoted" ,bar', [("foo", [("a", "quoted")]), ("bar", [])]),
]


@pytest.mark.parametrize(("value", "expected"), READ)
def test_the_field_is_read(value: str, expected: list[Extension]) -> None:
    assert parse_extensions(value) == expected


@pytest.mark.parametrize("value", ["foo bar", ";", "foo;", "foo; a=", 'foo; a="x', "foo; a=b=c", "foo,@", "foo; a b"])
def test_what_does_not_follow_the_grammar_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="not a list of extensions at position"):
        parse_extensions(value)


tokens = st.sampled_from(["permessage-deflate", "foo", "server_max_window_bits", "client_max_window_bits", "9", "15"])
pieces = st.one_of(tokens, st.sampled_from([";", ",", "=", " ", "\t", '"', ""]))


@given(st.lists(pieces, max_size=12).map(lambda some: "".join(some).strip()))
def test_it_is_read_as_websockets_reads_it(value: str) -> None:
    try:
        theirs = parse_extension(value)
    except InvalidHeader:
        theirs = None
    try:
        ours = parse_extensions(value)
    except ValueError:
        ours = None
    # It wants at least one extension, where we take an empty field for none.
    assert ours == theirs or (theirs is None and not ours)


AGREED = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("offer", "answer", "bits"),
    [
        ("permessage-deflate", AGREED, 15),
        ("permessage-deflate; client_max_window_bits", AGREED, 15),
        ("permessage-deflate; client_max_window_bits=8", AGREED, 15),
        (DEFLATE_OFFER, AGREED, 15),
        ("permessage-deflate; server_max_window_bits=15", AGREED, 15),
        ("permessage-deflate; server_max_window_bits=9", f"{AGREED}; server_max_window_bits=9", 9),
        ("x-other, permessage-deflate; server_max_window_bits=8, permessage-deflate", AGREED, 15),
    ],
)
def test_an_offer_is_accepted_without_context_takeover(offer: str, answer: str, bits: int) -> None:
    assert accept_deflate(parse_extensions(offer)) == (answer, bits)


@pytest.mark.parametrize(
    "offer",
    [
        "",
        "x-other",
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=x",
        "permessage-deflate; client_no_context_takeover=1",
        "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
        "permessage-deflate; unheard_of",
    ],
)
def test_an_offer_that_cannot_be_followed_is_passed_over(offer: str) -> None:
    assert accept_deflate(parse_extensions(offer)) is None


@pytest.mark.parametrize(
    ("answer", "bits"),
    [
        ("", None),
        (AGREED, 15),
        ("permessage-deflate; server_no_context_takeover", 15),
        ("permessage-deflate; server_no_context_takeover; server_max_window_bits=8", 15),
        (f"{AGREED}; client_max_window_bits=9", 9),
    ],
)
def test_a_client_takes_what_it_offered(answer: str, bits: int | None) -> None:
    assert agreed_window_bits(parse_extensions(answer)) == bits


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("x-other", "not offered"),
        (f"{AGREED}, {AGREED}", "not offered"),
        (f"{AGREED}; server_no_context_takeover", "not offered"),
        ("permessage-deflate", "did not agree to go without context takeover"),
        (f"{AGREED}; client_max_window_bits=8", "client_max_window_bits=8"),
        (f"{AGREED}; client_max_window_bits", "client_max_window_bits=None"),
        (f"{AGREED}; server_max_window_bits=7", "server_max_window_bits=7"),
        ("permessage-deflate; server_no_context_takeover=1", "server_no_context_takeover=1"),
    ],
)
def test_a_client_refuses_what_it_did_not_offer(answer: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        agreed_window_bits(parse_extensions(answer))


def test_websockets_agrees_with_us_on_either_side() -> None:
    client = ClientPerMessageDeflateFactory()
    agreed = accept_deflate([("permessage-deflate", list(client.get_request_params()))])
    assert agreed is not None
    ((_, parameters),) = parse_extensions(agreed[0])
    accepted = client.process_response_params(parameters, [])
    assert accepted.remote_no_context_takeover
    assert accepted.local_no_context_takeover

    ((_, parameters),) = parse_extensions(DEFLATE_OFFER)
    answer, _ = ServerPerMessageDeflateFactory().process_request_params(parameters, [])
    assert agreed_window_bits([("permessage-deflate", list(answer))]) == 15
