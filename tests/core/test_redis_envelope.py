from __future__ import annotations

import json
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit._core.redis_envelope import (
    BadEnvelope,
    decode_envelope,
    encode_envelope,
    escape_glob,
    glob_of,
)

TRANSCRIPT = Path(__file__).parents[1] / "data" / "redis" / "120-redis-pubsub.json"
FULL = {"topic": "room:1", "payload": {"n": 1}, "type": "NEWS", "meta": {"a": 1}, "v": 1, "origin": "one", "id": "7"}


def decode(data: bytes | dict[str, Any], *, foreign: bool = False) -> PublishEnvelope:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return decode_envelope(raw, foreign=foreign, max_bytes=10_000, max_depth=10)


def fault(data: bytes | dict[str, Any], *, foreign: bool = False) -> str:
    with pytest.raises(BadEnvelope) as caught:
        decode(data, foreign=foreign)
    return caught.value.fault


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in FULL.items() if name != key}


# --- writing ---


def test_an_envelope_is_ws_kits_and_three_keys_more() -> None:
    envelope = PublishEnvelope("room:1", "NEWS", b'{"text":"x"}', {"tag": "t"}, exclude="c1", origin="one", id="7")
    assert encode_envelope(envelope) == (
        b'{"topic":"room:1","payload":{"text":"x"},"type":"NEWS","meta":{"tag":"t","excludeClientId":"c1"},'
        b'"v":1,"origin":"one","id":"7"}'
    )


def test_what_is_not_there_is_not_written() -> None:
    assert encode_envelope(PublishEnvelope("t", "T")) == b'{"topic":"t","type":"T","v":1}'


def test_the_publishers_meta_stays_as_it_was() -> None:
    meta = {"tag": "t"}
    encode_envelope(PublishEnvelope("t", "T", None, meta, exclude="c"))
    assert meta == {"tag": "t"}


def test_meta_that_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        encode_envelope(PublishEnvelope("t", "T", None, {"x": object()}))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.text("ab:é/", min_size=1), st.none() | JSON.map(lambda v: json.dumps(v).encode()), st.none() | st.text("xy"))
def test_what_is_written_can_be_read(topic: str, payload: bytes | None, exclude: str | None) -> None:
    envelope = PublishEnvelope(topic, "T", payload, {"k": [1]}, exclude, origin="o", id="3")
    came = decode(encode_envelope(envelope))
    assert (came.topic, came.type, came.meta, came.exclude) == (topic, "T", {"k": [1]}, exclude)
    assert (came.origin, came.id) == ("o", "3")
    assert (None if came.payload is None else json.loads(came.payload)) == (
        None if payload is None else json.loads(payload)
    )
    assert (came.payload is None) == (payload is None)


# --- reading ---


def test_an_envelope_of_ours_is_read() -> None:
    assert decode(FULL) == PublishEnvelope("room:1", "NEWS", b'{"n":1}', {"a": 1}, origin="one", id="7")
    nameless = decode({key: FULL[key] for key in FULL if key not in ("origin", "id")})
    assert nameless == PublishEnvelope("room:1", "NEWS", b'{"n":1}', {"a": 1})


@pytest.mark.parametrize("meta", [None, {}])
def test_meta_may_be_absent_null_or_empty(meta: Any) -> None:
    assert decode({**FULL, "meta": meta}).meta == {}
    assert decode(without("meta")).meta == {}


def test_a_payload_of_null_is_a_payload() -> None:
    assert decode({**FULL, "payload": None}).payload == b"null"
    assert decode(without("payload")).payload is None


def test_ws_kits_envelopes_are_read_where_they_are_expected() -> None:
    raw = b'{"topic":"room:1","payload":{"text":"x"},"type":"NEWS","meta":{"tag":"t","excludeClientId":"c"}}'
    expected = PublishEnvelope("room:1", "NEWS", b'{"text":"x"}', {"tag": "t"}, "c")
    assert decode(raw, foreign=True) == expected
    assert fault(raw) == "another version"


def test_what_ws_kit_was_recorded_to_send_is_read() -> None:
    frames = json.loads(TRANSCRIPT.read_text("utf-8"))["frames"]
    sent = [frame for frame in frames if frame.get("op") == "PUBLISH"]
    assert len(sent) == 2
    came = [decode(frame["message"].encode(), foreign=True) for frame in sent]
    assert came == [
        PublishEnvelope("room:1", "NEWS", b'{"text":"x"}', {"tag": "t"}, "<uuid3>"),
        PublishEnvelope("room:1", "NEWS", b'{"text":"y"}'),
    ]
    # And what we would send in its place differs in nothing that ws-kit reads.
    for frame, envelope in zip(sent, came, strict=True):
        ours = json.loads(encode_envelope(envelope))
        assert {key: ours[key] for key in ours if key not in ("v", "origin", "id")} == json.loads(frame["message"])
        assert "app:" + envelope.topic == frame["channel"]


@pytest.mark.parametrize("version", [2, "1", 1.0, True, 0])
def test_another_version_is_refused_everywhere(version: object) -> None:
    assert fault({**FULL, "v": version}) == "another version"
    assert fault({**FULL, "v": version}, foreign=True) == "another version"


@pytest.mark.parametrize(
    "change",
    [
        {"topic": None},
        {"topic": ""},
        {"topic": 1},
        {"topic": "room:*"},
        {"type": None},
        {"type": ""},
        {"type": "$ws:gap"},
        {"type": "__heartbeat"},
        {"meta": []},
        {"meta": {"excludeClientId": 1}},
        {"origin": ""},
        {"origin": 1},
        {"origin": "o" * 65},
        {"id": ""},
        {"id": 7},
        {"id": "7" * 65},
    ],
)
def test_wrong_parts_make_no_envelope(change: dict[str, Any]) -> None:
    assert fault({**FULL, **change}) == "not an envelope"


@pytest.mark.parametrize("raw", [b"", b"garbage", b"\xff", b'{"a":', b"NaN", b'"\\ud800"'])
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    assert fault(raw) == "not JSON"


@pytest.mark.parametrize("raw", [b"1", b"[]", b'"x"', b"null"])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    assert fault(raw) == "not an envelope"


def test_size_and_depth_are_bounded() -> None:
    assert fault({**FULL, "payload": "x" * 10_000}) == "too big"
    assert fault(b'{"payload":' + b"[" * 4000 + b"]" * 4000 + b"}") == "too deep"
    deepest: Any = 1
    for _ in range(9):
        deepest = [deepest]
    assert decode({**FULL, "payload": deepest}).payload == b"[" * 9 + b"1" + b"]" * 9
    assert fault({**FULL, "payload": [deepest]}) == "too deep"
    assert decode({**FULL, "payload": "[{" * 20}).payload == b'"' + b"[{" * 20 + b'"'


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_nothing_but_a_bad_envelope_is_raised(raw: bytes) -> None:
    with suppress(BadEnvelope):
        decode_envelope(raw, foreign=True, max_bytes=1000, max_depth=200)


# --- names ---


def redis_matches(glob: str, text: str) -> bool:
    """Redis' rule, by way of Python's: there a bracket, and not a backslash, takes the meaning away."""
    parts: list[str] = []
    at = 0
    while at < len(glob):
        if glob[at] == "\\":
            at += 1
            parts.append(f"[{glob[at]}]" if glob[at] in "*?[" else glob[at])
        else:
            parts.append(glob[at])
        at += 1
    return fnmatchcase(text, "".join(parts))


@given(st.text("ab*?[]\\:^-", max_size=8), st.text("ab*?[]\\:^-", max_size=8))
def test_an_escaped_text_matches_itself_alone(text: str, other: str) -> None:
    assert redis_matches(escape_glob(text), text)
    assert redis_matches(escape_glob(text), other) == (text == other)


@pytest.mark.parametrize(
    ("prefix", "pattern", "glob"),
    [
        ("", "room:*", "room:*"),
        ("", "**", "*"),
        ("app[1]:", "tenant:*:x:**", "app\\[1\\]:tenant:*:x:*"),
        ("p?", "plain", "p\\?plain"),
    ],
)
def test_a_pattern_of_ours_becomes_one_of_redis(prefix: str, pattern: str, glob: str) -> None:
    assert glob_of(prefix, pattern) == glob
