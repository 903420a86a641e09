from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.patterns import TopicPattern
from trio_wskit._core.templates import topic
from trio_wskit.errors import ConfigError, PubSubError

Room = topic("room:{room_id}")
Seat = topic("t:{tenant}:row{row}-{seat}:x")


def test_the_parts_make_the_name() -> None:
    assert Room(room_id=7) == "room:7"
    assert Seat(tenant="a", row=1, seat="b") == "t:a:row1-b:x"


def test_a_template_knows_its_pattern() -> None:
    assert (Room.pattern, Seat.pattern) == ("room:*", "t:*:*:x")
    assert isinstance(Room.pattern, TopicPattern)
    assert (Room.fields, Seat.fields) == (("room_id",), ("tenant", "row", "seat"))
    assert repr(Room) == "topic('room:{room_id}')"


@pytest.mark.parametrize("text", ["", "*", "1:admin", "{x}", "a*"])
def test_no_text_leads_to_a_topic_of_another_family(text: str) -> None:
    with pytest.raises(PubSubError) as caught:
        Room(room_id=text)
    assert caught.value.details == {"reason": "INVALID_TOPIC", "why": "pattern"}


@pytest.mark.parametrize("values", [{}, {"room": 1}, {"room_id": 1, "x": 2}])
def test_the_parts_are_those_of_the_template(values: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="room_id"):
        Room(**values)


@given(st.text("abc-_./0", min_size=1), st.integers(0, 99), st.text("xyz", min_size=1))
def test_the_parts_are_read_back(tenant: str, row: int, seat: str) -> None:
    parts = {"tenant": tenant, "row": str(row), "seat": seat}
    assert Seat.parse(Seat(**parts)) == parts


@pytest.mark.parametrize("name", ["room", "room:", "room:1:2", "room:1\n:", "xroom:1", "hall:1"])
def test_another_topic_has_no_parts(name: str) -> None:
    assert Room.parse(name) is None


@pytest.mark.parametrize(
    "template",
    ["room", "room:*:{a}", "{a}:{a}", "{a b}", "{}", "{a", "a}:{b}", ":".join(f"{{{c}}}" for c in "abcdefghi")],
)
def test_a_template_that_makes_no_sense_is_refused(template: str) -> None:
    with pytest.raises(ConfigError):
        topic(template)
