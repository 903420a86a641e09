from __future__ import annotations

import decimal
import enum
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from types import NoneType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.json_text import MAX_INT, MIN_INT
from trio_wskit._core.leaves import EXPECTED, READERS, WRITERS, Refused, Wrong, is_array, is_object, kind_of

ID = UUID("12345678-1234-5678-9abc-def012345678")

RIGHT: dict[type[Any], list[tuple[Any, Any]]] = {
    str: [("", ""), ("é", "é")],
    int: [(0, 0), (-5, -5), (MAX_INT, MAX_INT)],
    bool: [(True, True), (False, False)],
    NoneType: [(None, None)],
    float: [(1.5, 1.5), (2, 2.0), (-0.0, -0.0), (MAX_INT, float(MAX_INT))],
    datetime: [
        ("2024-02-29T12:30:00Z", datetime(2024, 2, 29, 12, 30, tzinfo=UTC)),
        ("2024-02-29T12:30:00.123+02:00", datetime(2024, 2, 29, 12, 30, 0, 123000, timezone(timedelta(hours=2)))),
    ],
    date: [("2024-02-29", date(2024, 2, 29))],
    UUID: [(str(ID), ID), (str(ID).upper(), ID)],
    Decimal: [
        ("1.50", Decimal("1.50")),
        ("-0", Decimal("-0")),
        ("1E+5", Decimal("1E+5")),
        ("2.5e-7", Decimal("2.5E-7")),
    ],
}

WRONG: dict[type[Any], list[Any]] = {
    str: [5, True, None, ["a"], {"a": 1}],
    int: [True, "5", 5.0, None, [5]],
    bool: [1, 0, "true", None],
    NoneType: [False, 0, "", []],
    float: [True, "1.5", None, float("nan"), float("inf"), -float("inf"), 10**400],
    datetime: [
        5,
        None,
        "",
        "2024-02-29",
        "2024-02-29T12:30:00",
        "2023-02-29T12:30:00Z",
        "2024-02-29T25:00:00Z",
        "yesterday",
        ["2024-02-29T12:30:00Z"],
    ],
    date: [5, None, "", "2024-02-30", "2024-02-29T00:00:00Z", "29.2.2024"],
    UUID: [
        5,
        "",
        ID.hex,
        "{" + str(ID) + "}",
        ID.urn,
        str(ID)[:-1],
        str(ID) + "\n",
        "1234567-81234-5678-9abc-def012345678",
    ],
    Decimal: [1.5, 5, "", "NaN", "Infinity", "1_000", " 1", "1\n", "٣", "0x5", "1.", ".5", "+1", "1e" + "9" * 30],
}


@pytest.mark.parametrize("kind", RIGHT)
def test_a_reader_takes_what_json_has_for_its_type(kind: type[Any]) -> None:
    for value, expected in RIGHT[kind]:
        found = READERS[kind](value, None)
        assert type(found) is kind
        assert repr(found) == repr(expected)


@pytest.mark.parametrize("kind", WRONG)
def test_a_reader_refuses_everything_else_by_its_kind_and_not_its_value(kind: type[Any]) -> None:
    for value in [*WRONG[kind], Wrong(object())]:
        with pytest.raises(Refused) as caught:
            READERS[kind](value, None)
        text = str(caught.value)
        assert text.startswith(f"expected {EXPECTED[kind]}, got ")
        assert not isinstance(value, str) or value == "" or value not in text


def test_an_exponent_beyond_all_bounds_is_refused_in_every_context() -> None:
    with decimal.localcontext() as context:
        context.traps[decimal.InvalidOperation] = False
        with pytest.raises(Refused):
            READERS[Decimal]("1e" + "9" * 30, None)


def test_kinds_have_the_names_that_json_gives_them() -> None:
    values: list[object] = [None, True, 5, 5.5, "a", [], {}, b"", Wrong(b""), Wrong(5, "a lucky number")]
    assert [kind_of(value) for value in values] == [
        "null",
        "a boolean",
        "an integer",
        "a number with a fraction or exponent",
        "a string",
        "an array",
        "an object",
        "bytes",
        "bytes",
        "a lucky number",
    ]


def test_arrays_and_objects_are_what_the_json_library_makes() -> None:
    assert is_array([])
    assert is_object({})
    assert not is_array(())
    assert not is_object([])


# Writing


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Moment(datetime):
    pass


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (str, "é", "é"),
        (str, Colour.RED, "red"),
        (int, 5, 5),
        (int, Level.HIGH, 3),
        (bool, True, True),
        (NoneType, None, None),
        (float, 1.5, 1.5),
        (float, 5, 5),
        (datetime, datetime(2024, 2, 29, 12, tzinfo=UTC), "2024-02-29T12:00:00Z"),
        (
            datetime,
            datetime(2024, 2, 29, 12, 0, 0, 5, timezone(timedelta(hours=-3))),
            "2024-02-29T12:00:00.000005-03:00",
        ),
        (datetime, Moment(2024, 2, 29, tzinfo=UTC), "2024-02-29T00:00:00Z"),
        (date, date(2024, 2, 29), "2024-02-29"),
        (UUID, ID, str(ID)),
        (Decimal, Decimal("1.50"), "1.50"),
    ],
)
def test_a_writer_gives_plain_json(kind: type[Any], value: Any, expected: Any) -> None:
    found = WRITERS[kind](value)
    assert type(found) is type(expected)
    assert found == expected


@pytest.mark.parametrize(
    ("kind", "value", "got"),
    [
        (str, 5, "int"),
        (str, b"a", "bytes"),
        (str, "\ud800", "text with a lone surrogate"),
        (int, True, "bool"),
        (int, 5.0, "float"),
        (int, 2**64, "an integer outside 64 bits"),
        (int, -(2**63) - 1, "an integer outside 64 bits"),
        (bool, 1, "int"),
        (NoneType, 0, "int"),
        (float, True, "bool"),
        (float, "1", "str"),
        (float, float("nan"), "NaN or infinity"),
        (float, 2**64, "an integer outside 64 bits"),
        (datetime, date(2024, 1, 1), "date"),
        (datetime, datetime(2024, 1, 1), "a datetime without a timezone"),  # noqa: DTZ001
        (datetime, "2024-02-29T12:00:00Z", "str"),
        (date, datetime(2024, 1, 1, tzinfo=UTC), "datetime"),
        (UUID, str(ID), "str"),
        (Decimal, 5, "int"),
        (Decimal, Decimal("sNaN"), "NaN or infinity"),
    ],
)
def test_a_writer_marks_what_is_not_of_its_type_and_every_reader_refuses_the_mark(
    kind: type[Any], value: Any, got: str
) -> None:
    mark = WRITERS[kind](value)
    assert type(mark) is Wrong
    assert mark.got == got
    with pytest.raises(Refused, match=f"got {got}$"):
        READERS[kind](mark, None)


VALUES: dict[type[Any], st.SearchStrategy[Any]] = {
    str: st.text(),
    int: st.integers(MIN_INT, MAX_INT),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    datetime: st.datetimes(timezones=st.timezones() | st.just(UTC)),
    date: st.dates(),
    UUID: st.uuids(),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
}


@given(st.data(), st.sampled_from(sorted(VALUES, key=repr)))
def test_what_was_written_is_read_as_it_was(data: st.DataObject, kind: type[Any]) -> None:
    value = data.draw(VALUES[kind])
    found = READERS[kind](WRITERS[kind](value), None)
    assert found == value
    if isinstance(value, datetime):
        assert found.utcoffset() == value.utcoffset()
