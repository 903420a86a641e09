"""permessage-deflate between us and the websockets package, which compresses fragment by fragment where it likes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from trio_wskit._core.deflate import deflated
from trio_wskit._core.frame_parser import FrameParser
from trio_wskit._core.frames import Binary, binary_frame, masked, payload_of, text_frame

KEY = b"\x37\xfa\x21\x3d"
payloads = st.one_of(
    st.binary(max_size=2000),
    st.text(max_size=500).map(str.encode),
    st.tuples(st.binary(min_size=1, max_size=20), st.integers(1, 500)).map(lambda parts: parts[0] * parts[1]),
)


def theirs(window_bits: int = 15) -> PerMessageDeflate:
    return PerMessageDeflate(
        remote_no_context_takeover=True,
        local_no_context_takeover=True,
        remote_max_window_bits=window_bits,
        local_max_window_bits=window_bits,
    )


@given(st.lists(st.lists(payloads, min_size=1, max_size=4), max_size=4), st.integers(9, 15), st.integers(0, 10_000))
def test_we_inflate_what_they_compress_in_fragments_wherever_it_is_cut(
    messages: list[list[bytes]], window_bits: int, cut: int
) -> None:
    extension = theirs(window_bits)
    wire = b"".join(
        Frame(Opcode.CONT if at else Opcode.BINARY, part, fin=at == len(parts) - 1).serialize(
            mask=True, extensions=[extension]
        )
        for parts in messages
        for at, part in enumerate(parts)
    )
    parser = FrameParser(deflate=True)
    cut = min(cut, len(wire))
    got = parser.feed(wire[:cut]) + parser.feed(wire[cut:])
    assert parser.closed is None
    assert got == [b"".join(parts) for parts in messages]
    assert all(isinstance(message, Binary) for message in got)


@given(payloads, st.integers(9, 15))
def test_they_inflate_what_we_compress(payload: bytes, window_bits: int) -> None:
    whole = deflated(binary_frame(payload), window_bits)
    frame = Frame(Opcode.BINARY, payload_of(whole), rsv1=bool(whole[0] & 0x40))
    assert theirs(window_bits).decode(frame).data == payload


@given(st.text(max_size=2000).map(str.encode))
def test_we_inflate_what_we_compress(payload: bytes) -> None:
    parser = FrameParser(deflate=True)
    assert parser.feed(masked(deflated(text_frame(payload)), KEY)) == [payload]
