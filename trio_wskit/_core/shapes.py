"""What the type of a field means on the wire: a small tree of shapes, made once from annotations, or a ConfigError.

The shapes are the one list of what a message may hold. Everything that reads or writes payloads is built from them.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, NewType, TypeAlias, Union, final, get_args, get_origin
from uuid import UUID

import attrs

from ..errors import ConfigError

__all__ = [
    "AnyJson",
    "ArrayOf",
    "ClassShape",
    "DictOf",
    "EnumOf",
    "FieldShape",
    "Leaf",
    "LiteralOf",
    "OneOf",
    "Rename",
    "Shape",
    "TaggedUnion",
    "TupleOf",
    "camel_case",
    "json_types",
    "python_types",
    "shape_of_class",
    "shape_of_type",
]

Rename: TypeAlias = Callable[[str], str]


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

_LEAVES: Final[frozenset[Any]] = frozenset({str, int, float, bool, type(None), datetime, date, UUID, Decimal})

_KIND_NAMES: Final[Mapping[type[Any], str]] = {
    types.NoneType: "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}

_ADVICE: Final[Mapping[Any, str]] = {
    bytes: "bytes have no form in JSON: use str with base64",
    list: "say what is in it: list[str]",
    dict: "say what is in it: dict[str, int]",
    tuple: "say what is in it: tuple[str, ...] or tuple[float, float]",
    set: "JSON has no sets: use list or tuple",
    frozenset: "JSON has no sets: use list or tuple",
}

_SUPPORTED: Final = (
    "supported are str, int, float, bool, None, datetime, date, UUID, Decimal, Any, Literal, Enum, list, tuple, "
    "dict with str keys, attrs classes, and unions of these that JSON can tell apart"
)


def camel_case(name: str) -> str:
    """Turn a Python name into a wire name: `unit_price` to `unitPrice`, `from_` to `from`, `_seen_at` to `seenAt`."""
    first, *rest = name.strip("_").split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def shape_of_class(
    cls: type[Any],
    rename: Rename,
    resolve: Callable[[type[Any]], None],
    known: dict[type[Any], ClassShape] | None = None,
) -> ClassShape:
    """Make the shape of an attrs class and of all the classes in its fields.

    Args:
        cls: an attrs class.
        rename: from the name of a field to its key on the wire; used for nested classes too.
        resolve: called for each class before its fields are read: turns annotations that are text into types.
        known: the classes met so far.

    Raises:
        ConfigError: names the class and the field, and what would be right.
    """
    known = {} if known is None else known
    if cls in known:
        return known[cls]
    resolve(cls)
    known[cls] = shape = ClassShape(cls)
    fields: dict[str, FieldShape] = {}
    for field in attrs.fields(cls):
        if not field.init:
            continue
        where = f"{cls.__qualname__}.{field.name}"
        if field.type is None:
            raise ConfigError(f"{where} has no type annotation")
        wire = rename(field.name)
        if type(wire) is not str:
            raise ConfigError(f"{where}: rename returned {wire!r}, which is no str")
        if wire in fields:
            raise ConfigError(f"{where} has the same name on the wire as {fields[wire].name}: {wire!r}")
        fields[wire] = FieldShape(
            name=field.name,
            argument=field.alias or field.name,
            wire=wire,
            shape=shape_of_type(field.type, where, rename, resolve, known),
            default=field.default,
            keyword_only=field.kw_only,
        )
    shape.fields = tuple(fields.values())
    return shape


def shape_of_type(
    annotation: Any,
    where: str,
    rename: Rename,
    resolve: Callable[[type[Any]], None],
    known: dict[type[Any], ClassShape],
) -> Shape:
    """Make the shape of one annotation; ConfigError with `where` in it if it has none."""

    def inner(part: Any) -> Shape:
        return shape_of_type(part, where, rename, resolve, known)

    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if annotation is None:
        return Leaf(type(None))
    if annotation is Any or annotation is object:
        return AnyJson()
    if isinstance(annotation, NewType):
        return inner(annotation.__supertype__)
    if origin is Annotated:
        return inner(arguments[0])
    if origin is Literal:
        return _literal(arguments, where)
    if origin is Union or origin is types.UnionType:
        return _union([inner(part) for part in arguments], where, rename)
    if origin is list:
        return ArrayOf(inner(arguments[0]), list)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return ArrayOf(inner(arguments[0]), tuple)
    if origin is tuple:
        return TupleOf(tuple(inner(part) for part in arguments))
    if origin is dict:
        if inner(arguments[0]) != Leaf(str):
            raise ConfigError(f"{where}: the keys of a JSON object are text: use dict[str, …], not {annotation}")
        return DictOf(inner(arguments[1]))
    if isinstance(annotation, type) and origin is None:
        if annotation in _LEAVES:
            return Leaf(annotation)
        if issubclass(annotation, enum.Enum):
            return _enum(annotation, where)
        if attrs.has(annotation):
            return shape_of_class(annotation, rename, resolve, known)
    name = getattr(annotation, "__qualname__", None) if isinstance(annotation, type) and origin is None else None
    raise ConfigError(f"{where}: unsupported type {name or annotation}: {_ADVICE.get(annotation, _SUPPORTED)}")


def _literal(values: tuple[Any, ...], where: str) -> LiteralOf:
    for value in values:
        if type(value) not in (str, int, bool, type(None)):
            raise ConfigError(f"{where}: a Literal may hold str, int, bool and None, not {value!r}")
    return LiteralOf(values)


def _enum(cls: type[enum.Enum], where: str) -> EnumOf:
    if issubclass(cls, enum.Flag):
        raise ConfigError(
            f"{where}: {cls.__qualname__} is a Flag, whose values have no names of their own: use list of an Enum"
        )
    for member in cls:
        if type(member.value) not in (str, int):
            raise ConfigError(f"{where}: {cls.__qualname__}.{member.name} has a value that is neither str nor int")
    return EnumOf(cls)


def json_types(shape: Shape) -> frozenset[type[Any]]:
    """The types of plain JSON values that a shape takes: what tells the members of a union apart when reading."""
    match shape:
        case Leaf(type=kind):
            return frozenset({kind if kind in _KIND_NAMES else str})
        case LiteralOf(values=values):
            return frozenset(type(value) for value in values)
        case EnumOf(cls=cls):
            return frozenset(type(member.value) for member in cls)
        case ArrayOf() | TupleOf():
            return frozenset({list})
        case DictOf() | ClassShape() | TaggedUnion():
            return frozenset({dict})
        case OneOf(members=members):
            return frozenset[type[Any]]().union(*map(json_types, members))
        case AnyJson():
            return frozenset(_KIND_NAMES)


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


def _union(parts: list[Shape], where: str, rename: Rename) -> Shape:
    members: list[Shape] = []
    for part in parts:  # a NewType of a union inside a union
        members.extend(part.members if isinstance(part, OneOf) else [part])
    classes = [part for part in members if isinstance(part, ClassShape)]
    if len(classes) > 1:
        members = [part for part in members if not isinstance(part, ClassShape)]
        members.append(_tagged(classes, where, rename))
    if any(isinstance(part, AnyJson) for part in members):
        return AnyJson()
    taken: set[type[Any]] = set()
    for part in members:
        kinds = json_types(part)
        if kinds & taken:
            both = " and ".join(_KIND_NAMES[kind] for kind in _KIND_NAMES if kind in kinds & taken)
            raise ConfigError(
                f"{where}: more than one member of the union is {both} in JSON, so nothing tells them apart"
            )
        taken |= kinds
    return members[0] if len(members) == 1 else OneOf(tuple(members))


def _tagged(classes: list[ClassShape], where: str, rename: Rename) -> TaggedUnion:
    # Read from attrs, not from the shapes: in a union that holds its own class they are not finished yet.
    for tag in attrs.fields(classes[0].cls):
        members: dict[str | int, ClassShape] = {}
        for shape in classes:
            values = _tag_values(shape.cls, tag.name)
            if not values or values & members.keys():
                break
            members.update(dict.fromkeys(values, shape))
        else:
            return TaggedUnion(tag.name, rename(tag.name), members)
    names = " and ".join(shape.cls.__qualname__ for shape in classes)
    raise ConfigError(
        f"{where}: nothing tells {names} apart: give each a field of the same name, "
        'with a Literal of its own: kind: Literal["circle"]'
    )


def _tag_values(cls: type[Any], name: str) -> set[str | int]:
    for field in attrs.fields(cls):
        if field.name == name and field.init and get_origin(field.type) is Literal:
            values = get_args(field.type)
            return set(values) if all(type(value) in (str, int) for value in values) else set()
    return set()
