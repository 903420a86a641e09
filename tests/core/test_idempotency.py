from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.envelope import ABSENT, Envelope
from trio_wskit._core.idempotency import Recorded, Window, answer_for, fingerprint, is_final
from trio_wskit.errors import PayloadInvalid, WsKitError

PRINT = b"print"


def of(answer: bytes = b"{}") -> Recorded:
    return Recorded(PRINT, answer)


def window(max_keys: int = 10, max_bytes: int = 1_000_000, max_age: float = 60) -> Window:
    return Window(max_keys, max_bytes, max_age)


def test_an_answer_is_found_until_it_is_too_old() -> None:
    kept = window(max_age=60)
    kept.add("a", of(), 100)
    assert kept.find("a", 159.9) == of()
    assert kept.find("b", 159.9) is None
    assert kept.find("a", 160) is None
    assert (len(kept), kept.bytes) == (0, 0)


def test_the_oldest_makes_room_for_one_more() -> None:
    kept = window(max_keys=2)
    for n, key in enumerate("abc"):
        kept.add(key, of(), n)
    assert [kept.find(key, 3) is not None for key in "abc"] == [False, True, True]


def test_as_many_go_as_their_bytes_are_needed() -> None:
    kept = window(max_bytes=2_000)
    for n, key in enumerate("abc"):
        kept.add(key, of(b"x" * 200), n)
    kept.add("d", of(b"x" * 900), 3)
    assert [kept.find(key, 3) is not None for key in "abcd"] == [False, False, True, True]
    assert kept.bytes <= 2_000


def test_an_answer_larger_than_all_the_room_is_not_kept_and_costs_no_other_its_place() -> None:
    kept = window(max_bytes=2_000)
    kept.add("a", of(), 0)
    kept.add("b", of(b"x" * 2_000), 0)
    assert kept.find("a", 0) is not None
    assert kept.find("b", 0) is None


def test_the_first_answer_of_a_key_stays() -> None:
    kept = window()
    kept.add("a", of(b"1"), 0)
    kept.add("a", of(b"2"), 1)
    assert kept.find("a", 2) == of(b"1")
    assert len(kept) == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdefgh"), st.integers(0, 3_000), st.floats(-50, 50, allow_nan=False), st.booleans()
        ),
        max_size=60,
    )
)
def test_no_bound_is_ever_passed_and_the_count_of_bytes_is_exact(steps: list[tuple[str, int, float, bool]]) -> None:
    kept = window(max_keys=3, max_bytes=4_000, max_age=20)
    now = 0.0
    for key, size, passed, add in steps:
        now += passed  # the clock may go back
        if add:
            kept.add(key, of(b"x" * size), now)
        else:
            kept.find(key, now)
        assert len(kept) <= 3
        assert kept.bytes <= 4_000
        assert (kept.bytes == 0) == (len(kept) == 0)
    kept.find("", now + 10_000)
    assert (len(kept), kept.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": [{"c": 2, "d": 3}]}, {"b": [{"d": 3, "c": 2}], "a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ([1, 2], [2, 1], False),
        (None, ABSENT, False),
        (ABSENT, ABSENT, True),
    ],
)
def test_a_fingerprint_is_of_the_payload_whatever_the_order_of_its_keys(one: object, other: object, same: bool) -> None:
    assert (fingerprint(Envelope("A", {}, one)) == fingerprint(Envelope("A", {"x": 1}, other))) is same


def test_a_fingerprint_is_of_the_type_too() -> None:
    assert fingerprint(Envelope("A", {}, 1)) != fingerprint(Envelope("B", {}, 1))


@pytest.mark.parametrize(("asks", "meta"), [("c2", {"timestamp": 7, "correlationId": "c2"}), (None, {"timestamp": 7})])
def test_an_answer_is_addressed_to_who_asks_and_keeps_the_order_of_its_keys(
    asks: str | None, meta: dict[str, object]
) -> None:
    recorded = b'{"type":"T","meta":{"timestamp":1,"correlationId":"c1","more":true},"payload":{"n":1}}'
    answer = answer_for(recorded, asks, 7)
    assert json.loads(answer) == {"type": "T", "meta": {**meta, "more": True}, "payload": {"n": 1}}
    assert list(json.loads(answer)) == ["type", "meta", "payload"]


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (WsKitError("NOT_FOUND"), True),
        (WsKitError("SOLD_OUT"), True),
        (WsKitError("FAILED_PRECONDITION"), True),
        (WsKitError("FAILED_PRECONDITION", retryable=True), False),
        (WsKitError("UNAVAILABLE"), False),
        (WsKitError("UNAVAILABLE", retryable=False), True),
        (WsKitError("INTERNAL"), False),
        (WsKitError("CANCELLED"), False),
        (PayloadInvalid("T", []), False),
    ],
)
def test_an_error_is_final_where_a_retry_is_pointless(error: WsKitError, final: bool) -> None:
    assert is_final(error) is final
