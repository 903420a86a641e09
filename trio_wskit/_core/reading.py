"""Plain JSON values to instances, by cattrs made strict: the reference for what a payload may be.

cattrs by itself turns 5 into "5". Here the hook of every field is made from its shape, and refuses a value of the
wrong kind. What a reader raises is for `explaining.issues_of`; it has looked at everything by then, not only at the
first wrong value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, Final, assert_never, final

from cattrs import (
    AttributeValidationNote,
    ClassValidationError,
    Converter,
    IterableValidationNote,
)
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, override

from trio_wskit._core.explaining import (
    MAX_FAILURES,
    array_error,
    class_error,
    expected_of,
    note_of,
    one_of,
    validator_failures,
)
from trio_wskit._core.leaves import READERS, Read, Refused, Wrong, is_array, is_object
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
    json_types,
)

__all__ = ["Readers"]


# Every hook is handed to it: it holds nothing of ours, and making one takes longer than compiling a class.
_CONVERTER: Final = Converter()


@final
class Readers:
    """The structure hooks of one message: each class in it is compiled once.

    Args:
        forbid_extra: refuse keys that no field has, in the message and in the classes inside.
        construct: False to check alone: the refusal of a constructor, so of a validator, does not count, and what the
            reader returns means nothing.

    Attributes:
        shapes: every class that was compiled.
    """

    def __init__(self, *, forbid_extra: bool, construct: bool = True) -> None:
        self.shapes: dict[type[Any], ClassShape] = {}
        self._forbid_extra = forbid_extra
        self._construct = construct
        self._classes: dict[type[Any], Read] = {}

    def reader(self, shape: Shape) -> Read:
        """Make the hook that reads what has this shape."""
        match shape:
            case Leaf(type=kind):
                return READERS[kind]
            case AnyJson():
                return _read_any
            case LiteralOf(values=values):
                return _member_reader({(type(value), value): value for value in values}, shape)
            case EnumOf(cls=cls):
                return _member_reader({(type(member.value), member.value): member for member in cls}, shape)
            case ArrayOf(item=item, make=make):
                return _array_reader(self.reader(item), make)
            case TupleOf(items=items):
                return _tuple_reader([self.reader(item) for item in items])
            case DictOf(item=item):
                return _dict_reader(self.reader(item))
            case OneOf(members=members):
                return self._union_reader(members, shape)
            case TaggedUnion():
                return self._tagged_reader(shape)
            case ClassShape():
                return self._class_reader(shape)
            case _:
                assert_never(shape)

    def _union_reader(self, members: tuple[Shape, ...], shape: Shape) -> Read:
        by_type: dict[type[Any], Read] = {}
        for member in members:
            by_type.update(dict.fromkeys(json_types(member), self.reader(member)))
        if float in by_type:
            by_type.setdefault(int, by_type[float])
        expected = expected_of(shape)

        def read_one(value: object, _: Any) -> Any:
            read = by_type.get(type(value))
            if read is None:
                raise Refused(expected, value)
            return read(value, None)

        return read_one

    def _tagged_reader(self, shape: TaggedUnion) -> Read:
        readers: dict[tuple[object, object], Read] = {
            (type(tag), tag): self.reader(member) for tag, member in shape.members.items()
        }
        expected = one_of(tuple(shape.members))

        def read(value: Any, _: Any) -> Any:
            if not is_object(value):
                raise Refused("an object", value)
            tag: object = value.get(shape.wire, Wrong(None, "nothing"))
            member = readers.get((type(tag), tag)) if type(tag) in (str, int) else None
            if member is None:
                error = Refused(expected, tag)
                error.add_note(AttributeValidationNote("the tag", shape.tag, str))
                raise class_error([error], next(iter(shape.members.values())).cls)
            return member(value, None)

        return read

    def _class_reader(self, shape: ClassShape) -> Read:
        cls = shape.cls
        if cls in self._classes:
            return self._classes[cls]

        def read(value: Any, _: Any) -> Any:
            if not is_object(value):
                raise Refused("an object", value)
            try:
                return structure(value, cls)
            except ClassValidationError as failure:
                cause = failure.exceptions[0]
                if isinstance(cause, ForbiddenExtraKeysError) or note_of(cause, AttributeValidationNote) is not None:
                    raise
            # Every field was read, and the constructor refused: find out which of the validators.
            if not self._construct:
                return None
            given = {
                field.argument: readers[field.name](value[field.wire], None)
                for field in shape.fields
                if field.wire in value
            }
            raise class_error(validator_failures(cls, given) or [cause], cls)

        self._classes[cls] = read
        self.shapes[cls] = shape
        readers = {field.name: self.reader(field.shape) for field in shape.fields}
        overrides: dict[str, Any] = {
            field.name: override(rename=field.wire, struct_hook=readers[field.name]) for field in shape.fields
        }
        structure = make_dict_structure_fn(
            cls,
            _CONVERTER,
            _cattrs_forbid_extra_keys=self._forbid_extra,
            _cattrs_detailed_validation=True,
            _cattrs_use_linecache=False,
            **overrides,
        )
        return read


def _read_any(value: object, _: Any) -> Any:
    if type(value) is Wrong:
        raise Refused("any JSON", value)
    return value


def _member_reader(members: Mapping[tuple[type[Any], Any], Any], shape: Shape) -> Read:
    expected = expected_of(shape)

    def read(value: object, _: Any) -> Any:
        # By type too: True == 1 == 1.0. And only what can be looked up.
        if type(value) in (str, int, bool, NoneType) and (type(value), value) in members:
            return members[type(value), value]
        raise Refused(expected, value)

    return read


def _array_reader(read_item: Read, make: type[list[Any] | tuple[Any, ...]]) -> Read:
    def read(value: object, _: Any) -> Any:
        if not is_array(value):
            raise Refused("an array", value)
        return make(_read_all(enumerate(value), read_item))

    return read


def _tuple_reader(readers: list[Read]) -> Read:
    expected = f"an array of {len(readers)}"

    def read(value: object, _: Any) -> Any:
        if not is_array(value):
            raise Refused(expected, value)
        if len(value) != len(readers):
            raise Refused(expected, Wrong(value, f"an array of {len(value)}"))
        return tuple(_read_all(enumerate(zip(value, readers, strict=True)), _read_pair))

    return read


def _read_pair(pair: tuple[Any, Read], _: Any) -> Any:
    value, read = pair
    return read(value, None)


def _dict_reader(read_item: Read) -> Read:
    def read(value: object, _: Any) -> Any:
        if not is_object(value):
            raise Refused("an object", value)
        return dict(zip(value, _read_all(value.items(), read_item), strict=True))

    return read


def _read_all(items: Iterable[tuple[int | str, Any]], read_item: Read) -> list[Any]:
    done: list[Any] = []
    failures: list[Exception] = []
    for key, item in items:
        try:
            done.append(read_item(item, None))
        except Exception as error:
            error.add_note(IterableValidationNote("item", key, object))
            failures.append(error)
            if len(failures) == MAX_FAILURES:
                break
    if failures:
        raise array_error(failures)
    return done
