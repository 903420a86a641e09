"""Instances to plain JSON values, by cattrs made as strict: a field holds what its annotation says, or is not sent.

attrs does not look at types when an instance is made. Here a value that is not of its field's type becomes a `Wrong`,
and writing goes on; the strict readers, given the result, then find every one of them with its path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, assert_never, cast, final

from cattrs import Converter
from cattrs.gen import make_dict_unstructure_fn, override

from trio_wskit._core.json_text import is_json
from trio_wskit._core.leaves import WRITERS, Write, Wrong
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
    python_types,
)

__all__ = ["Writers"]


# As in reading.py: it holds nothing of ours.
_CONVERTER: Final = Converter()


@final
class Writers:
    """The unstructure hooks of one message: each class in it is compiled once.

    A hook raises nothing but RecursionError, for a value that holds itself.
    """

    def __init__(self) -> None:
        self._classes: dict[type[Any], Write] = {}

    def writer(self, shape: Shape) -> Write:
        """Make the hook that writes what has this shape."""
        match shape:
            case Leaf(type=kind):
                return WRITERS[kind]
            case AnyJson():
                return _write_any
            case LiteralOf(values=values):
                return _member_writer({(type(value), value): value for value in values})
            case EnumOf(cls=cls):
                return _member_writer({(cls, member): member.value for member in cls})
            case ArrayOf(item=item, make=make):
                return _array_writer(self.writer(item), make)
            case TupleOf(items=items):
                return _tuple_writer([self.writer(item) for item in items])
            case DictOf(item=item):
                return _dict_writer(self.writer(item))
            case OneOf(members=members):
                return self._union_writer(members)
            case TaggedUnion(members=members):
                return self._union_writer(tuple(members.values()))
            case ClassShape():
                return self._class_writer(shape)
            case _:
                assert_never(shape)

    def _union_writer(self, members: tuple[Shape, ...]) -> Write:
        by_type: dict[type[Any], Write] = {}
        for member in members:
            by_type.update(dict.fromkeys(python_types(member), self.writer(member)))
        if float in by_type:
            by_type.setdefault(int, by_type[float])

        def write_one(value: object) -> Any:
            # A subclass goes to the nearest of its bases: a bool that is not among the types to int, whose writer
            # refuses it.
            for kind in type(value).__mro__:
                if kind in by_type:
                    return by_type[kind](value)
            return Wrong(value)

        return write_one

    def _class_writer(self, shape: ClassShape) -> Write:
        cls = shape.cls
        if cls in self._classes:
            return self._classes[cls]

        def write(value: Any) -> Any:
            # A subclass has fields that this class does not know: sending half of it would be a surprise.
            return unstructure(value) if type(value) is cls else Wrong(value)

        self._classes[cls] = write
        overrides: dict[str, Any] = {
            field.name: override(
                rename=field.wire, unstruct_hook=self.writer(field.shape), omit_if_default=field.omit_none
            )
            for field in shape.fields
        }
        unstructure = make_dict_unstructure_fn(cls, _CONVERTER, _cattrs_use_linecache=False, **overrides)
        return write


def _write_any(value: object) -> Any:
    return value if is_json(value) else Wrong(value)


def _member_writer(members: Mapping[tuple[type[Any], Any], Any]) -> Write:
    def write(value: object) -> Any:
        try:
            return members[type(value), value]
        except (KeyError, TypeError):  # TypeError: not hashable
            return Wrong(value)

    return write


def _array_writer(write_item: Write, make: type[list[Any] | tuple[Any, ...]]) -> Write:
    def write(value: object) -> Any:
        if not isinstance(value, make):
            return Wrong(value)
        return [write_item(item) for item in cast("list[object]", value)]

    return write


def _tuple_writer(writers: list[Write]) -> Write:
    def write(value: object) -> Any:
        if not isinstance(value, tuple):
            return Wrong(value)
        parts = cast("tuple[object, ...]", value)
        if len(parts) != len(writers):
            return Wrong(parts, f"an array of {len(parts)}")
        return [write_item(part) for write_item, part in zip(writers, parts, strict=True)]

    return write


def _dict_writer(write_item: Write) -> Write:
    write_key = WRITERS[str]

    def write(value: object) -> Any:
        if not isinstance(value, dict):
            return Wrong(value)
        items = cast("dict[object, Any]", value)
        written: dict[Any, Any] = {write_key(key): write_item(item) for key, item in items.items()}
        if any(type(key) is Wrong for key in written):
            return Wrong(items, "an object with a key that is no text")
        return written

    return write
