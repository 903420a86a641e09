"""What the type of a field means on the wire: a small tree of shapes.

The shapes are the one list of what a message may hold. `annotations.py` makes them; all that reads or writes payloads
is made from them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import NoneType
from typing import Any, Final, TypeAlias, assert_never, final

import attrs

__all__ = [
    "KIND_NAMES",
    "AnyJson",
    "ArrayOf",
    "ClassShape",
    "DictOf",
    "EnumOf",
    "FieldShape",
    "Leaf",
    "LiteralOf",
    "OneOf",
    "Shape",
    "TaggedUnion",
    "TupleOf",
    "json_types",
    "python_types",
    "values_of",
]


@final
@attrs.frozen
class Leaf:
    """One of str, int, float, bool, None, datetime, date, UUID, Decimal."""

    type: type[Any]


@final
@attrs.frozen
class AnyJson:
    """Any JSON value, passed through."""


@final
@attrs.frozen
class LiteralOf:
    values: tuple[str | int | bool | None, ...]


@final
@attrs.frozen
class EnumOf:
    cls: type[enum.Enum]


@final
@attrs.frozen
class ArrayOf:
    """`list[T]`, or `tuple[T, ...]`."""

    item: Shape
    make: type[list[Any] | tuple[Any, ...]]


@final
@attrs.frozen
class TupleOf:
    items: tuple[Shape, ...]


@final
@attrs.frozen
class DictOf:
    item: Shape


@final
@attrs.frozen
class OneOf:
    """A union whose members are told apart by the kind of their JSON."""

    members: tuple[Shape, ...]


@final
@attrs.frozen
class TaggedUnion:
    """A union of classes that are told apart by the value of one Literal field."""

    tag: str
    wire: str
    members: Mapping[str | int, ClassShape]


@final
@attrs.define(eq=False)
class ClassShape:
    """An attrs class as an object. `fields` is filled after the shape is made, since a class may hold itself."""

    cls: type[Any]
    fields: tuple[FieldShape, ...] = ()


@final
@attrs.frozen(eq=False)
class FieldShape:
    """One field of a class.

    Attributes:
        name: the attribute.
        argument: the constructor's parameter.
        wire: the key on the wire.
        default: the constructor's default, an `attrs.Factory`, or `attrs.NOTHING`.
        keyword_only: the constructor takes it by keyword.
    """

    name: str
    argument: str
    wire: str
    shape: Shape
    default: Any
    keyword_only: bool

    @property
    def optional(self) -> bool:
        """The key may be absent."""
        return self.default is not attrs.NOTHING

    @property
    def omit_none(self) -> bool:
        """A value of None is not sent: an absent key means the same, and is what JavaScript sends and expects."""
        return self.default is None


Shape: TypeAlias = Leaf | AnyJson | LiteralOf | EnumOf | ArrayOf | TupleOf | DictOf | OneOf | TaggedUnion | ClassShape

KIND_NAMES: Final[Mapping[type[Any], str]] = {
    NoneType: "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}
"""The types of plain JSON values, as a text for a reader names them."""


def values_of(cls: type[enum.Enum]) -> list[str | int]:
    """The values of an Enum's members, as they stand on the wire."""
    return [member.value for member in cls]


def json_types(shape: Shape) -> frozenset[type[Any]]:
    """The types of plain JSON values that a shape takes: what tells the members of a union apart when reading."""
    match shape:
        case Leaf(type=kind):
            return frozenset({kind if kind in KIND_NAMES else str})
        case LiteralOf(values=values):
            return frozenset(type(value) for value in values)
        case EnumOf(cls=cls):
            return frozenset(type(value) for value in values_of(cls))
        case ArrayOf() | TupleOf():
            return frozenset({list})
        case DictOf() | ClassShape() | TaggedUnion():
            return frozenset({dict})
        case OneOf(members=members):
            return frozenset[type[Any]]().union(*map(json_types, members))
        case AnyJson():
            return frozenset(KIND_NAMES)
        case _:
            assert_never(shape)


def python_types(shape: Shape) -> list[type[Any]]:
    """The types of the values that a shape takes: what tells the members of a union apart when writing."""
    match shape:
        case Leaf(type=kind):
            return [kind]
        case LiteralOf(values=values):
            return list(dict.fromkeys(type(value) for value in values))
        case EnumOf(cls=cls):
            return [cls]
        case ArrayOf(make=make):
            return [make]
        case TupleOf():
            return [tuple]
        case DictOf():
            return [dict]
        case ClassShape(cls=cls):
            return [cls]
        case TaggedUnion(members=members):
            return list(dict.fromkeys(member.cls for member in members.values()))
        case OneOf(members=members):
            return [kind for member in members for kind in python_types(member)]
        case AnyJson():
            return [object]
        case _:
            assert_never(shape)
