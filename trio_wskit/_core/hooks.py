"""cattrs, made strict: the reference for what a payload may be, and the one that explains a refusal.

cattrs by itself turns 5 into "5". Here the hook of every field comes from its shape, and refuses a value of the wrong kind.

Outgoing values are held to the same rules: unstructuring never fails, but puts a `Wrong` in the place of a value that is not of
its field's type, and structuring the result finds every one of them, with its path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, Final, final

import attrs
from cattrs import (
    AttributeValidationNote,
    ClassValidationError,
    Converter,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from trio_wskit._core.json_text import is_json
from trio_wskit._core.leaves import EXPECTED, READERS, WRITERS, Read, Refused, Write, Wrong, kind_of
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
    python_types,
)

__all__ = ["MAX_FAILURES", "StrictHooks", "expected_of"]

MAX_FAILURES: Final = 100
"""Wrong items that are looked for in one array or object: a message of a megabyte can hold half a million."""


def expected_of(shape: Shape) -> str:
    """Say what a shape takes, for a message to whoever sent something else."""
    match shape:
        case Leaf(type=kind):
            return EXPECTED[kind]
        case AnyJson():
            return "any JSON"
        case LiteralOf(values=values):
            return _one_of(values)
        case EnumOf(cls=cls):
            return _one_of(tuple(member.value for member in cls))
        case ArrayOf():
            return "an array"
        case TupleOf(items=items):
            return f"an array of {len(items)}"
        case DictOf() | ClassShape() | TaggedUnion():
            return "an object"
        case OneOf(members=members):
            return " or ".join(expected_of(member) for member in members)


def _one_of(values: tuple[Any, ...]) -> str:
    names = [NAMES[value] if value is None or isinstance(value, bool) else repr(value) for value in values[:_MAX_NAMED]]
    more = len(values) - len(names)
    return ("one of " if len(values) > 1 else "") + ", ".join(names) + (f" and {more} more" if more else "")


NAMES: Final[Mapping[bool | None, str]] = {None: "null", True: "true", False: "false"}
_MAX_NAMED: Final = 10


@final
class StrictHooks:
    """The structure and unstructure hooks of one message: each class in it is compiled once.

    Args:
        forbid_extra: refuse keys that no field has, in the message and in the classes inside.
    """

    def __init__(self, *, forbid_extra: bool) -> None:
        self._forbid_extra = forbid_extra
        self._converter = Converter()
        self._readers: dict[type[Any], Read] = {}
        self._writers: dict[type[Any], Write] = {}
        self._shapes: dict[type[Any], ClassShape] = {}

    # Reading

    def reader(self, shape: Shape) -> Read:
        """Make the hook that reads plain JSON values, and raises what `issues` explains."""
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

    def _union_reader(self, members: tuple[Shape, ...], shape: Shape) -> Read:
        by_type: dict[type[Any], Read] = {}
        for member in members:
            read = self.reader(member)
            by_type.update(dict.fromkeys(json_types(member), read))
        if float in by_type:
            by_type.setdefault(int, by_type[float])
        expected = expected_of(shape)

        def read_one(value: Any, _: Any) -> Any:
            read = by_type.get(type(value))
            if read is None:
                raise Refused(expected, value)
            return read(value, None)

        return read_one

    def _tagged_reader(self, shape: TaggedUnion) -> Read:
        readers = {(type(value), value): self.reader(member) for value, member in shape.members.items()}
        expected = _one_of(tuple(shape.members))
        tag, wire = shape.tag, shape.wire

        def read(value: Any, _: Any) -> Any:
            if type(value) is not dict:
                raise Refused("an object", value)
            chosen: Any = value.get(wire)
            member = readers.get((type(chosen), chosen)) if type(chosen) in (str, int) else None
            if member is None:
                error = Refused(expected, Wrong(value, "other text") if type(chosen) is str else chosen)
                error.add_note(AttributeValidationNote("", tag, None))
                cls = next(iter(shape.members.values())).cls
                raise ClassValidationError("", [error], cls)
            return member(value, None)

        return read

    def _class_reader(self, shape: ClassShape) -> Read:
        cls = shape.cls
        if cls in self._readers:
            return self._readers[cls]

        def read(value: Any, _: Any) -> Any:
            if type(value) is not dict:
                raise Refused("an object", value)
            try:
                return structure(value, cls)
            except ClassValidationError as failure:
                cause = failure.exceptions[0]
                if isinstance(cause, ForbiddenExtraKeysError) or _note_of(cause, AttributeValidationNote) is not None:
                    raise
            # Every field was read, and the constructor refused: find out which of the validators.
            given = {
                field.argument: readers[field.name](value[field.wire], None)
                for field in shape.fields
                if field.wire in value
            }
            raise ClassValidationError("", list(_failed_validators(cls, given)) or [cause], cls)

        self._readers[cls] = read
        self._shapes[cls] = shape
        readers = {field.name: self.reader(field.shape) for field in shape.fields}
        overrides: dict[str, Any] = {
            field.name: override(rename=field.wire, struct_hook=readers[field.name]) for field in shape.fields
        }
        structure = make_dict_structure_fn(
            cls,
            self._converter,
            _cattrs_forbid_extra_keys=self._forbid_extra,
            _cattrs_detailed_validation=True,
            _cattrs_use_linecache=False,
            **overrides,
        )
        return read

    # Writing

    def writer(self, shape: Shape) -> Write:
        """Make the hook that writes plain JSON values, with `Wrong` for what does not fit. It never raises, but for a value
        that holds itself."""
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

    def _union_writer(self, members: tuple[Shape, ...]) -> Write:
        by_type: dict[type[Any], Write] = {}
        for member in members:
            write = self.writer(member)
            by_type.update(dict.fromkeys(python_types(member), write))
        if float in by_type:
            by_type.setdefault(int, by_type[float])

        def write_one(value: Any) -> Any:
            for kind in type(value).__mro__:
                if kind in by_type:
                    return by_type[kind](value)
            return Wrong(value)

        return write_one

    def _class_writer(self, shape: ClassShape) -> Write:
        cls = shape.cls
        if cls in self._writers:
            return self._writers[cls]

        def write(value: Any) -> Any:
            # A subclass has fields that this class does not know: sending half of it would be a surprise.
            return unstructure(value) if type(value) is cls else Wrong(value)

        self._writers[cls] = write
        overrides: dict[str, Any] = {
            field.name: override(
                rename=field.wire, unstruct_hook=self.writer(field.shape), omit_if_default=field.omit_none
            )
            for field in shape.fields
        }
        unstructure = make_dict_unstructure_fn(cls, self._converter, _cattrs_use_linecache=False, **overrides)
        return write

    # Explaining

    def issues(self, error: Exception, path: str = "") -> Iterator[dict[str, str]]:
        """Say what is wrong, for each wrong value, with its path on the wire.

        An exception that no reader and no validator raises for a wrong value (neither ValueError nor TypeError) is a bug in
        the application's own validator: it is raised as it is.
        """
        match error:
            case ClassValidationError():
                fields = {field.name: field for field in self._shapes[error.cl].fields}
                for cause in error.exceptions:
                    note = _note_of(cause, AttributeValidationNote)
                    if note is None:
                        yield from self.issues(cause, path)
                        continue
                    field = fields[note.name]
                    inner = _attribute_path(path, field.wire)
                    if isinstance(cause, KeyError):
                        yield {"path": inner, "message": f"missing: expected {expected_of(field.shape)}"}
                    else:
                        yield from self.issues(cause, inner)
            case IterableValidationError():
                for cause in error.exceptions:
                    note = _note_of(cause, IterableValidationNote)
                    index = 0 if note is None else note.index
                    inner = f"{path}[{index}]" if isinstance(index, int) else _attribute_path(path, index)
                    yield from self.issues(cause, inner)
            case ForbiddenExtraKeysError():
                for key in sorted(error.extra_fields)[:MAX_FAILURES]:
                    yield {"path": _attribute_path(path, key), "message": "unknown key"}
            case ValueError() | TypeError():
                yield {"path": path, "message": _shortened(str(error.args[0]) if error.args else "invalid", 200)}
            case _:
                raise error


def _read_any(value: Any, _: Any) -> Any:
    if type(value) is Wrong:
        raise Refused("any JSON", value)
    return value


def _write_any(value: Any) -> Any:
    return value if is_json(value) else Wrong(value)


def _member_reader(members: Mapping[tuple[type[Any], Any], Any], shape: Shape) -> Read:
    expected = expected_of(shape)

    def read(value: Any, _: Any) -> Any:
        # By type too: True == 1 == 1.0.
        if type(value) in (str, int, bool, NoneType) and (type(value), value) in members:
            return members[type(value), value]
        raise Refused(expected, Wrong(value, "other text") if type(value) is str else value)

    return read


def _member_writer(members: Mapping[tuple[type[Any], Any], Any]) -> Write:
    def write(value: Any) -> Any:
        try:
            return members[type(value), value]
        except (KeyError, TypeError):  # TypeError: not hashable
            return Wrong(value)

    return write


def _array_reader(read_item: Read, make: type[list[Any] | tuple[Any, ...]]) -> Read:
    def read(value: Any, _: Any) -> Any:
        if type(value) is not list:
            raise Refused("an array", value)
        return make(_read_all(enumerate(value), read_item))

    return read


def _read_all(items: Any, read_item: Read) -> list[Any]:
    done: list[Any] = []
    failures: list[Exception] = []
    for key, item in items:
        try:
            done.append(read_item(item, None))
        except Exception as error:
            error.add_note(IterableValidationNote("", key, None))
            failures.append(error)
            if len(failures) == MAX_FAILURES:
                break
    if failures:
        raise IterableValidationError("", failures, list)
    return done


def _tuple_reader(readers: list[Read]) -> Read:
    expected = f"an array of {len(readers)}"

    def read(value: Any, _: Any) -> Any:
        if type(value) is not list:
            raise Refused(expected, value)
        if len(value) != len(readers):
            raise Refused(expected, Wrong(value, f"an array of {len(value)}"))
        return tuple(_read_all(enumerate(zip(value, readers, strict=True)), _read_pair))

    return read


def _read_pair(pair: tuple[Any, Read], _: Any) -> Any:
    value, read = pair
    return read(value, None)


def _dict_reader(read_item: Read) -> Read:
    def read(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise Refused("an object", value)
        return dict(zip(value, _read_all(value.items(), read_item), strict=True))

    return read


def _array_writer(write_item: Write, make: type[list[Any] | tuple[Any, ...]]) -> Write:
    def write(value: Any) -> Any:
        return [write_item(item) for item in value] if isinstance(value, make) else Wrong(value)

    return write


def _tuple_writer(writers: list[Write]) -> Write:
    def write(value: Any) -> Any:
        if not isinstance(value, tuple):
            return Wrong(value)
        if len(value) != len(writers):
            return Wrong(value, f"an array of {len(value)}")
        return [write_item(item) for write_item, item in zip(writers, value, strict=True)]

    return write


def _dict_writer(write_item: Write) -> Write:
    write_key = WRITERS[str]

    def write(value: Any) -> Any:
        if not isinstance(value, dict):
            return Wrong(value)
        written: dict[Any, Any] = {write_key(key): write_item(item) for key, item in value.items()}
        if any(type(key) is Wrong for key in written):
            return Wrong(value, "an object with a key that is no text")
        return written

    return write


def _failed_validators(cls: type[Any], given: Mapping[str, Any]) -> Iterator[Exception]:
    """Do what the constructor does, but go on after a validator's refusal; yields the refusals, each with its field noted."""
    instance = object.__new__(cls)
    for field in attrs.fields(cls):
        default: Any = field.default
        if field.init and field.alias in given:
            value = given[field.alias]
        elif isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            value = default.factory(instance) if default.takes_self else default.factory()
        else:
            value = default
        convert: Any = field.converter
        if convert is not None:
            value = _converted(convert, value, instance, field)
        object.__setattr__(instance, field.name, value)
    for field in attrs.fields(cls):
        if field.validator is not None:
            try:
                field.validator(instance, field, getattr(instance, field.name))
            except Exception as error:
                error.add_note(AttributeValidationNote("", field.name, None))
                yield error


def _converted(convert: Any, value: Any, instance: object, field: attrs.Attribute[Any]) -> Any:
    if type(convert) is not attrs.Converter:
        return convert(value)
    arguments = [value, *([instance] if convert.takes_self else []), *([field] if convert.takes_field else [])]
    return convert.converter(*arguments)


def _note_of(error: Exception, kind: type[Any]) -> Any:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, kind):
            return note
    return None


def _attribute_path(path: str, key: str) -> str:
    if not key.isidentifier():
        return f'{path}["{_shortened(key, 40)}"]'
    key = _shortened(key, 40)
    return f"{path}.{key}" if path else key


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
