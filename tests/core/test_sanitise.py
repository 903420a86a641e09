from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wskit._core.json_text import dumps
from trio_wskit._core.sanitise import MAX_NESTED, SECRET_KEYS, safe_details, safe_text


class Colour(enum.Enum):
    RED = "red"


class Unsendable:
    pass


def test_there_are_15_secret_keys() -> None:
    assert len(SECRET_KEYS) == 15


@pytest.mark.parametrize("key", sorted(SECRET_KEYS))
def test_a_secret_looking_key_is_removed_at_every_depth_whatever_its_case(key: str) -> None:
    details = {key: 1, key.upper(): 2, "a": {key.title(): 3, "b": [{key: 4, "c": 5}]}, "key": "stays"}
    assert safe_details(details) == {"a": {"b": [{"c": 5}]}, "key": "stays"}


def test_a_key_that_only_contains_a_secret_word_stays() -> None:
    assert safe_details({"tokens": 3, "passwordless": True}) == {"tokens": 3, "passwordless": True}


def test_a_nested_value_of_500_characters_stays_and_one_of_501_is_dropped_whole() -> None:
    fits = {"x": "a" * (MAX_NESTED - len('{"x":""}'))}
    assert len(dumps(fits)) == MAX_NESTED
    assert safe_details({"keep": fits, "n": 1}) == {"keep": fits, "n": 1}
    assert safe_details({"drop": {"x": fits["x"] + "a"}, "n": 1}) == {"n": 1}
    array = [0] * 249 + [10]  # 249 * 2 + 2 + 2 characters
    assert len(dumps(array)) == MAX_NESTED + 2
    assert safe_details({"drop": array, "keep": array[2:]}) == {"keep": array[2:]}


def test_characters_are_counted_not_bytes() -> None:
    text = "é" * (MAX_NESTED - len('[""]'))
    assert safe_details({"a": [text]}) == {"a": [text]}


def test_text_at_the_top_is_not_limited() -> None:
    assert safe_details({"a": "x" * 10_000}) == {"a": "x" * 10_000}


def test_a_secret_does_not_count_for_the_size() -> None:
    assert safe_details({"a": {"password": "x" * 600, "b": 1}}) == {"a": {"b": 1}}


def test_values_with_a_form_in_json_take_it() -> None:
    found = safe_details(
        {
            "colour": Colour.RED,
            "day": date(2024, 2, 29),
            "at": datetime(2024, 2, 29, tzinfo=UTC),
            "id": UUID(int=5),
            "price": Decimal("1.50"),
            "parts": (1, {2}, frozenset([3])),
            "lone": "a\ud800b",
            "inner": ["\ud800"],
        }
    )
    assert found == {
        "colour": "red",
        "day": "2024-02-29",
        "at": "2024-02-29T00:00:00+00:00",
        "id": "00000000-0000-0000-0000-000000000005",
        "price": "1.50",
        "parts": [1, [2], [3]],
        "lone": "a?b",
        "inner": ["?"],
    }


def test_what_has_no_form_in_json_is_dropped_and_null_in_an_array() -> None:
    details = {"a": Unsendable(), "b": float("nan"), "c": b"x", "d": 2**70, "e": [Unsendable(), 1], 5: 6, "f": {7: 8}}
    assert safe_details(details) == {"e": [None, 1], "f": {}}


def test_a_value_that_holds_itself_is_dropped() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    deep: list[Any] = []
    deep.append(deep)
    wide: list[Any] = [1]
    for _ in range(60):
        wide = [wide, wide]  # 2 to the power of 60 items
    assert safe_details({"loop": loop, "deep": deep, "wide": wide, "n": 1}) == {"n": 1}


def test_a_mapping_that_is_no_dict_will_do() -> None:
    class View(Mapping[str, int]):
        def __getitem__(self, key: str) -> int:
            return 1

        def __iter__(self) -> Any:
            return iter(["a"])

        def __len__(self) -> int:
            return 1

    assert safe_details(View()) == {"a": 1}
    assert safe_details({"nested": View()}) == {"nested": {"a": 1}}


anything: st.SearchStrategy[Any] = st.recursive(
    st.text(max_size=20) | st.floats() | st.builds(object), lambda inner: st.lists(inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(st.text(max_size=5) | st.integers(), anything, max_size=4))
def test_whatever_comes_in_json_goes_out(details: Any) -> None:
    assert json.loads(dumps(safe_details(details))) == safe_details(details)


@given(st.text(st.characters()))
def test_safe_text_can_always_be_encoded(text: str) -> None:
    safe_text(text).encode()
