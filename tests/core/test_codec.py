from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_wskit._core.codec import (
    MAX_ISSUES,
    decode,
    encode_error,
    encode_heartbeat_ack,
    encode_progress,
    is_deeper_than,
)
from trio_wskit._core.envelope import ABSENT, Envelope
from trio_wskit._core.schema import message
from trio_wskit.errors import MalformedMessage, MessageTooBig, PayloadInvalid, WsKitError


def envelope_of(**root: Any) -> Envelope:
    return decode(json.dumps(root).encode())


# Reading


def test_a_message_becomes_an_envelope_whatever_the_order_of_its_keys() -> None:
    expected = Envelope("CHAT", {"timestamp": 5, "correlationId": "c", "extra": [1]}, {"text": "é"}, "c")
    meta = '"meta":{"timestamp":5,"correlationId":"c","extra":[1]}'
    assert decode(f'{{"type":"CHAT",{meta},"payload":{{"text":"é"}}}}'.encode()) == expected
    assert decode(f' {{"payload":{{"text":"é"}},"other":1,{meta},"type":"CHAT"}}\n'.encode()) == expected


@pytest.mark.parametrize("meta", ["", '"meta":null,', '"meta":{},'])
def test_an_absent_or_null_meta_is_empty(meta: str) -> None:
    assert decode(f'{{{meta}"type":"T"}}'.encode()) == Envelope("T", {}, ABSENT, None)


def test_a_null_payload_is_none_and_an_absent_one_is_absent() -> None:
    assert envelope_of(type="T", payload=None).payload is None
    assert envelope_of(type="T").payload is ABSENT


def test_of_duplicate_keys_the_last_wins() -> None:
    found = decode(b'{"type":"A","payload":1,"type":"B","payload":2,"meta":{"a":1,"a":2}}')
    assert found == Envelope("B", {"a": 2}, 2, None)


def test_a_subclass_of_bytes_is_read_as_well() -> None:
    class Binary(bytes):
        pass

    assert decode(Binary(b'{"type":"T"}')).type == "T"


def test_client_id_and_received_at_are_stripped_and_unknown_meta_is_kept() -> None:
    found = envelope_of(type="T", meta={"clientId": "forged", "receivedAt": 5, "tenant": {"a": 1}, "timestamp": 1.5})
    assert found.meta == {"tenant": {"a": 1}, "timestamp": 1.5}


def test_every_standard_meta_key_is_kept() -> None:
    meta = {"timestamp": 1, "correlationId": "c", "timeoutMs": 50, "idempotencyKey": "k", "traceparent": "00"}
    assert envelope_of(type="T", meta=meta).meta == meta


@pytest.mark.parametrize("name", ["__heartbeat", "$ws:abort"])
def test_the_control_types_pass(name: str) -> None:
    assert envelope_of(type=name).type == name


@pytest.mark.parametrize("name", ["", "_private", "ERROR", "RPC_ERROR", "a.b:c", "type with spaces"])
def test_any_other_type_passes(name: str) -> None:
    assert envelope_of(type=name).type == name


# What a client reads


def test_a_client_is_sent_reserved_types() -> None:
    ack = decode(b'{"type":"__heartbeat_ack","meta":{"ts":1}}', from_server=True)
    assert ack == Envelope("__heartbeat_ack", {"ts": 1}, ABSENT, None)


@pytest.mark.parametrize("value", ['"payload":1', '"data":1', '"payload":2,"data":1'])
def test_a_progress_has_its_value_under_either_name(value: str) -> None:
    found = decode(b'{"type":"$ws:rpc-progress","meta":{"correlationId":"c"},%b}' % value.encode(), from_server=True)
    assert found == Envelope("$ws:rpc-progress", {"correlationId": "c"}, 1, "c")


@pytest.mark.parametrize("value", ["null", "5", '""', "[]"])
def test_what_is_no_correlation_id_is_none_to_a_client(value: str) -> None:
    found = decode(b'{"type":"T","meta":{"correlationId":%b,"timestamp":"now"}}' % value.encode(), from_server=True)
    assert found.correlation_id is None


@pytest.mark.parametrize("text", [b'{"type":"T","meta":[]}', b'{"type":"T","meta":[1]}', b'{"type":5}', b"[]", b"{"])
def test_a_client_refuses_what_is_no_envelope(text: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(text, from_server=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b'{"type":"T","payload":NaN}', "JSON"),
        (b'{"type":"T","payload":-Infinity}', "JSON"),
        (b'{"type":"T","payload":1e999}', "JSON"),
        (b'{"type":"T","payload":"\\ud800"}', "JSON"),
        (b'{"type":"T","payload":"\xed\xa0\x80"}', "JSON"),
        (b'{"type":"T"}{"type":"T"}', "JSON"),
        (b"null", "object"),
        (b"5", "object"),
        (b'"CHAT"', "object"),
        (b'["CHAT"]', "object"),
        (b"{}", "type"),
        (b'{"type":5}', "type"),
        (b'{"type":null}', "type"),
        (b'{"type":["T"]}', "type"),
        (b'{"type":"__x"}', "Reserved"),
        (b'{"type":"__heartbeat_ack"}', "Reserved"),
        (b'{"type":"$ws:rpc-progress"}', "Reserved"),
        (b'{"type":"$"}', "Reserved"),
        (b'{"type":"T","meta":[]}', "meta"),
        (b'{"type":"T","meta":[1]}', "meta"),
        (b'{"type":"T","meta":""}', "meta"),
        (b'{"type":"T","meta":"x"}', "meta"),
        (b'{"type":"T","meta":0}', "meta"),
        (b'{"type":"T","meta":5}', "meta"),
        (b'{"type":"T","meta":false}', "meta"),
        (b'{"type":"T","meta":{"timestamp":"5"}}', "meta.timestamp: expected a number"),
        (b'{"type":"T","meta":{"timestamp":true}}', "meta.timestamp"),
        (b'{"type":"T","meta":{"correlationId":5}}', "meta.correlationId"),
        (b'{"type":"T","meta":{"correlationId":""}}', "meta.correlationId"),
        (b'{"type":"T","meta":{"correlationId":null}}', "meta.correlationId"),
        (b'{"type":"T","meta":{"timeoutMs":0}}', "meta.timeoutMs"),
        (b'{"type":"T","meta":{"timeoutMs":"50"}}', "meta.timeoutMs"),
        (b'{"type":"T","meta":{"idempotencyKey":""}}', "meta.idempotencyKey"),
        (b'{"type":"T","meta":{"traceparent":5}}', "meta.traceparent"),
    ],
)
def test_what_is_no_message_is_malformed(text: bytes, says: str) -> None:
    with pytest.raises(MalformedMessage, match=says) as caught:
        decode(text)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.correlation_id is None


@pytest.mark.parametrize(
    "text",
    [
        b'{"meta":{"correlationId":"c"}}',
        b'{"type":5,"meta":{"correlationId":"c"}}',
        b'{"type":"__x","meta":{"correlationId":"c"}}',
        b'{"type":"T","meta":{"correlationId":"c","timeoutMs":-1}}',
        b'{"type":"T","meta":{"timestamp":null,"correlationId":"c"}}',
    ],
)
def test_the_correlation_id_is_carried_if_it_could_be_read(text: bytes) -> None:
    with pytest.raises(MalformedMessage) as caught:
        decode(text)
    assert caught.value.correlation_id == "c"


def test_a_refusal_never_repeats_what_was_sent() -> None:
    for text in (b'{"type":"__secret-word"}', b'{"type":"T","meta":{"timestamp":"secret-word"}}', b'"secret-word'):
        with pytest.raises(MalformedMessage) as caught:
            decode(text)
        assert "secret-word" not in str(caught.value)


def test_the_size_is_counted_in_bytes_and_before_anything_is_parsed() -> None:
    text = '{"type":"é"}'.encode()
    assert len(text) == 13
    assert decode(text, max_bytes=13).type == "é"
    with pytest.raises(MessageTooBig) as caught:
        decode(text, max_bytes=12)
    assert (caught.value.observed, caught.value.limit) == (13, 12)
    with pytest.raises(MessageTooBig):
        decode(b"not JSON at all", max_bytes=1)


def nested(depth: int, opening: str = "[", middle: str = "", closing: str = "]") -> bytes:
    """A message of so many levels, the envelope being the first."""
    return f'{{"type":"T","payload":{opening * (depth - 1)}{middle or 1}{closing * (depth - 1)}}}'.encode()


@pytest.mark.parametrize("limit", [1, 2, 3, 64, 500, 1000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"[":', "}]")])
def test_nesting_is_accepted_at_its_limit_and_refused_past_it(limit: int, opening: str, closing: str) -> None:
    levels = opening.count("[") - opening.count('"[') + opening.count("{")
    at_limit = nested(1 + (limit - 1) // levels, opening, "1", closing)
    if (limit - 1) % levels == 0:
        assert decode(at_limit, max_depth=limit).type == "T"
    with pytest.raises(MalformedMessage, match=f"deeper than {limit}"):
        decode(nested(2 + (limit - 1) // levels, opening, "1", closing), max_depth=limit)


def test_brackets_in_text_and_beside_one_another_are_not_depth() -> None:
    texts = ["[" * 200, "{" * 200, '"[' * 100, '\\"[' * 100, "\\" * 3 + '"[{' * 100, "]" * 100, "\\"]
    assert envelope_of(type="T", payload=texts).payload == texts
    assert envelope_of(type="T", payload=[[[] for _ in range(50)] for _ in range(50)]).type == "T"
    assert envelope_of(type="T", payload={"\\[{[{" * 50: ["\\\\", {}] * 100}).type == "T"


@pytest.mark.parametrize("text", [b"[" * 500_000, b'{"a":' * 200_000, b'["' * 300_000, b"]" * 500_000])
def test_brackets_that_do_not_match_are_malformed(text: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(text)


def test_a_limit_on_depth_beyond_the_library_still_ends_in_malformed() -> None:
    with pytest.raises(MalformedMessage, match="JSON"):
        decode(nested(200_000), max_depth=10**9)


plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers(-5, 5) | st.text('[]{}"\\a', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"\\a', max_size=3), inner, max_size=3),
    max_leaves=25,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, cast("dict[str, Any]", value).values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, cast("list[object]", value)), default=0)
    return 0


@given(plain)
def test_the_depth_that_is_found_is_exact(value: Any) -> None:
    depth = depth_of(value)
    text = json.dumps(value).encode()
    assert not is_deeper_than(text, depth)
    assert depth == 0 or is_deeper_than(text, depth - 1)


json_like = st.builds(
    lambda *parts: "".join(parts).encode("utf-8", "surrogatepass"),
    *[
        st.sampled_from(
            ["{", "}", "[", "]", '"type":', '"T"', '"meta":', "null", "1", ",", '"\\ud800"', '"__x"', "5e9999"]
        )
    ]
    * 8,
)


@given(st.binary() | json_like)
@example(b'{"type":"T","meta":{"timestamp":1e400}}')
def test_decode_raises_nothing_but_its_two_errors(data: bytes) -> None:
    with suppress(MalformedMessage, MessageTooBig):
        assert isinstance(decode(data, max_bytes=200, max_depth=3), Envelope)


meta_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers())
meta_keys = st.sampled_from(
    ["timestamp", "correlationId", "timeoutMs", "idempotencyKey", "traceparent", "clientId", "x"]
)


@given(st.dictionaries(meta_keys, meta_values) | meta_values, st.sampled_from(["T", "__x", "", None, 5]))
def test_a_meta_is_read_or_malformed_and_its_readable_id_is_kept(meta: Any, name: Any) -> None:
    given_id = cast("dict[str, Any]", meta).get("correlationId") if isinstance(meta, dict) else None
    readable = given_id if isinstance(given_id, str) and given_id else None
    try:
        found = envelope_of(type=name, meta=meta).correlation_id
    except MalformedMessage as error:
        found = error.correlation_id
        readable = None if error.message == "Not valid JSON" else readable
    assert found == readable


# Writing


def test_an_error_without_a_correlation_id_is_ERROR() -> None:  # noqa: N802
    frame = encode_error(WsKitError("NOT_FOUND", "No such room", {"room": "lobby"}), None, 5)
    assert frame == (
        b'{"type":"ERROR","meta":{"timestamp":5},'
        b'"payload":{"code":"NOT_FOUND","message":"No such room","details":{"room":"lobby"}}}'
    )


def test_an_error_with_a_correlation_id_is_RPC_ERROR() -> None:  # noqa: N802
    frame = encode_error(WsKitError("UNAVAILABLE", details={"a": 1}, retryable=True, retry_after=1.5), "c", 5)
    assert frame == (
        b'{"type":"RPC_ERROR","meta":{"timestamp":5,"correlationId":"c"},'
        b'"payload":{"code":"UNAVAILABLE","message":"Transient infrastructure error","details":{"a":1},'
        b'"retryAfterMs":1500,"retryable":true}}'
    )


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, 0),
        (0.05, 50),
        (0.07, 70),
        (0.0001, 1),
        (1.0004, 1001),
        (1e300, 2**53),
        (-1.0, None),
        (math.inf, None),
        (math.nan, None),
        (None, None),
    ],
)
def test_retry_after_is_in_milliseconds_rounded_up(seconds: float | None, expected: int | None) -> None:
    payload = json.loads(encode_error(WsKitError("NOT_FOUND", retry_after=seconds), None, 5))["payload"]
    assert payload.get("retryAfterMs") == expected


def test_there_is_no_retry_after_when_a_retry_is_pointless() -> None:
    payload = json.loads(encode_error(MessageTooBig(20, 10), None, 5))["payload"]
    assert payload == {
        "code": "RESOURCE_EXHAUSTED",
        "message": "Message of 20 bytes is larger than the limit of 10 bytes",
        "details": {"observed": 20, "limit": 10},
        "retryable": False,
    }


def test_details_are_made_safe_and_left_out_when_nothing_remains() -> None:
    payload = json.loads(encode_error(WsKitError("ABORTED", details={"password": "x", "o": object()}), None, 5))[
        "payload"
    ]
    assert payload == {"code": "ABORTED", "message": "Concurrency conflict", "retryAfterMs": 50}


def test_all_issues_of_a_payload_are_sent_though_they_are_long_and_only_the_first_of_very_many() -> None:
    few = [{"path": f"items[{number}].name", "message": "expected a string, got an integer"} for number in range(20)]
    payload = json.loads(encode_error(PayloadInvalid("T", few), "c", 5))["payload"]
    assert payload["details"] == {"issues": few}
    many = few * 10
    issues = json.loads(encode_error(PayloadInvalid("T", many), "c", 5))["payload"]["details"]["issues"]
    assert issues == [*many[:MAX_ISSUES], {"path": "", "message": "and 150 more"}]


def test_text_that_utf8_cannot_carry_does_not_stop_an_error() -> None:
    error = PayloadInvalid("T", [{"path": "\ud800", "message": "m"}])
    error.message = "\udfff"
    payload = json.loads(encode_error(error, None, 5))["payload"]
    assert payload["message"] == "?"
    assert payload["details"]["issues"][0]["path"] == "?"


@given(
    st.text(st.characters()),
    st.text(st.characters()),
    st.dictionaries(st.text(st.characters()), st.text(st.characters()) | st.floats() | st.binary() | st.integers()),
    st.none() | st.booleans(),
    st.none() | st.floats(),
)
def test_encode_error_never_raises(
    code: str, text: str, details: dict[str, Any], retryable: bool | None, retry_after: float | None
) -> None:
    frame = encode_error(WsKitError(code, text, details, retryable=retryable, retry_after=retry_after), "c", 5)
    assert list(json.loads(frame)) == ["type", "meta", "payload"]


def test_progress_carries_its_value_under_both_names() -> None:
    assert encode_progress({"done": 0.5}, "c", 5) == (
        b'{"type":"$ws:rpc-progress","meta":{"timestamp":5,"correlationId":"c"},'
        b'"payload":{"done":0.5},"data":{"done":0.5}}'
    )
    assert json.loads(encode_progress(None, "c", 5))["data"] is None


def test_progress_may_be_a_message() -> None:
    @message("STEP")
    class Step:
        steps_done: int

    assert json.loads(encode_progress(Step(3), "c", 5))["payload"] == {"stepsDone": 3}
    wrong: Any = "3"
    with pytest.raises(PayloadInvalid) as caught:
        encode_progress(Step(wrong), "c", 5)
    assert caught.value.issues == [{"path": "stepsDone", "message": "expected an integer, got str"}]


@pytest.mark.parametrize("value", [float("nan"), {1}, object(), {"a": float("inf")}])
def test_progress_that_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(PayloadInvalid):
        encode_progress(value, "c", 5)


def test_a_heartbeat_is_answered_with_the_time_alone() -> None:
    assert encode_heartbeat_ack(17) == b'{"type":"__heartbeat_ack","meta":{"ts":17}}'
