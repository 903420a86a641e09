"""From a class to what reads and writes it: annotations are resolved, checked, and made into code, once."""

from __future__ import annotations

from collections.abc import Mapping
from types import FrameType
from typing import Any, NotRequired, final, get_args, get_origin

import attrs

from trio_wskit._core.annotations import Rename, Shapes
from trio_wskit._core.envelope import ABSENT
from trio_wskit._core.explaining import TOO_DEEP, expected_of, issues_of
from trio_wskit._core.leaves import Read, Write
from trio_wskit._core.reading import Readers
from trio_wskit._core.shapes import ClassShape, Shape
from trio_wskit._core.straight import Accept, Encode, straight_encoder, straight_reader
from trio_wskit._core.writing import Writers
from trio_wskit.errors import ConfigError

__all__ = ["Compiled", "MetaKey", "Options", "Unresolved", "compile_class", "read_or_explain"]


@final
@attrs.frozen
class Options:
    """What `message` was given, until the class can be compiled."""

    rename: Rename
    forbid_extra: bool
    meta: Mapping[str, Any]
    frame: FrameType


@final
@attrs.frozen
class MetaKey:
    """A key that a message declared in its meta."""

    name: str
    shape: Shape
    read: Read
    optional: bool


@final
@attrs.define
class Compiled:
    """A class that is ready. The first two are generated, and quick; the cattrs hooks decide where those give up."""

    accept: Accept
    encode: Encode
    read: Read
    write: Write
    shape: ClassShape
    shapes: Mapping[type[Any], ClassShape]
    meta: tuple[MetaKey, ...]
    reply: type[Any] | None
    checkers: Readers | None = None

    def check(self, payload: Any) -> list[dict[str, str]]:
        """Look for every value that the writer has marked as wrong. Compiled when it is first needed: that is rare."""
        if self.checkers is None:
            self.checkers = Readers(forbid_extra=True, construct=False)
        return read_or_explain(self.checkers.reader(self.shape), payload, self.checkers.shapes)[1]

    def meta_issues(self, meta: Mapping[str, Any]) -> list[dict[str, str]]:
        """Check the keys that the message declared."""
        issues: list[dict[str, str]] = []
        for key in self.meta:
            path = f"meta.{key.name}"
            if key.name in meta:
                issues += read_or_explain(key.read, meta[key.name], self.shapes, path)[1]
            elif not key.optional:
                issues.append({"path": path, "message": f"missing: expected {expected_of(key.shape)}"})
        return issues


class Unresolved(Exception):
    """An annotation names something that does not exist, or not yet."""


def read_or_explain(
    read: Read, value: Any, shapes: Mapping[type[Any], ClassShape], path: str = ""
) -> tuple[Any, list[dict[str, str]]]:
    """What a reader gives, and no issues; or nothing, and all that is wrong."""
    try:
        return read(value, None), []
    except Exception as error:
        try:
            return None, list(issues_of(error, shapes, path))
        except RecursionError:  # a limit on depth above what Python's stack takes
            return None, [{"path": path, "message": TOO_DEEP}]


def compile_class(cls: type[Any], options: Options, names: Mapping[str, Any], reply: type[Any] | None) -> Compiled:
    """Compile a message class.

    Args:
        cls: an attrs class.
        options: what `message` was given.
        names: what its annotations may name besides what is in its module.
        reply: the class that answers it, if it is a request.

    Raises:
        Unresolved: an annotation names what does not exist.
        ConfigError: the definition is wrong.
    """

    def resolve(part: type[Any]) -> None:
        try:
            attrs.resolve_types(part, localns={**names, part.__name__: part})
        except NameError as error:
            raise Unresolved(f"{part.__qualname__}: an annotation names {error.name!r}") from error
        except (AttributeError, SyntaxError, TypeError) as error:
            raise ConfigError(f"{part.__qualname__}: an annotation is not a type: {error}") from error

    shapes = Shapes(options.rename, resolve)
    shape = shapes.of_class(cls)
    readers = Readers(forbid_extra=options.forbid_extra)
    writers = Writers()
    meta: list[MetaKey] = []
    for key, annotation in options.meta.items():
        optional = get_origin(annotation) is NotRequired
        where = f"{cls.__qualname__}: meta {key!r}"
        part = shapes.of_type(get_args(annotation)[0] if optional else annotation, where)
        meta.append(MetaKey(key, part, readers.reader(part), optional))
    read = readers.reader(shape)
    accept = straight_reader(shape, readers.reader, forbid_extra=options.forbid_extra)
    return Compiled(
        accept=accept if shape.fields else _accepts_nothing(cls, accept),
        encode=straight_encoder(shape, writers.writer),
        read=read,
        write=writers.writer(shape),
        shape=shape,
        shapes=readers.shapes,
        meta=tuple(meta),
        reply=reply,
    )


def _accepts_nothing(cls: type[Any], accept: Accept) -> Accept:
    def accept_or_nothing(payload: Any) -> Any:
        return cls() if payload is None or payload is ABSENT else accept(payload)

    return accept_or_nothing
