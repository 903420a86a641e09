"""Our parser beside two that others wrote: wsproto, and the Sans-I/O protocol of websockets. Whole, and cut anywhere.

Where the three differ on purpose (the RFC leaves it open, or one is more lenient):

- a frame length that is not in its shortest form: refused by wsproto and us, taken by websockets
- a close in the middle of a message: taken by wsproto and us, refused by websockets
- close code 1012 to 1014: taken by websockets and us; wsproto refuses 1014, which was registered after it was written
- several errors in one header or frame: each library may name another one first
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from itertools import chain

from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, SERVER, Protocol
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from trio_wskit._core.frame_parser import FrameParser
from trio_wskit._core.frames import Binary, close_frame, frame, masked

KEY = b"\x37\xfa\x21\x3d"
LIMIT = 1 << 17

# What a stream of bytes meant: messages (text as str), pings, pongs, and how it ended.
Meaning = tuple[list[str | bytes], list[bytes], list[bytes], tuple[str, int, str] | None]


def ours(pieces: Sequence[bytes], *, client: bool) -> Meaning:
    parser = FrameParser(client=client, max_message_bytes=LIMIT)
    messages = [message for piece in pieces for message in parser.feed(piece)]
    pings = parser.control.pings if parser.control else []
    pongs = parser.control.pongs if parser.control else []
    end = None
    if parser.closed is not None:
        closed = parser.closed
        end = ("closed", closed.code, closed.reason) if closed.by_peer else ("broken", closed.code, "")
    return [one if isinstance(one, Binary) else one.decode() for one in messages], pings, pongs, end


def wsprotos(pieces: Sequence[bytes], *, client: bool) -> Meaning:
    connection = Connection(ConnectionType.CLIENT if client else ConnectionType.SERVER)
    messages: list[str | bytes] = []
    pings: list[bytes] = []
    pongs: list[bytes] = []
    parts: list[str | bytes] = []
    for piece in pieces:
        connection.receive_data(piece)
        for event in connection.events():
            match event:
                case TextMessage() | BytesMessage():
                    parts.append(event.data if isinstance(event.data, str) else bytes(event.data))
                    if event.message_finished:
                        messages.append(joined(parts))
                        parts.clear()
                case Ping():
                    pings.append(bytes(event.payload))
                case Pong():
                    pongs.append(bytes(event.payload))
                case CloseConnection():
                    # The same event stands for the peer's close and for its errors; the state tells which.
                    if connection.state is ConnectionState.OPEN:
                        return messages, pings, pongs, ("broken", int(event.code), "")
                    return messages, pings, pongs, ("closed", int(event.code), event.reason or "")
                case _:
                    raise AssertionError(event)
    return messages, pings, pongs, None


def websocketss(pieces: Sequence[bytes], *, client: bool) -> Meaning:
    protocol = Protocol(CLIENT if client else SERVER, max_size=LIMIT)
    messages: list[str | bytes] = []
    pings: list[bytes] = []
    pongs: list[bytes] = []
    parts: list[str | bytes] = []
    decoder = None
    for piece in pieces:
        protocol.receive_data(piece)
        for event in protocol.events_received():
            assert isinstance(event, Frame)
            if event.opcode is Opcode.PING:
                pings.append(bytes(event.data))
            elif event.opcode is Opcode.PONG:
                pongs.append(bytes(event.data))
            elif event.opcode is not Opcode.CLOSE:
                if event.opcode is not Opcode.CONT:
                    decoder = codecs.getincrementaldecoder("utf-8")() if event.opcode is Opcode.TEXT else None
                try:
                    parts.append(decoder.decode(event.data, event.fin) if decoder else bytes(event.data))
                except UnicodeDecodeError:
                    # Its Sans-I/O layer leaves this to the layer above.
                    return messages, pings, pongs, ("broken", 1007, "")
                if event.fin:
                    messages.append(joined(parts))
                    parts.clear()
    if protocol.parser_exc is not None:
        assert protocol.close_sent is not None
        return messages, pings, pongs, ("broken", protocol.close_sent.code, "")
    if protocol.close_rcvd is not None:
        return messages, pings, pongs, ("closed", protocol.close_rcvd.code, protocol.close_rcvd.reason)
    return messages, pings, pongs, None


def joined(parts: Sequence[str | bytes]) -> str | bytes:
    first = parts[0]
    if isinstance(first, str):
        return "".join(part for part in parts if isinstance(part, str))
    return b"".join(part for part in parts if isinstance(part, bytes))


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The stream whole, byte by byte, and in two pieces, cut at every place of a short one."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    step = max(1, len(data) // 64)
    for at in range(1, len(data), step):
        yield [data[:at], data[at:]]


Frames = list[bytes]
Strategy = st.SearchStrategy[Frames]


def one_of_kind(opcode: int, payloads: st.SearchStrategy[bytes], *, first_bits: int = 0x80) -> Strategy:
    return payloads.map(lambda payload: [frame(opcode, payload, first_bits=first_bits)])


texts = st.text(max_size=40).map(str.encode)
at_the_edges = st.sampled_from([0, 125, 126, 127, 65535, 65536]).map(lambda size: b"x" * size)
payloads = st.one_of(texts, st.binary(max_size=40), at_the_edges)
small = st.binary(max_size=125)
whole_frames: Strategy = st.one_of(
    one_of_kind(1, texts),
    one_of_kind(1, payloads),
    one_of_kind(2, payloads),
    one_of_kind(9, small),
    one_of_kind(10, small),
)


@st.composite
def fragmented(draw: st.DrawFn) -> Frames:
    opcode = draw(st.sampled_from([1, 2]))
    payload = draw(st.one_of(texts, st.binary(max_size=40)))
    marks = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    parts = [payload[start:stop] for start, stop in zip([0, *marks], [*marks, len(payload)], strict=True)]
    frames: Frames = []
    for at, part in enumerate(parts):
        fin = 0x80 if at == len(parts) - 1 else 0
        frames.append(frame(0 if at else opcode, part, first_bits=fin))
        if not fin and draw(st.booleans()):
            frames.append(frame(draw(st.sampled_from([9, 10])), draw(small)))
    return frames


closes: Strategy = st.tuples(
    st.sampled_from([1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 4999]), st.text(max_size=30)
).map(lambda arguments: [close_frame(*arguments)])
bad_codes = [0, 999, 1004, 1005, 1006, 1015, 2000, 2999, 5000, 65535]
bad_closes = one_of_kind(
    8, st.sampled_from([b"", b"\x03", b"\x03\xe8\xff\xfe", *(code.to_bytes(2, "big") for code in bad_codes)])
)
# One thing wrong at a time, so that there is no doubt what has to be complained about.
bad_frames: Strategy = st.one_of(
    st.sampled_from([3, 7, 11, 15]).map(lambda opcode: [frame(opcode, b"")]),
    st.sampled_from([64, 32, 16]).map(lambda bits: [frame(1, b"x", first_bits=0x80 | bits)]),
    st.sampled_from([8, 9, 10]).map(lambda opcode: [frame(opcode, b"", first_bits=0)]),
    st.sampled_from([8, 9, 10]).map(lambda opcode: [frame(opcode, bytes(126))]),
    st.sampled_from([[frame(0, b"x")], [frame(1, b"a", first_bits=0), frame(2, b"b")], [frame(2, bytes(LIMIT + 1))]]),
    bad_closes,
)
nothing: Strategy = st.just([])


def streams_of(*kinds: Strategy, max_size: int) -> Strategy:
    return st.lists(st.one_of(*kinds), max_size=max_size).map(lambda many: list(chain(*many)))


streams: Strategy = st.tuples(
    streams_of(whole_frames, fragmented(), max_size=6), st.one_of(nothing, closes, bad_frames), whole_frames
).map(lambda parts: list(chain(*parts)))
anything = streams_of(whole_frames, fragmented(), closes, bad_frames, max_size=3)


@given(streams, st.booleans())
@example([], False)
@example([frame(1, "é".encode()[:1], first_bits=0), frame(0, "é".encode()[1:])], False)
def test_the_three_agree_on_whole_streams(frames: Frames, client: bool) -> None:
    data = b"".join(frames if client else [masked(one, KEY) for one in frames])
    mine = ours([data], client=client)
    assert mine == websocketss([data], client=client)
    if len(data) < LIMIT:  # wsproto knows no limit
        assert mine == wsprotos([data], client=client)


@given(anything, st.booleans())
def test_it_does_not_matter_where_a_stream_is_cut(frames: Frames, client: bool) -> None:
    data = b"".join(frames if client else [masked(one, KEY) for one in frames])
    if len(data) > 4000:
        data = data[:4000]
    expected = ours([data], client=client)
    for pieces in cuts(data):
        assert ours(pieces, client=client) == expected


@given(st.binary(max_size=300), st.booleans())
def test_noise_is_taken_as_websockets_takes_it(data: bytes, client: bool) -> None:
    mine, theirs = ours([data], client=client), websocketss([data], client=client)
    if mine[3] == ("broken", 1002, ""):
        # Lengths in a longer form than needed are the one thing in which we are stricter: they may have read on.
        assert theirs[0][: len(mine[0])] == mine[0]
        assert theirs[1][: len(mine[1])] == mine[1]
        assert theirs[2][: len(mine[2])] == mine[2]
    else:
        assert mine == theirs


@given(st.binary(max_size=300))
def test_noise_never_raises_and_never_keeps_more_than_was_given(data: bytes) -> None:
    parser = FrameParser(max_message_bytes=100)
    total = 0
    for at in range(0, len(data), 7):
        total += sum(len(message) for message in parser.feed(data[at : at + 7]))
    assert total <= len(data)
