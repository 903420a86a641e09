from __future__ import annotations

import zlib

import pytest

from trio_wskit._core.frame_parser import Closed, FrameParser
from trio_wskit._core.frames import (
    Binary,
    binary_frame,
    close_frame,
    frame,
    masked,
    payload_of,
    ping_frame,
    pong_frame,
    text_frame,
)
from trio_wskit.errors import LocalProtocolError

KEY = b"\x37\xfa\x21\x3d"
FIN, RSV1, RSV2, RSV3 = 0x80, 0x40, 0x20, 0x10


def sent(*frames: bytes) -> bytes:
    """What a client puts on the wire."""
    return b"".join(masked(one, KEY) for one in frames)


def fragments(*payloads: bytes, opcode: int = 1) -> list[bytes]:
    last = len(payloads) - 1
    return [
        frame(opcode if at == 0 else 0, payload, first_bits=FIN if at == last else 0)
        for at, payload in enumerate(payloads)
    ]


def compressed(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def bytewise(parser: FrameParser, data: bytes) -> list[bytes]:
    return [message for byte in data for message in parser.feed(bytes((byte,)))]


def end_of(parser: FrameParser) -> int | None:
    return None if parser.closed is None else parser.closed.code


def test_every_message_of_a_read_comes_at_once_and_in_order() -> None:
    parser = FrameParser()
    data = sent(text_frame(b"one"), binary_frame(b"two"), text_frame("drei €".encode()), text_frame(b""))
    messages = parser.feed(data)
    assert messages == [b"one", b"two", "drei €".encode(), b""]
    assert [type(message) for message in messages] == [bytes, Binary, bytes, bytes]
    assert parser.control is None
    assert end_of(parser) is None


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
def test_each_form_of_a_length_arrives_whole_or_cut(size: int) -> None:
    data = sent(binary_frame(bytes(size)))
    assert FrameParser().feed(data) == [bytes(size)]
    for cut in {*range(min(len(data), 20)), len(data) - 1}:
        parser = FrameParser()
        assert parser.feed(data[:cut]) == []
        assert parser.feed(data[cut:]) == [bytes(size)]


def test_a_client_takes_unmasked_frames_only() -> None:
    parser = FrameParser(client=True)
    assert parser.feed(text_frame(b"one") + binary_frame(bytes(300))) == [b"one", bytes(300)]
    assert parser.feed(sent(text_frame(b"one"))) == []
    assert parser.closed == Closed(
        1002, "a masked frame from a server", close_frame(1002, "a masked frame from a server"), by_peer=False
    )


def test_fragments_are_joined_and_control_frames_between_them_noticed() -> None:
    parser = FrameParser()
    first, second, third = fragments("Grüße".encode()[:3], "Grüße".encode()[3:5], "Grüße".encode()[5:])
    data = sent(first, ping_frame(b"p"), second, pong_frame(b"q"), third, text_frame(b"next"))
    for feed in (FrameParser.feed, bytewise):
        assert feed(parser, data) == ["Grüße".encode(), b"next"]
        assert parser.control is not None
        assert parser.control.pings == [b"p"]
        assert parser.control.pongs == [b"q"]
        parser.control = None


def test_binary_fragments_make_a_binary_message() -> None:
    (message,) = FrameParser().feed(sent(*fragments(b"\xff", b"", b"\xfe", opcode=2)))
    assert message == b"\xff\xfe"
    assert type(message) is Binary


def test_all_pings_of_a_read_are_kept_until_somebody_answers_them() -> None:
    parser = FrameParser()
    parser.feed(sent(ping_frame(b"1"), ping_frame(b"2")))
    parser.feed(sent(ping_frame(b"3")))
    assert parser.control is not None
    assert parser.control.pings == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("close", "code", "reason", "answer"),
    [
        (close_frame(1000, "done"), 1000, "done", close_frame(1000, "done")),
        (close_frame(4321), 4321, "", close_frame(4321)),
        (close_frame(1005), 1005, "", close_frame(1005)),
    ],
)
def test_a_close_is_answered_with_its_own_code_and_reason(close: bytes, code: int, reason: str, answer: bytes) -> None:
    for feed in (FrameParser.feed, bytewise):
        parser = FrameParser()
        assert feed(parser, sent(text_frame(b"last"), close)) == [b"last"]
        assert parser.closed == Closed(code, reason, answer, by_peer=True)


def test_nothing_after_a_close_is_looked_at() -> None:
    parser = FrameParser()
    assert parser.feed(sent(close_frame(), text_frame(b"late"))) == []
    assert parser.feed(sent(text_frame(b"later")) + b"\xff\xff\xff") == []
    assert end_of(parser) == 1000


def test_our_own_close_lets_messages_come_and_leaves_the_peers_unanswered() -> None:
    parser = FrameParser()
    assert parser.start_close(1001, "bye") == close_frame(1001, "bye")
    assert parser.feed(sent(text_frame(b"crossed"), close_frame(1001))) == [b"crossed"]
    assert parser.closed == Closed(1001, "", b"", by_peer=True)


def test_a_close_that_may_not_be_sent_changes_nothing() -> None:
    parser = FrameParser()
    with pytest.raises(LocalProtocolError):
        parser.start_close(1006)
    parser.feed(sent(close_frame(1000)))
    assert parser.closed is not None
    assert parser.closed.answer == close_frame(1000)


BROKEN: list[tuple[str, bytes, int]] = [
    ("not masked", text_frame(b"Hello"), 1002),
    ("not masked, and shorter than a masked header", b"\x81\x00", 1002),
    ("reserved bit 1", masked(frame(1, b"x", first_bits=FIN | RSV1), KEY), 1002),
    ("reserved bit 2", masked(frame(1, b"x", first_bits=FIN | RSV2), KEY), 1002),
    ("reserved bit 3", masked(frame(9, b"x", first_bits=FIN | RSV3), KEY), 1002),
    ("reserved data frame", sent(frame(3, b"x")), 1002),
    ("reserved control frame", sent(frame(0xB, b"")), 1002),
    ("ping in fragments", sent(frame(9, b"x", first_bits=0)), 1002),
    ("ping of 126 bytes", b"\x89\xfe\x00\x7e", 1002),
    ("continuation of nothing", sent(frame(0, b"x")), 1002),
    ("text inside an unfinished message", sent(*fragments(b"a", b"b")[:1], text_frame(b"x")), 1002),
    ("binary inside an unfinished message", sent(*fragments(b"a", b"b")[:1], binary_frame(b"x")), 1002),
    ("close of 1 byte", sent(frame(8, b"\x03")), 1002),
    ("close code 999", sent(frame(8, (999).to_bytes(2, "big"))), 1002),
    ("close code 1005", sent(frame(8, (1005).to_bytes(2, "big"))), 1002),
    ("close code 5000", sent(frame(8, (5000).to_bytes(2, "big"))), 1002),
    ("close reason that is not UTF-8", sent(frame(8, b"\x03\xe8\xff")), 1007),
    ("length of 125 in two bytes", b"\x81\xfe\x00\x7d", 1002),
    ("length of 65535 in eight bytes", b"\x81\xff" + (65535).to_bytes(8, "big"), 1002),
    ("length with its highest bit set", b"\x81\xff" + (1 << 63).to_bytes(8, "big"), 1002),
    ("text that is not UTF-8", sent(text_frame(b"\xed\xa0\x80")), 1007),
    ("text that ends within a character", sent(text_frame(b"\xc3")), 1007),
    ("fragments that end within a character", sent(*fragments(b"ok", b"\xc3")), 1007),
]


@pytest.mark.parametrize(("what", "data", "code"), BROKEN, ids=[what for what, _, _ in BROKEN])
def test_a_broken_protocol_ends_it_with_a_close_frame_and_keeps_what_came_before(
    what: str, data: bytes, code: int
) -> None:
    for feed in (FrameParser.feed, bytewise):
        parser = FrameParser()
        assert feed(parser, sent(text_frame(b"before")) + data) == [b"before"]
        assert parser.closed is not None, what
        assert parser.closed.code == code
        assert not parser.closed.by_peer
        assert parser.closed.answer == close_frame(code, parser.closed.reason)
        assert parser.feed(sent(text_frame(b"after"))) == []


def test_bad_text_in_a_fragment_is_refused_before_the_message_ends() -> None:
    parser = FrameParser()
    parser.feed(sent(*fragments(b"ok", b"\xff", b"never sent")[:2]))
    assert end_of(parser) == 1007


def test_an_error_after_our_close_is_not_answered_again() -> None:
    parser = FrameParser()
    parser.start_close()
    parser.feed(b"\xff\xff")
    assert parser.closed is not None
    assert (parser.closed.code, parser.closed.answer) == (1002, b"")


def test_a_frame_above_the_limit_is_refused_from_its_header() -> None:
    for size in (1001, 65536, 1 << 40):
        parser = FrameParser(max_message_bytes=1000)
        head = masked(binary_frame(b""), KEY)[:1] + (
            b"\xfe" + size.to_bytes(2, "big") if size < 65536 else b"\xff" + size.to_bytes(8, "big")
        )
        parser.feed(head)
        assert parser.closed is not None
        assert parser.closed.code == 1009
        assert f"{size} bytes" in parser.closed.reason


def test_the_limit_itself_is_allowed_whole_or_in_fragments() -> None:
    parser = FrameParser(max_message_bytes=1000)
    assert parser.feed(sent(text_frame(b"x" * 1000))) == [b"x" * 1000]
    assert parser.feed(sent(*fragments(b"x" * 600, b"x" * 400))) == [b"x" * 1000]
    assert end_of(parser) is None


def test_a_small_limit_binds_short_frames_but_not_control_frames() -> None:
    parser = FrameParser(max_message_bytes=10)
    parser.feed(sent(ping_frame(bytes(100))))
    assert end_of(parser) is None
    parser.feed(sent(text_frame(b"x" * 11)))
    assert end_of(parser) == 1009


def test_a_fragment_that_makes_a_message_too_large_is_refused_from_its_header() -> None:
    parser = FrameParser(max_message_bytes=1000)
    first, second = fragments(b"x" * 600, b"x" * 401)
    parser.feed(sent(first, ping_frame(bytes(125))))
    assert end_of(parser) is None
    parser.feed(sent(second)[:8])
    assert end_of(parser) == 1009


def test_a_ping_that_comes_in_pieces_inside_a_full_message_is_not_counted_against_it() -> None:
    parser = FrameParser(max_message_bytes=1000)
    first, second = fragments(b"x" * 1000, b"")
    ping = sent(ping_frame(bytes(125)))
    assert parser.feed(sent(first) + ping[:50]) == []
    assert parser.feed(ping[50:] + sent(second)) == [b"x" * 1000]


def test_fragments_without_end_are_stopped_even_when_they_are_empty() -> None:
    parser = FrameParser(max_fragments=100)
    first, *others = fragments(*[b""] * 102)
    parser.feed(sent(first, *others[:99]))
    assert end_of(parser) is None
    parser.feed(sent(others[99]))
    assert end_of(parser) == 1008


def test_compressed_messages_are_inflated_when_that_was_agreed_on() -> None:
    parser = FrameParser(deflate=True)
    payload = "höchst wiederholt ".encode() * 40
    small = compressed(payload)
    whole = frame(1, small, first_bits=FIN | RSV1)
    first = frame(2, small[:9], first_bits=RSV1)
    second = frame(0, small[9:])
    assert parser.feed(sent(whole, text_frame(b"plain"), first, ping_frame(), second, *fragments(b"a", b"b"))) == [
        payload,
        b"plain",
        payload,
        b"ab",
    ]
    assert end_of(parser) is None


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([frame(1, compressed(bytes(2000)), first_bits=FIN | RSV1)], 1009),
        ([frame(1, compressed(b"\xff"), first_bits=FIN | RSV1)], 1007),
        ([frame(1, b"\xff\xff", first_bits=FIN | RSV1)], 1007),
        ([frame(9, b"", first_bits=FIN | RSV1)], 1002),
        ([frame(1, b"", first_bits=FIN | RSV1 | RSV2)], 1002),
        ([frame(1, b"a", first_bits=RSV1), frame(0, b"b", first_bits=FIN | RSV1)], 1002),
    ],
)
def test_bad_compressed_messages_end_it(frames: list[bytes], code: int) -> None:
    parser = FrameParser(deflate=True, max_message_bytes=1000)
    assert parser.feed(sent(*frames)) == []
    assert parser.closed is not None
    assert parser.closed.code == code


def test_an_idle_parser_keeps_no_buffer() -> None:
    parser = FrameParser()
    big = sent(text_frame(b"x" * 100_000))
    assert parser.feed(big[:70_000]) == []
    assert parser.feed(big[70_000:]) == [b"x" * 100_000]
    assert parser.feed(sent(*fragments(b"x", b"y"))) == [b"xy"]
    kept = [getattr(parser, name) for name in FrameParser.__slots__]
    assert not any(isinstance(value, (bytes, bytearray, list)) for value in kept)


def test_a_large_frame_in_many_pieces_is_copied_once_not_once_for_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    cut = FrameParser._cut  # pyright: ignore[reportPrivateUsage]

    def counted(self: FrameParser, data: bytes, messages: list[bytes]) -> int:
        looks.append(len(data))
        return cut(self, data, messages)

    monkeypatch.setattr(FrameParser, "_cut", counted)
    data = sent(binary_frame(bytes(1_000_000)))
    parser = FrameParser()
    messages = [message for at in range(0, len(data), 1000) for message in parser.feed(data[at : at + 1000])]
    assert [len(message) for message in messages] == [1_000_000]
    assert looks == [1000, len(data)]


def test_payload_of_a_message_is_what_its_frame_holds() -> None:
    for whole in (text_frame(b"x"), binary_frame(b"y" * 200)):
        assert FrameParser().feed(sent(whole)) == [payload_of(whole)]
