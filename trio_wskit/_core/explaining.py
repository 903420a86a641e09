"""What is wrong with a payload, in words for whoever sent it: every issue with its path on the wire.

The messages name what was expected and the kind of what came, never the value. So the validators of attrs are quoted
as far as they say what they want; what an application's own validator says is its own affair, and goes on as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, assert_never, cast

import attrs
from cattrs import AttributeValidationNote, ClassValidationError, IterableValidationError, IterableValidationNote
from cattrs.errors import ForbiddenExtraKeysError

from trio_wskit._core.leaves import EXPECTED
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

__all__ = [
    "MAX_FAILURES",
    "TOO_DEEP",
    "array_error",
    "class_error",
    "expected_of",
    "issues_of",
    "note_of",
    "one_of",
    "validator_failures",
]

MAX_FAILURES: Final = 100
"""Wrong items that are named in one array or object: a message of a megabyte can hold half a million of them."""

TOO_DEEP: Final = "nested too deeply, or holds itself"

_MAX_NAMED: Final = 10  # members of one Literal or Enum
_MAX_TEXT: Final = 200  # characters of a validator's own text
_MAX_KEY: Final = 40  # characters of a key that the sender chose


def expected_of(shape: Shape) -> str:
    """Say what a shape takes."""
    match shape:
        case Leaf(type=kind):
            return EXPECTED[kind]
        case AnyJson():
            return "any JSON"
        case LiteralOf(values=values):
            return one_of(values)
        case EnumOf(cls=cls):
            return one_of(tuple(member.value for member in cls))
        case ArrayOf():
            return "an array"
        case TupleOf(items=items):
            return f"an array of {len(items)}"
        case DictOf() | ClassShape() | TaggedUnion():
            return "an object"
        case OneOf(members=members):
            return " or ".join(expected_of(member) for member in members)
        case _:
            assert_never(shape)


def one_of(values: tuple[Any, ...]) -> str:
    """Name the first few of the values."""
    names = [_NAMES[value] if value is None or type(value) is bool else repr(value) for value in values[:_MAX_NAMED]]
    more = len(values) - len(names)
    return ("one of " if len(values) > 1 else "") + ", ".join(names) + (f" and {more} more" if more else "")


_NAMES: Final[Mapping[bool | None, str]] = {None: "null", True: "true", False: "false"}


def issues_of(error: Exception, shapes: Mapping[type[Any], ClassShape], path: str = "") -> Iterator[dict[str, str]]:
    """Walk down what the readers raised, and give one issue for each wrong value.

    An exception that is neither ValueError nor TypeError does not come from a wrong value: it is a bug in the
    application's own validator, and is raised as it is.

    Args:
        error: what a reader raised.
        shapes: all the classes in the message.
        path: where the reader stood.
    """
    match error:
        case ClassValidationError():
            fields = {field.name: field for field in shapes[error.cl].fields}
            for cause in error.exceptions:
                note = note_of(cause, AttributeValidationNote)
                if note is None:
                    yield from issues_of(cause, shapes, path)
                elif isinstance(cause, KeyError):
                    field = fields[note.name]
                    message = f"missing: expected {expected_of(field.shape)}"
                    yield {"path": _below(path, field.wire), "message": message}
                else:
                    yield from issues_of(cause, shapes, _below(path, fields[note.name].wire))
        case IterableValidationError():
            for cause in error.exceptions:
                index = note_of(cause, IterableValidationNote).index
                inner = f"{path}[{index}]" if isinstance(index, int) else _below(path, index)
                yield from issues_of(cause, shapes, inner)
        case ForbiddenExtraKeysError():
            for key in sorted(error.extra_fields)[:MAX_FAILURES]:
                yield {"path": _below(path, key), "message": "unknown key"}
        case ValueError() | TypeError():
            yield {"path": path, "message": _shortened(_words_of(error), _MAX_TEXT)}
        case RecursionError():
            yield {"path": path, "message": TOO_DEEP}
        case _:
            raise error


def _words_of(error: Exception) -> str:
    """What an exception says, without the value that some say it of."""
    words = str(error.args[0]) if error.args else "invalid"
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return words
    if place.tb_frame.f_code is _converted.__code__:
        return "invalid"  # no Python raised it: int says "invalid literal for int() with base 10: 'secret'"
    if place.tb_frame.f_globals.get("__name__") != "attr.validators":
        return words
    # Theirs end with the value. Cut at the first sign of it: a bound that looks like one costs its rest, no more.
    for sign in _BEFORE_THE_VALUE:
        words = words.partition(sign)[0]
    return words


# of >=, min_len and their like; instance_of, in_, subclass_of; matches_re; or_
_BEFORE_THE_VALUE: Final = (": ", " (got ", " ('", ' ("', " satisfied for value ")


def class_error(failures: Sequence[Exception], cls: type[Any]) -> ClassValidationError:
    """What a class's reader raises. Typed by hand: the annotations of cattrs leave its own third argument out."""
    make: Any = ClassValidationError
    return make(f"while reading {cls.__qualname__}", failures, cls)  # type: ignore[no-any-return]


def array_error(failures: Sequence[Exception]) -> IterableValidationError:
    """What the reader of an array or a dict raises."""
    make: Any = IterableValidationError
    return make("while reading items", failures, list)  # type: ignore[no-any-return]


def note_of(error: Exception, kind: type[Any]) -> Any:
    """The note of this kind that cattrs, or a reader, has put on the exception; None if there is none."""
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, kind):
            return note
    return None


def validator_failures(cls: type[Any], given: Mapping[str, Any]) -> list[Exception]:
    """Find every attrs validator that refuses, where the constructor stops at the first.

    Does what the constructor does, but goes on. Each failure carries a note of its field.

    Args:
        cls: an attrs class whose constructor has just refused these arguments.
        given: the constructor's arguments.
    """
    instance = object.__new__(cls)
    for field in attrs.fields(cls):
        default: Any = field.default
        if field.init and field.alias in given:
            value = given[field.alias]
        elif type(default) is _FACTORY:
            value = default.factory(instance) if default.takes_self else default.factory()
        else:
            value = default
        object.__setattr__(instance, field.name, _converted(field.converter, value, instance, field))
    failures: list[Exception] = []
    for field in attrs.fields(cls):
        if field.validator is not None:
            try:
                field.validator(instance, field, getattr(instance, field.name))
            except Exception as error:
                error.add_note(AttributeValidationNote("the value of", field.name, cls))
                failures.append(error)
    return failures


_FACTORY: Final[Any] = attrs.Factory


def _converted(convert: Any, value: Any, instance: object, field: attrs.Attribute[Any]) -> Any:
    if convert is None:
        return value
    if type(convert) is not attrs.Converter:
        return convert(value)
    full = cast("Any", convert)  # the annotations of attrs leave these three out
    return full.converter(value, *[instance] * full.takes_self, *[field] * full.takes_field)


def _below(path: str, key: str) -> str:
    shown = _shortened(key, _MAX_KEY)
    if not key.isidentifier():
        return f'{path}["{shown}"]'
    return f"{path}.{shown}" if path else shown


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
