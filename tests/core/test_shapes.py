from __future__ import annotations

import enum
from datetime import UTC, datetime
from types import NoneType
from typing import Any
from uuid import UUID

import attrs

from trio_wskit._core.shapes import (
    AnyJson,
    ArrayOf,
    ClassShape,
    DictOf,
    EnumOf,
    FieldShape,
    Leaf,
    LiteralOf,
    OneOf,
    TaggedUnion,
    TupleOf,
    json_types,
    python_types,
    values_of,
)


class Colour(enum.Enum):
    RED = "red"
    FIVE = 5


class Circle:
    pass


class Square:
    pass


CIRCLE = ClassShape(Circle)
SQUARE = ClassShape(Square)
EITHER = TaggedUnion("kind", "kind", {"circle": CIRCLE, "square": SQUARE, "box": SQUARE})
NUMBERS = ArrayOf(Leaf(int), list)
PAIR = TupleOf((Leaf(int), Leaf(int)))


def test_the_kinds_of_json_tell_what_a_shape_reads() -> None:
    assert json_types(Leaf(UUID)) == {str}
    assert json_types(Leaf(float)) == {float}
    assert json_types(LiteralOf(("a", 1, None))) == {str, int, NoneType}
    assert json_types(EnumOf(Colour)) == {str, int}
    assert json_types(NUMBERS) == json_types(PAIR) == {list}
    assert json_types(CIRCLE) == json_types(DictOf(Leaf(int))) == json_types(EITHER) == {dict}
    assert json_types(OneOf((Leaf(int), Leaf(NoneType)))) == {int, NoneType}
    assert json_types(AnyJson()) == {NoneType, bool, int, float, str, list, dict}


def test_the_types_of_python_tell_what_a_shape_writes() -> None:
    assert python_types(Leaf(UUID)) == [UUID]
    assert python_types(LiteralOf(("a", "b", 1))) == [str, int]
    assert python_types(EnumOf(Colour)) == [Colour]
    assert python_types(NUMBERS) == [list]
    assert python_types(ArrayOf(Leaf(int), tuple)) == python_types(PAIR) == [tuple]
    assert python_types(DictOf(Leaf(int))) == [dict]
    assert python_types(CIRCLE) == [Circle]
    assert python_types(EITHER) == [Circle, Square]
    assert python_types(OneOf((Leaf(int), NUMBERS, Leaf(NoneType)))) == [int, list, NoneType]
    assert python_types(AnyJson()) == [object]
    assert values_of(Colour) == ["red", 5]


def test_a_field_knows_whether_its_key_may_be_absent() -> None:
    def field(default: Any) -> FieldShape:
        return FieldShape("a", "a", "a", Leaf(int), default, keyword_only=False)

    assert not field(attrs.NOTHING).optional
    assert field(None).optional
    assert field(None).omit_none
    assert field(datetime.now(UTC)).optional
    assert not field(0).omit_none
