from __future__ import annotations

import json
from typing import Any

import pytest

from trio_wskit._core.envelope import Envelope
from trio_wskit._core.history import (
    MAX_OFFSET,
    NOT_KEPT,
    Entry,
    History,
    InvalidPosition,
    NoHistory,
    Position,
    Recovery,
    check_last,
    check_since,
    position_notice,
    position_of,
    stamp,
)
from trio_wskit._core.schema import message, spec_of
from trio_wskit.errors import ConfigError, PayloadInvalid, WsKitError


@message("ASK")
class Ask:
    since: Position | None = None


@pytest.mark.parametrize("offset", [-1, MAX_OFFSET + 1, 1.0, True, "1", None])
def test_an_offset_is_a_whole_number_that_all_can_count_to(offset: Any) -> None:
    with pytest.raises(InvalidPosition, match="INVALID_ARGUMENT: an offset is a whole number from 0") as refused:
        Position("e", offset)
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize("epoch", ["", "x" * 65, 7, None])
def test_an_epoch_is_a_short_text(epoch: Any) -> None:
    with pytest.raises(InvalidPosition, match="an epoch is a text of 1 to 64 characters"):
        Position(epoch, 1)
    assert len(Position("x" * 64, 1).epoch) == 64


@pytest.mark.parametrize("offset", [-1, 1.5, True, "1", None, 2**60])
def test_a_wrong_offset_in_a_message_is_an_issue_of_that_message(offset: Any) -> None:
    with pytest.raises(PayloadInvalid) as refused:
        spec_of(Ask).structure(Envelope("ASK", {}, {"since": {"epoch": "e", "offset": offset}}))
    assert [issue["path"] for issue in refused.value.issues] in (["since.offset"], ["since"])


def test_a_position_goes_over_the_wire() -> None:
    assert spec_of(Ask).structure(Envelope("ASK", {}, {"since": {"epoch": "e", "offset": 0}})) == Ask(Position("e", 0))
    assert json.loads(spec_of(Ask).encode(Ask(Position("e", 7)), {}))["payload"] == {
        "since": {"epoch": "e", "offset": 7}
    }
    assert json.loads(spec_of(Ask).encode(Ask(), {}))["payload"] == {}


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": True},
        {"size": 1.0},
        {"ttl": 0},
        {"ttl": float("inf")},
        {"ttl": True},
        {"keep_position": "1"},
    ],
)
def test_a_history_has_sane_bounds(options: Any) -> None:
    with pytest.raises(ConfigError, match=f"History\\({next(iter(options))}="):
        History(**options)


def test_a_position_is_never_forgotten_before_its_messages() -> None:
    assert History(ttl=50, keep_position=10).position_ttl == 50
    assert History(ttl=50, keep_position=100).position_ttl == 100


@pytest.mark.parametrize("kind", ["NEWS", 'quoted"meta":{"', "ä"])
@pytest.mark.parametrize("meta", [{}, {"timestamp": 1}, {"a": {"meta": {}}}])
def test_a_stamp_adds_to_the_meta_and_changes_nothing_else(kind: str, meta: dict[str, Any]) -> None:
    envelope: dict[str, Any] = {"type": kind, "meta": meta, "payload": {"meta": {}}}
    plain = json.dumps(envelope, separators=(",", ":"), ensure_ascii=False).encode()
    stamped = json.loads(stamp(plain, Position('e"1', 12)))
    assert stamped == {**envelope, "meta": {**meta, "epoch": 'e"1', "offset": 12}}


def test_what_the_schema_writes_can_be_stamped() -> None:
    plain = spec_of(Ask).encode(Ask(), {"timestamp": 5})
    assert json.loads(stamp(plain, Position("e", 1)))["meta"] == {"timestamp": 5, "epoch": "e", "offset": 1}


def test_a_notice_tells_where_a_topic_stands() -> None:
    assert json.loads(position_notice("t", Position("e", 3), 9)) == {
        "type": "$ws:position",
        "meta": {"timestamp": 9, "epoch": "e", "offset": 3},
        "payload": {"topic": "t"},
    }


def test_a_recovery_knows_where_the_stream_starts() -> None:
    assert Recovery(True, Position("e", 9), 4).start == Position("e", 5)
    assert NOT_KEPT.start is None


def test_an_entry_shows_what_it_is() -> None:
    assert repr(Entry(3, b"four")) == "<Entry 3: 4 bytes>"


@pytest.mark.parametrize("since", [None, 5, "5", {"epoch": "e", "offset": 1}])
def test_since_takes_a_position(since: object) -> None:
    with pytest.raises(WsKitError, match="INVALID_ARGUMENT: since takes a Position"):
        check_since(since)


@pytest.mark.parametrize("last", [0, -1, True, 1.0, "1", None])
def test_last_takes_a_number_of_messages(last: object) -> None:
    with pytest.raises(WsKitError, match="INVALID_ARGUMENT: last takes a whole number above 0"):
        check_last(last)


def test_what_is_right_is_given_back() -> None:
    assert check_since(Position("e", 1)) == Position("e", 1)
    assert check_last(3) == 3


def test_two_things_are_a_position_or_they_are_not() -> None:
    assert position_of("e", 0) == Position("e", 0)
    assert position_of("e", "0") is None
    assert position_of(None, None) is None


def test_a_topic_without_history_is_a_precondition_that_failed() -> None:
    assert str(NoHistory("t")) == "FAILED_PRECONDITION: the topic 't' keeps no history"
