"""From annotations to shapes: what a message may hold, or else a ConfigError that names the field."""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, NewType, TypeAlias, Union, cast, final, get_args, get_origin
from uuid import UUID

import attrs

from trio_wskit._core.shapes import (
    KIND_NAMES,
    AnyJson,
    ArrayOf,
    ClassShape,
    DictOf,
    EnumOf,
    FieldShape,
    Leaf,
    LiteralOf,
    OneOf,
    Shape,
    TaggedUnion,
    TupleOf,
    json_types,
)
from trio_wskit.errors import ConfigError

__all__ = ["Rename", "Shapes", "camel_case"]

Rename: TypeAlias = Callable[[str], str]

_LEAVES: Final[frozenset[Any]] = frozenset({str, int, float, bool, type(None), datetime, date, UUID, Decimal})

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


@final
class Shapes:
    """Makes the shapes of one message.

    Args:
        rename: from the name of a field to its key on the wire, in every class.
        resolve: called for each class before its fields are read: turns annotations that are text into types.
    """

    def __init__(self, rename: Rename, resolve: Callable[[type[Any]], None]) -> None:
        self._rename = rename
        self._resolve = resolve
        self._classes: dict[type[Any], ClassShape] = {}
        self._aliases: set[object] = set()

    def of_class(self, cls: type[Any]) -> ClassShape:
        """The shape of an attrs class, and of all the classes in its fields.

        Raises:
            ConfigError: names the class and the field, and what would be right.
        """
        if cls in self._classes:
            return self._classes[cls]
        self._resolve(cls)
        self._classes[cls] = shape = ClassShape(cls)
        fields: dict[str, FieldShape] = {}
        for field in attrs.fields(cls):
            if not field.init:
                continue
            where = f"{cls.__qualname__}.{field.name}"
            if field.type is None:
                raise ConfigError(f"{where} has no type annotation")
            wire = self._wire_name(field.name, where)
            if wire in fields:
                raise ConfigError(f"{where} has the same name on the wire as {fields[wire].name}: {wire!r}")
            fields[wire] = FieldShape(
                name=field.name,
                argument=field.alias or field.name,
                wire=wire,
                shape=self.of_type(field.type, where),
                default=field.default,
                keyword_only=field.kw_only,
            )
        shape.fields = tuple(fields.values())
        return shape

    def _wire_name(self, name: str, where: str) -> str:
        wire: object = self._rename(name)
        if type(wire) is not str:
            raise ConfigError(f"{where}: rename gave {wire!r}, which is no str")
        return wire

    def of_type(self, annotation: Any, where: str) -> Shape:
        """The shape of one annotation.

        Raises:
            ConfigError: it has none; the text starts with `where`.
        """
        if annotation is None:
            return Leaf(types.NoneType)
        if annotation is Any or annotation is object:
            return AnyJson()
        if isinstance(annotation, NewType):
            return self.of_type(annotation.__supertype__, where)
        if type(annotation).__name__ == "TypeAliasType":  # typing's from Python 3.12, typing_extensions' before
            return self._of_alias(annotation, where)
        origin = get_origin(annotation)
        if origin is not None:
            return self._of_generic(annotation, origin, get_args(annotation), where)
        if annotation in _LEAVES:
            return Leaf(annotation)
        if isinstance(annotation, type):
            if issubclass(annotation, enum.Enum):
                return _enum(annotation, where)
            cls = cast("type[Any]", annotation)
            if attrs.has(cls):
                return self.of_class(cls)
        raise _unsupported(annotation, where)

    def _of_alias(self, alias: Any, where: str) -> Shape:
        if alias in self._aliases:
            raise ConfigError(f"{where}: the alias {alias} holds itself; a class may do so, or use Any")
        self._aliases.add(alias)
        shape = self.of_type(alias.__value__, where)
        self._aliases.remove(alias)
        return shape

    def _of_generic(self, annotation: Any, origin: Any, arguments: tuple[Any, ...], where: str) -> Shape:
        if origin is Annotated:
            return self.of_type(arguments[0], where)
        if origin is Literal:
            return _literal(arguments, where)
        if origin is Union or origin is types.UnionType:
            return self._of_union(arguments, where)
        if origin is list:
            return ArrayOf(self.of_type(arguments[0], where), list)
        if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
            return ArrayOf(self.of_type(arguments[0], where), tuple)
        if origin is tuple:
            return TupleOf(tuple(self.of_type(part, where) for part in arguments))
        if origin is dict:
            if self.of_type(arguments[0], where) != Leaf(str):
                raise ConfigError(f"{where}: the keys of a JSON object are text: use dict[str, …], not {annotation}")
            return DictOf(self.of_type(arguments[1], where))
        raise _unsupported(annotation, where)

    def _of_union(self, arguments: tuple[Any, ...], where: str) -> Shape:
        members: list[Shape] = []
        for argument in arguments:
            part = self.of_type(argument, where)
            members.extend(part.members if isinstance(part, OneOf) else [part])  # an alias of a union
        classes = [part for part in members if isinstance(part, ClassShape)]
        if len(classes) > 1:
            members = [part for part in members if not isinstance(part, ClassShape)]
            members.append(self._tagged(classes, where))
        if any(isinstance(part, AnyJson) for part in members):
            return AnyJson()
        others = [part for part in members if part != Leaf(types.NoneType)]
        if any(types.NoneType in json_types(part) for part in others):
            members = others  # Literal["a", None] | None
        taken: set[type[Any]] = set()
        for part in members:
            kinds = json_types(part)
            if kinds & taken:
                both = " and ".join(KIND_NAMES[kind] for kind in KIND_NAMES if kind in kinds & taken)
                raise ConfigError(
                    f"{where}: more than one member of the union is {both} in JSON: nothing tells them apart"
                )
            taken |= kinds
        return members[0] if len(members) == 1 else OneOf(tuple(members))

    def _tagged(self, classes: list[ClassShape], where: str) -> TaggedUnion:
        # Read from attrs, not from the shapes: in a union that holds its own class those are not finished yet.
        for tag in attrs.fields(classes[0].cls):
            members: dict[str | int, ClassShape] = {}
            for shape in classes:
                values = _tag_values(shape.cls, tag.name)
                if not values or values & members.keys():
                    break
                members.update(dict.fromkeys(values, shape))
            else:
                return TaggedUnion(tag.name, self._wire_name(tag.name, where), members)
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


def _unsupported(annotation: Any, where: str) -> ConfigError:
    if not isinstance(annotation, type) or get_origin(annotation) is not None:
        return ConfigError(f"{where}: unsupported type {annotation}: {_SUPPORTED}")
    cls = cast("type[Any]", annotation)
    advice = _ADVICE.get(cls)
    if advice is None:
        is_record = dataclasses.is_dataclass(cls) or issubclass(cls, tuple | dict)  # NamedTuple, TypedDict
        advice = "make it an attrs class" if is_record else _SUPPORTED
    return ConfigError(f"{where}: unsupported type {cls.__qualname__}: {advice}")


def _literal(values: tuple[object, ...], where: str) -> LiteralOf:
    for value in values:
        if value is not None and type(value) not in (str, int, bool):
            raise ConfigError(f"{where}: a Literal may hold str, int, bool and None, not {value!r}")
    return LiteralOf(cast("tuple[str | int | bool | None, ...]", values))


def _enum(cls: type[enum.Enum], where: str) -> EnumOf:
    if issubclass(cls, enum.Flag):
        raise ConfigError(
            f"{where}: {cls.__qualname__} is a Flag, whose values have no names of their own: use list of an Enum"
        )
    for member in cls:
        value: object = member.value
        if type(value) not in (str, int):
            raise ConfigError(f"{where}: {cls.__qualname__}.{member.name} has a value that is neither str nor int")
    return EnumOf(cls)
