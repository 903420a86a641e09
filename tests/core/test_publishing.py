from __future__ import annotations

from typing import get_args

import attrs
import pytest

from trio_wskit._core.publishing import RETRYABLE, PublishEnvelope, PublishErrorCode, PublishResult


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
