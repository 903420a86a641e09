from __future__ import annotations

from typing import Any

import pytest

from trio_wskit._core.envelope import ABSENT, CONTROL_TYPES, META_RULES, Absent, Envelope, is_reserved


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("__heartbeat", True),
        ("$ws:abort", True),
        ("$", True),
        ("__", True),
        ("_", False),
        ("CHAT", False),
        ("a__b$", False),
        ("", False),
    ],
)
def test_types_that_start_with_two_underscores_or_a_dollar_are_reserved(name: str, expected: bool) -> None:
    assert is_reserved(name) is expected


def test_the_control_types_are_reserved() -> None:
    assert all(map(is_reserved, CONTROL_TYPES))


@pytest.mark.parametrize(
    ("key", "right", "wrong"),
    [
        ("timestamp", [0, -1, 1.5, 2**60], [True, "1", None, [1], float("nan"), float("inf")]),
        ("correlationId", ["c", "é" * 1000], ["", 1, None, ["c"]]),
        ("timeoutMs", [1, 0.5], [0, -1, True, "5", None, float("inf"), float("nan")]),
        ("idempotencyKey", ["k", "k" * 256], ["", "k" * 257, 5, None]),
        ("traceparent", ["", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"], [5, None, ["00"]]),
    ],
)
def test_each_standard_meta_key_takes_its_own_type(key: str, right: list[Any], wrong: list[Any]) -> None:
    assert all(META_RULES[key].accepts(value) for value in right)
    assert not any(META_RULES[key].accepts(value) for value in wrong)


def test_an_absent_payload_is_not_a_payload_of_null() -> None:
    assert Envelope("T", {}, ABSENT).payload is not None
    assert Envelope("T", {}, ABSENT).payload is Absent.ABSENT
    assert Envelope("T", {}, ABSENT).correlation_id is None
