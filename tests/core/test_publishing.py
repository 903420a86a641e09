from __future__ import annotations

from typing import Any, get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.json_text import dumps, loads
from trio_wskit._core.publishing import (
    RETRYABLE,
    PublishEnvelope,
    PublishErrorCode,
    PublishResult,
    Written,
    message_of,
)
from trio_wskit._core.schema import message, spec_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@message("FULL")
class Full:
    anything: Any


@message("BARE")
class Bare:
    pass


def test_every_failure_says_whether_the_same_publish_may_succeed_later() -> None:
    assert set(RETRYABLE) == set(get_args(PublishErrorCode))


@pytest.mark.parametrize(("code", "retryable"), RETRYABLE.items())
def test_a_failure_has_the_retry_rule_of_its_code(code: PublishErrorCode, retryable: bool) -> None:
    result = PublishResult.failure(code)
    assert not result.ok
    assert (result.error, result.retryable) == (code, retryable)
    assert (result.capability, result.matched_local, result.delivered, result.dropped) == ("unknown", 0, 0, 0)
    assert (result.cause, result.details) == (None, {})


def test_what_would_help_a_moment_later_is_backpressure_a_closed_link_or_the_driver() -> None:
    assert {code for code, retryable in RETRYABLE.items() if retryable} == {
        "BACKPRESSURE",
        "CONNECTION_CLOSED",
        "ADAPTER_ERROR",
    }


def test_a_failure_keeps_its_cause_and_details() -> None:
    cause = OSError("gone")
    result = PublishResult.failure("ADAPTER_ERROR", cause, {"broker": "a"})
    assert result.cause is cause
    assert result.details == {"broker": "a"}


def test_a_result_and_an_envelope_are_values() -> None:
    assert PublishResult(ok=True) == PublishResult(ok=True, capability="exact", matched_local=0)
    assert PublishEnvelope("t", "A") == PublishEnvelope("t", "A", None, {}, None)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        PublishResult(ok=True).ok = False  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


@given(anything=JSON, meta=st.dictionaries(TEXT, JSON, max_size=3))
def test_a_payload_is_cut_out_of_its_message_and_put_back_byte_for_byte(anything: Any, meta: dict[str, Any]) -> None:
    for instance in (Full(anything), Bare()):
        spec = spec_of(instance)
        encoded = spec.encode(instance, meta)
        payload = Written(encoded, spec.type, meta).payload
        assert payload == (dumps(loads(encoded)["payload"]) if b"payload" in dumps(list(loads(encoded))) else None)
        assert message_of(spec.type, meta, payload) == encoded


def test_a_payload_is_found_even_where_the_meta_was_changed_since() -> None:
    meta = {"timestamp": 1}
    full, bare = (Written(spec_of(one).encode(one, meta), "X", meta) for one in (Full("a"), Bare()))
    meta["added"] = 2
    assert full.payload == b'{"anything":"a"}'
    assert bare.payload is None


def test_nothing_is_cut_until_somebody_asks() -> None:
    envelope = PublishEnvelope("t", "X", Written(b"no JSON at all", "X", {}))
    with pytest.raises(ValueError, match="invalid"):
        assert envelope.payload


def test_envelopes_are_equal_where_their_payloads_are_however_they_came() -> None:
    written = Written(b'{"type":"X","meta":{},"payload":[1]}', "X", {})
    assert PublishEnvelope("t", "X", written) == PublishEnvelope("t", "X", b"[1]")
    assert PublishEnvelope("t", "X", written) != PublishEnvelope("t", "X", b"[2]")
    assert PublishEnvelope("t", "X", written) != PublishEnvelope("t", "X")


def test_a_stamp_changes_nothing_else() -> None:
    envelope = PublishEnvelope("t", "X", b"1", {"a": 1}, "client", "key")
    assert envelope.stamped("here", "7") == attrs.evolve(envelope, origin="here", id="7")
    assert attrs.evolve(envelope, payload=b"2").payload == b"2"
