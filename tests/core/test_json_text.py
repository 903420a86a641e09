"""What the package relies on in the JSON library, whichever it is."""

from __future__ import annotations

import enum
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.json_text import MAX_INT, MIN_INT, dumps, is_json, is_text, loads

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(MIN_INT, MAX_INT)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_what_is_json_comes_back_as_it_was(value: Any) -> None:
    assert is_json(value)
    assert repr(loads(dumps(value))) == repr(value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1,]",
        b"01",
        b"nul",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e999",
        b"-1e999",
        b'"\xff"',
        b'"\xed\xa0\x80"',  # a surrogate, in what would be UTF-8
        b'"\\ud800"',
        b'"\\udc00 alone"',
        b'{"\\ud800":1}',
        b'"a\nb"',
        b"\xef\xbb\xbf{}",
        b"{}//",
        b"1" * 5000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_what_is_not_acceptable_json_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its text is the library's own
        loads(text)


def test_of_duplicate_keys_the_last_wins() -> None:
    assert loads(b'{"a":1,"b":2,"a":3}') == {"a": 3, "b": 2}


def test_a_pair_of_surrogate_escapes_is_one_character() -> None:
    assert loads(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


def test_an_integer_outside_64_bits_becomes_a_float() -> None:
    assert repr(loads(b"[18446744073709551615, 18446744073709551616, -9223372036854775808, -9223372036854775809]")) == (
        "[18446744073709551615, 1.8446744073709552e+19, -9223372036854775808, -9.223372036854776e+18]"
    )


def test_text_is_written_without_spaces_and_hardly_escaped() -> None:
    assert dumps({"a": ["é\u2028", "\n"], "b": None}) == '{"a":["é\u2028","\\n"],"b":null}'.encode()


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, 2**64, -(2**63) - 1, {1: 2}, {1, 2}, b"bytes", 1j])
def test_what_json_cannot_carry_is_a_type_error(value: Any) -> None:
    assert not is_json(value)
    with pytest.raises(TypeError):
        dumps(value)


def test_what_holds_itself_is_a_type_error_and_no_recursion_error() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert not is_json(loop)
    with pytest.raises(TypeError):
        dumps(loop)


class Colour(enum.StrEnum):
    RED = "red"


class Celsius(float):
    pass


class Key(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), False),
        ([float("inf")], False),
        ({"a": {"b": (1, [2.5])}}, True),
        (Colour.RED, True),
        (Celsius(1.5), False),
        ({Key("a"): 1}, False),
        (datetime(2024, 1, 1, tzinfo=UTC), False),
        ({"\ud800": 1}, False),
        (["é\ud800"], False),
        (2**64, False),
    ],
)
def test_is_json_knows_what_dumps_writes_exactly(value: Any, expected: bool) -> None:
    assert is_json(value) is expected
    if expected:
        assert json.loads(dumps(value)) == json.loads(json.dumps(value))


def test_is_text_finds_lone_surrogates() -> None:
    assert [is_text(text) for text in ("", "plain", "é\N{GRINNING FACE}", "a\ud83d", "\ude00")] == [
        True,
        True,
        True,
        False,
        False,
    ]
