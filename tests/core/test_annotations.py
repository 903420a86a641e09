from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import NoneType
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar, Union
from uuid import UUID

import attrs
import pytest
from typing_extensions import TypeAliasType

from trio_wskit._core.annotations import Shapes, camel_case
from trio_wskit._core.shapes import (
    AnyJson,
    ArrayOf,
    ClassShape,
    DictOf,
    EnumOf,
    Leaf,
    LiteralOf,
    OneOf,
    Shape,
    TaggedUnion,
    TupleOf,
)
from trio_wskit.errors import ConfigError

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    FIVE = 5


class Mixed(enum.Enum):
    HALF = 0.5


class Bits(enum.Flag):
    ONE = 1


@attrs.frozen
class Point:
    x: float
    y: float = 0.0


@attrs.frozen
class Circle:
    radius: float
    kind: Literal["circle"] = "circle"


@attrs.frozen
class Square:
    side: float
    kind: Literal["square", "box"] = "square"


@attrs.frozen
class Other:
    kind: Literal["circle"]


@attrs.frozen
class Numbered:
    version: Literal[1]


@attrs.frozen
class Doubtful:
    version: Literal[True]


@attrs.frozen
class NumberedToo:
    version: Literal[2, "two"]


@attrs.frozen
class Node:
    label: str
    children: list[Node]
    value: Branch | Fruit


@attrs.frozen
class Branch:
    is_a: Literal["branch"]
    inner: Branch | Fruit | None


@attrs.frozen
class Fruit:
    is_a: Literal["fruit"]


@attrs.frozen
class Page(Generic[T]):
    items: list[T]


@dataclasses.dataclass
class Data:
    x: int


class Named(NamedTuple):
    x: int


class Typed(TypedDict):
    x: int


class Slug(str):
    __slots__ = ()


class Plain:
    pass


RoomId = NewType("RoomId", str)
Ids = TypeAliasType("Ids", list[RoomId])
Number = TypeAliasType("Number", Union[int, float])  # noqa: UP007


class Loop:
    """As `type Loop = list[Loop]`, which needs Python 3.12."""

    __value__: Any


Loop.__name__ = "TypeAliasType"
loop = Loop()
loop.__value__ = list[loop]  # type: ignore[valid-type]


def shapes(rename: Callable[[str], str] = camel_case) -> Shapes:
    def resolve(cls: type[Any]) -> None:
        attrs.resolve_types(cls)

    return Shapes(rename, resolve)


def shape_of(annotation: Any) -> Shape:
    return shapes().of_type(annotation, "Owner.field")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("text", "text"),
        ("room_id", "roomId"),
        ("unit_price_in_cents", "unitPriceInCents"),
        ("from_", "from"),
        ("_seen_at", "seenAt"),
        ("line_2", "line2"),
        ("a__b", "aB"),
        ("alreadyCamel", "alreadyCamel"),
        ("URL", "URL"),
    ],
)
def test_names_become_camel_case(name: str, expected: str) -> None:
    assert camel_case(name) == expected


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        *((kind, Leaf(kind)) for kind in (str, int, float, bool, NoneType, datetime, date, UUID, Decimal)),
        (None, Leaf(NoneType)),
        (Any, AnyJson()),
        (object, AnyJson()),
        (RoomId, Leaf(str)),
        (Annotated[int, "unit: ms"], Leaf(int)),
        (Ids, ArrayOf(Leaf(str), list)),
        (Literal["a", 1, True, None], LiteralOf(("a", 1, True, None))),  # noqa: PYI061
        (Colour, EnumOf(Colour)),
        (list[int], ArrayOf(Leaf(int), list)),
        (tuple[int, ...], ArrayOf(Leaf(int), tuple)),
        (tuple[int, str], TupleOf((Leaf(int), Leaf(str)))),
        (tuple[()], TupleOf(())),
        (dict[str, bool], DictOf(Leaf(bool))),
        (dict[RoomId, Any], DictOf(AnyJson())),
        (Optional[int], OneOf((Leaf(int), Leaf(NoneType)))),  # noqa: UP045
        (int | str | None, OneOf((Leaf(int), Leaf(str), Leaf(NoneType)))),
        (int | float, OneOf((Leaf(int), Leaf(float)))),
        (Number | None, OneOf((Leaf(int), Leaf(float), Leaf(NoneType)))),
        (list[str] | dict[str, str], OneOf((ArrayOf(Leaf(str), list), DictOf(Leaf(str))))),
        (Any | None, AnyJson()),
        (Literal["a", None] | None, LiteralOf(("a", None))),  # noqa: PYI061
    ],
)
def test_each_supported_type_has_its_shape(annotation: Any, expected: Shape) -> None:
    assert shape_of(annotation) == expected


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (bytes, "bytes have no form in JSON"),
        (list, "say what is in it"),
        (dict, "say what is in it"),
        (tuple, "say what is in it"),
        (set[int], "unsupported type set"),
        (frozenset, "JSON has no sets"),
        (Sequence[int], "supported are"),
        (Mapping[str, int], "supported are"),
        (time, "unsupported type time"),
        (timedelta, "unsupported type timedelta"),
        (complex, "unsupported type complex"),
        (Slug, "unsupported type Slug"),
        (Plain, "unsupported type Plain"),
        (Data, "make it an attrs class"),
        (Named, "make it an attrs class"),
        (Typed, "make it an attrs class"),
        (Page[int], "unsupported type"),
        (Page, r"Page.items: unsupported type ~T"),
        (Callable[[], int], "unsupported type"),
        (type[int], "unsupported type"),
        (5, "unsupported type 5"),
        (dict[int, str], r"use dict\[str"),
        (Literal[b"a"], "a Literal may hold"),
        (Literal[Colour.RED], "a Literal may hold"),
        (Mixed, "Mixed.HALF has a value that is neither str nor int"),
        (Bits, "is a Flag"),
        (str | UUID, "more than one member of the union is a string"),
        (Union[Literal["a"], str], "a string"),  # noqa: UP007, PYI051
        (Colour | int | str, "an integer"),
        (list[int] | tuple[int, int], "an array"),
        (dict[str, int] | Point, "an object"),
        (Point | Circle, "nothing tells Point and Circle apart"),
        (Circle | Square | Other, "nothing tells Circle and Square and Other apart"),
        (Numbered | Doubtful, "apart"),
        (loop, "holds itself"),
    ],
)
def test_an_unsupported_type_is_a_config_error_that_names_the_field(annotation: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        shape_of(annotation)
    assert str(caught.value).startswith(("Owner.field", "Page.items"))


def test_a_class_is_its_fields_by_their_names_on_the_wire() -> None:
    @attrs.frozen
    class Item:
        unit_price: Decimal
        _seen_at: datetime | None = None
        tags: list[str] = attrs.field(factory=list, kw_only=True)
        derived: int = attrs.field(init=False, default=3)

    shape = shapes().of_class(Item)
    assert shape.cls is Item
    first, second, third = shape.fields
    assert (first.name, first.argument, first.wire, first.shape) == (
        "unit_price",
        "unit_price",
        "unitPrice",
        Leaf(Decimal),
    )
    assert (first.optional, first.omit_none, first.keyword_only) == (False, False, False)
    assert (second.name, second.argument, second.wire) == ("_seen_at", "seen_at", "seenAt")
    assert (second.optional, second.omit_none, second.default) == (True, True, None)
    assert (third.wire, third.optional, third.omit_none, third.keyword_only) == ("tags", True, False, True)


def test_the_renaming_reaches_nested_classes() -> None:
    @attrs.frozen
    class Outer:
        my_point: Point

    (field,) = shapes(str.upper).of_class(Outer).fields
    assert field.wire == "MY_POINT"
    assert isinstance(field.shape, ClassShape)
    assert [inner.wire for inner in field.shape.fields] == ["X", "Y"]


def test_a_class_may_hold_itself_and_the_union_that_it_is_in() -> None:
    made = shapes()
    node = made.of_class(Node)
    fields = {field.name: field for field in node.fields}
    assert isinstance(fields["children"].shape, ArrayOf)
    assert fields["children"].shape.item is node
    union = fields["value"].shape
    assert isinstance(union, TaggedUnion)
    assert (union.tag, union.wire) == ("is_a", "isA")
    assert {tag: shape.cls for tag, shape in union.members.items()} == {"branch": Branch, "fruit": Fruit}
    assert made.of_class(Branch) is union.members["branch"]


def test_a_tag_may_have_several_values_and_be_a_number() -> None:
    union = shape_of(Circle | Square | None)
    assert isinstance(union, OneOf)
    tagged = union.members[1]
    assert isinstance(tagged, TaggedUnion)
    assert set(tagged.members) == {"circle", "square", "box"}
    numbers = shape_of(Numbered | NumberedToo)
    assert isinstance(numbers, TaggedUnion)
    assert set(numbers.members) == {1, 2, "two"}


def test_a_field_without_annotation_is_a_config_error() -> None:
    Bare = attrs.make_class("Bare", ["x"])  # noqa: N806

    with pytest.raises(ConfigError, match=r"Bare\.x has no type annotation"):
        shapes().of_class(Bare)


def test_two_fields_of_one_wire_name_are_a_config_error() -> None:
    @attrs.frozen
    class Twice:
        line_2: str
        line2: str

    with pytest.raises(ConfigError, match=r"Twice\.line2 has the same name on the wire as line_2: 'line2'"):
        shapes().of_class(Twice)


def test_a_renaming_that_gives_no_str_is_a_config_error() -> None:
    nothing: Any = {None: None}.get
    with pytest.raises(ConfigError, match=r"Point\.x: rename gave None"):
        shapes(nothing).of_class(Point)
