from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.deflate import MIN_DEFLATED_BYTES, deflated, inflate
from trio_wskit._core.frames import Binary, binary_frame, close_frame, payload_of, text_frame
from trio_wskit.errors import RemoteProtocolError


def squeeze(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


@given(st.binary(max_size=4000))
def test_inflate_is_the_inverse_of_a_senders_deflate(data: bytes) -> None:
    assert inflate(squeeze(data), len(data)) == data


@pytest.mark.parametrize(
    "payload",
    [
        "f248cdc9c90700",  # RFC 7692 section 7.2.3.1
        "000500faff48656c6c6f00",  # 7.2.3.3, a stored block
        "f348cdc9c90700" + "00",  # 7.2.3.4, a final block and its padding
        "f348cdc9c90700",  # the same without the padding
        "f248050000 00ffff cac9c90700",  # 7.2.3.5, two blocks
    ],
)
def test_the_examples_of_the_rfc_are_inflated(payload: str) -> None:
    assert inflate(bytes.fromhex(payload), 5) == b"Hello"


def test_a_bomb_is_stopped_at_the_limit() -> None:
    bomb = squeeze(bytes(50_000_000))
    assert len(bomb) < 100_000
    with pytest.raises(RemoteProtocolError, match="limit of 1000 bytes") as caught:
        inflate(bomb, 1000)
    assert caught.value.close_code == 1009


def test_the_limit_itself_is_allowed() -> None:
    assert inflate(squeeze(bytes(1000)), 1000) == bytes(1000)
    with pytest.raises(RemoteProtocolError):
        inflate(squeeze(bytes(1001)), 1000)


@pytest.mark.parametrize("payload", [b"\xff\xff", bytes.fromhex("f348cdc9c90700") + b"more", bytes.fromhex("0300") * 3])
def test_what_is_no_single_deflate_stream_is_refused(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        inflate(payload, 1000)
    assert caught.value.close_code == 1007


@pytest.mark.parametrize("window_bits", [9, 15])
def test_deflated_makes_a_smaller_frame_that_inflates_to_the_same(window_bits: int) -> None:
    whole = text_frame(b"so much of the same " * 50)
    smaller = deflated(whole, window_bits)
    assert smaller[0] == 0xC1
    assert len(smaller) < len(whole) / 5
    assert inflate(payload_of(smaller), 1000) == payload_of(whole)
    assert deflated(binary_frame(payload_of(whole)))[0] == 0xC2


def test_deflated_leaves_alone_what_would_not_gain() -> None:
    short = text_frame(b"a" * (MIN_DEFLATED_BYTES - 3))
    noise = binary_frame(Binary(zlib.compress(bytes(range(256)) * 40)[:200]))
    for whole in (short, noise, close_frame(1000, "x" * 123)):
        assert deflated(whole) is whole


def test_a_frame_for_many_peers_is_compressed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compressobj = zlib.compressobj
    count = 0

    def counted(*, wbits: int, memLevel: int) -> object:  # noqa: N803 - zlib's name
        nonlocal count
        count += 1
        return compressobj(wbits=wbits, memLevel=memLevel)

    monkeypatch.setattr(zlib, "compressobj", counted)
    whole = text_frame(b"to everybody " * 20)
    assert len({deflated(whole) for _ in range(100)}) == 1
    assert count == 1
    assert deflated(whole, 10) != whole
    assert count == 2
    large = text_frame(b"too large to be remembered " * 3000)
    assert deflated(large) == deflated(large)
    assert count == 4
