from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.frames import (
    Binary,
    Shared,
    binary_frame,
    close_frame,
    is_close_code,
    masked,
    payload_of,
    ping_frame,
    pong_frame,
    text_frame,
)
from trio_wskit._core.masking import apply_mask_by_integers
from trio_wskit.errors import LocalProtocolError


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        # The examples of RFC 6455 section 5.7.
        (text_frame(b"Hello"), "8105 48656c6c6f"),
        (masked(text_frame(b"Hello"), bytes.fromhex("37fa213d")), "8185 37fa213d 7f9f4d5158"),
        (ping_frame(b"Hello"), "8905 48656c6c6f"),
        (masked(pong_frame(b"Hello"), bytes.fromhex("37fa213d")), "8a85 37fa213d 7f9f4d5158"),
        (binary_frame(bytes(256))[:4], "827e 0100"),
        (binary_frame(bytes(65536))[:10], "827f 0000000000010000"),
        # The edges between the three forms of a length.
        (text_frame(b""), "8100"),
        (text_frame(bytes(125))[:2], "817d"),
        (text_frame(bytes(126))[:4], "817e 007e"),
        (text_frame(bytes(1023))[:4], "817e 03ff"),
        (text_frame(bytes(1024))[:4], "817e 0400"),
        (text_frame(bytes(65535))[:4], "817e ffff"),
        (ping_frame(), "8900"),
        (pong_frame(), "8a00"),
        (close_frame(), "8802 03e8"),
        (close_frame(4000, "ä"), "8804 0fa0 c3a4"),
        (close_frame(1005), "8800"),
    ],
)
def test_frames_are_byte_for_byte_those_of_the_rfc(whole: bytes, expected: str) -> None:
    assert whole == bytes.fromhex(expected)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_payload_of_gives_back_what_a_frame_was_made_of(size: int) -> None:
    payload = bytes(size)
    assert payload_of(text_frame(payload)) == payload
    assert type(payload_of(text_frame(payload))) is bytes
    assert payload_of(binary_frame(payload)) == payload
    assert type(payload_of(binary_frame(payload))) is Binary


@given(st.binary(max_size=70000), st.binary(min_size=4, max_size=4))
def test_a_masked_frame_differs_from_the_plain_one_by_its_bit_its_key_and_the_mask(payload: bytes, key: bytes) -> None:
    plain, hidden = text_frame(payload), masked(text_frame(payload), key)
    head = len(plain) - len(payload)
    assert hidden[0] == plain[0]
    assert hidden[1] == plain[1] | 0x80
    assert hidden[2:head] == plain[2:head]
    assert hidden[head : head + 4] == key
    assert apply_mask_by_integers(hidden[head + 4 :], key) == payload


def test_codes_that_may_be_on_the_wire() -> None:
    allowed = {code for code in range(6000) if is_close_code(code)}
    assert allowed == {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}


@pytest.mark.parametrize(
    ("code", "reason", "message"),
    [
        (999, "", "close code 999 may not be sent"),
        (1006, "", "close code 1006 may not be sent"),
        (1005, "why", "close code 1005 may not be sent"),
        (1000, "x" * 124, "at most 125 bytes, not 126"),
        (1000, "\ud800", "must be UTF-8"),
    ],
)
def test_a_close_that_the_protocol_forbids_is_refused(code: int, reason: str, message: str) -> None:
    with pytest.raises(LocalProtocolError, match=message):
        close_frame(code, reason)


def test_pings_and_pongs_over_125_bytes_are_refused() -> None:
    for make in (ping_frame, pong_frame):
        assert len(make(bytes(125))) == 127
        with pytest.raises(LocalProtocolError, match="at most 125 bytes, not 126"):
            make(bytes(126))


def test_shared_frames_are_joined_once_and_a_part_of_them_is_a_plain_tuple() -> None:
    frames = [text_frame(b"a"), text_frame(b"b"), binary_frame(b"c")]
    shared = Shared(iter(frames))
    assert list(shared) == frames
    assert shared.joined == b"".join(frames)
    assert type(shared[1:]) is tuple
    assert Shared(()).joined == b""
