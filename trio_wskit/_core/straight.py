"""Straight-line Python, generated from the shapes: accepts what the strict cattrs hooks accept, and explains nothing.

Each class in a message becomes one function without loops over fields, closures or hook calls.

The contract, which hypothesis tests hold it to: if a generated function returns, the hooks give the same result; if
it raises anything, the hooks decide. So it gives up wherever that is simplest: a missing key is the KeyError of a
plain `value["roomId"]`, and a shape that cannot be done better is left to its hook.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from math import inf
from types import MemberDescriptorType, NoneType
from typing import Any, Final, TypeAlias, assert_never, final

import attrs

from trio_wskit._core.json_text import dumps, is_json
from trio_wskit._core.leaves import READERS, WRITERS, Read, Write, Wrong
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
    Shape,
    TaggedUnion,
    TupleOf,
    json_types,
    python_types,
)

__all__ = ["Accept", "Encode", "GivesUp", "straight_encoder", "straight_reader"]

Accept: TypeAlias = Callable[[Any], Any]
"""Takes plain JSON values, gives the instance; any exception means: ask the hooks."""

Encode: TypeAlias = Callable[[Any, str, dict[str, Any]], bytes]
"""Takes an instance, a type name and the meta, gives the whole envelope; any exception means: ask the hooks."""


class GivesUp(Exception):
    """The generated code leaves this value to the hooks."""


def straight_reader(shape: ClassShape, hook: Callable[[Shape], Read], *, forbid_extra: bool) -> Accept:
    """Generate the function that reads a payload; `hook` makes the reader of a shape that is left to cattrs."""
    source = _Source(hook, forbid_extra=forbid_extra)
    name = source.reader_of(shape)
    return source.run(f"<reads {shape.cls.__qualname__}>")[name]  # type: ignore[no-any-return]


def straight_encoder(shape: ClassShape, hook: Callable[[Shape], Write]) -> Encode:
    """Generate the function that checks an instance and encodes it, with its envelope."""
    source = _Source(hook)
    lines, payload = source.class_lines(shape)
    payload = f', "payload": {payload}' if shape.fields else ""
    meta = ["for x in meta.values():", "    if type(x) is not int and type(x) is not str: raise GivesUp"]
    result = f'return dumps({{"type": type_name, "meta": meta{payload}}})'
    source.function("encode(value, type_name, meta)", [*lines, *meta, result])
    return source.run(f"<encodes {shape.cls.__qualname__}>")["encode"]  # type: ignore[no-any-return]


_Code: TypeAlias = tuple[list[str], bool]
"""Lines that check one variable, and whether they put something new in it."""

_PLAIN: Final = {str: "str", int: "int", bool: "bool"}


def _give_up_if(condition: str) -> str:
    return f"if {condition}: raise GivesUp"


def _indented(lines: Iterable[str]) -> list[str]:
    return ["    " + line for line in lines]


@final
class _Source:
    """The source of a module in the making, and the objects that it names."""

    def __init__(self, hook: Callable[[Shape], Any], *, forbid_extra: bool = True) -> None:
        self._hook = hook
        self._forbid_extra = forbid_extra
        self._lines: list[str] = []
        self._objects: dict[str, Any] = {
            "GivesUp": GivesUp,
            "Wrong": Wrong,
            "inf": inf,
            "dumps": dumps,
            "is_json": is_json,
            "NOTHING": attrs.NOTHING,
            "new": object.__new__,
        }
        self._count = itertools.count()
        self._functions: dict[type[Any], str] = {}
        self._waiting: list[Callable[[], None]] = []

    def run(self, filename: str) -> dict[str, Any]:
        """Compile everything, and give the module's names."""
        while self._waiting:
            self._waiting.pop()()
        exec(compile("\n".join(self._lines), filename, "exec"), self._objects)
        return self._objects

    def function(self, signature: str, lines: Iterable[str]) -> None:
        self._lines += [f"def {signature}:", *_indented(lines)]

    def _name(self, value: object, hint: str) -> str:
        name = f"{hint}_{next(self._count)}"
        self._objects[name] = value
        return name

    def _variable(self) -> str:
        return f"x_{next(self._count)}"

    def _is(self, variable: str, kinds: Iterable[type[Any]]) -> str:
        return " or ".join(
            f"{variable} is None" if kind is NoneType else f"type({variable}) is {self._name(kind, 'kind')}"
            for kind in kinds
        )

    # Reading

    def reader_of(self, shape: ClassShape) -> str:
        """The name of the function that reads a class; generated later, since a class may hold itself."""
        cls = shape.cls
        if cls not in self._functions:
            if hasattr(cls, "__attrs_init__"):  # a constructor of its own, which may have defaults of its own
                read = self._hook(shape)
                self._functions[cls] = self._name(_without_type(read), "hook")
            else:
                self._functions[cls] = self._name(None, "read")
                self._waiting.append(lambda: self._class_reader(shape))
        return self._functions[cls]

    def _class_reader(self, shape: ClassShape) -> None:
        required = [field for field in shape.fields if not field.optional]
        optional = [field for field in shape.fields if field.optional]
        variables = {field.name: self._variable() for field in shape.fields}
        lines = [_give_up_if("type(value) is not dict")]
        for field in required:
            lines.append(f"{variables[field.name]} = value[{field.wire!r}]")
            lines += self._read(field.shape, variables[field.name])[0]
        keys = str(len(required))
        if optional and self._forbid_extra:
            lines.append(f"keys = {keys}")
            keys = "keys"
        for field in optional:
            variable = variables[field.name]
            lines.append(f"if {field.wire!r} in value:")
            taken = [f"{variable} = value[{field.wire!r}]", *self._read(field.shape, variable)[0]]
            lines += _indented([*taken, *(["keys += 1"] if self._forbid_extra else [])])
            lines.append(f"else: {variable} = {self._default(field)}")
        if self._forbid_extra:
            lines.append(_give_up_if(f"len(value) != {keys}"))
        lines += self._made(shape, variables)
        self.function(f"{self._functions[shape.cls]}(value)", lines)

    def _made(self, shape: ClassShape, variables: dict[str, str]) -> list[str]:
        """The lines that make the instance, once there is a value for every field."""
        cls = self._name(shape.cls, "cls")
        if _only_stores(shape):
            # A frozen class's constructor takes three times as long as the slots' own setters.
            stores = [
                f"{self._name(getattr(shape.cls, field.name).__set__, 'set')}(made, {variables[field.name]})"
                for field in shape.fields
            ]
            return [f"made = new({cls})", *stores, "return made"]
        by_position = [variables[field.name] for field in shape.fields if not field.keyword_only]
        by_name = [f"{field.argument}={variables[field.name]}" for field in shape.fields if field.keyword_only]
        return [f"return {cls}({', '.join(by_position + by_name)})"]

    def _default(self, field: FieldShape) -> str:
        default = field.default
        if type(default) is not _FACTORY:
            return self._name(default, "default")
        # A constructor that attrs wrote calls the factory itself if it is given NOTHING.
        return "NOTHING" if default.takes_self else f"{self._name(default.factory, 'factory')}()"

    def _read(self, shape: Shape, variable: str) -> _Code:
        match shape:
            case Leaf(type=kind) if kind in _PLAIN:
                return [_give_up_if(f"type({variable}) is not {_PLAIN[kind]}")], False
            case Leaf(type=kind) if kind is NoneType:
                return [_give_up_if(f"{variable} is not None")], False
            case Leaf(type=kind) if kind is float:
                return _read_float(variable), True
            case Leaf(type=kind):
                return [f"{variable} = {self._name(READERS[kind], 'leaf')}({variable}, None)"], True
            case AnyJson():
                return [], False
            case LiteralOf(values=values) if _are_all(str, values):
                return self._str_literal(values, variable), False
            case EnumOf(cls=cls) if _are_all(str, members := {member.value: member for member in cls}):
                table = self._name(members, "members")
                return [_give_up_if(f"type({variable}) is not str"), f"{variable} = {table}[{variable}]"], True
            case LiteralOf() | EnumOf():
                return [f"{variable} = {self._name(self._hook(shape), 'hook')}({variable}, None)"], True
            case ArrayOf(item=item, make=make):
                lines, converts = self._each(item, variable, self._read)
                lines = [_give_up_if(f"type({variable}) is not list"), *lines]
                return (lines, converts) if make is list else ([*lines, f"{variable} = tuple({variable})"], True)
            case TupleOf(items=items):
                return self._parts(items, variable, "list", self._read), True
            case DictOf(item=item):
                return self._each_value(item, variable, self._read)
            case OneOf(members=members):
                return self._read_union(members, variable)
            case TaggedUnion(wire=wire, members=by_tag) if _are_all(str, by_tag):
                readers = {tag: self.reader_of(member) for tag, member in by_tag.items()}
                return [f"{variable} = {self._table(readers)}[{variable}[{wire!r}]]({variable})"], True
            case TaggedUnion():
                return [f"{variable} = {self._name(self._hook(shape), 'hook')}({variable}, None)"], True
            case ClassShape():
                return [f"{variable} = {self.reader_of(shape)}({variable})"], True
            case _:
                assert_never(shape)

    def _read_union(self, members: tuple[Shape, ...], variable: str) -> _Code:
        tests: list[tuple[str, Shape]] = []
        for member in members:
            kinds = json_types(member)
            if float in kinds and not any(int in json_types(other) for other in members):
                kinds |= {int}
            tests.append((self._is(variable, kinds), member))
        return self._choose(tests, variable, self._read)

    # Writing

    def _writer_of(self, shape: ClassShape) -> str:
        cls = shape.cls
        if cls not in self._functions:
            self._functions[cls] = self._name(None, "write")
            self._waiting.append(lambda: self._class_writer(shape))
        return self._functions[cls]

    def _class_writer(self, shape: ClassShape) -> None:
        lines, result = self.class_lines(shape)
        self.function(f"{self._functions[shape.cls]}(value)", [*lines, f"return {result}"])

    def class_lines(self, shape: ClassShape) -> tuple[list[str], str]:
        """The lines that check the instance `value`, and the expression that is its payload."""
        lines = [_give_up_if(f"type(value) is not {self._name(shape.cls, 'cls')}")]
        always: list[str] = []
        sometimes: list[str] = []
        for field in shape.fields:
            variable = self._variable()
            lines.append(f"{variable} = value.{field.name}")
            check = self._write(field.shape, variable)[0]
            if field.omit_none:
                lines += [f"if {variable} is not None:", *_indented(check or ["pass"])]
                sometimes.append(f"if {variable} is not None: payload[{field.wire!r}] = {variable}")
            else:
                lines += check
                always.append(f"{field.wire!r}: {variable}")
        payload = f"{{{', '.join(always)}}}"
        return ([*lines, f"payload = {payload}", *sometimes], "payload") if sometimes else (lines, payload)

    def _write(self, shape: Shape, variable: str) -> _Code:
        match shape:
            case Leaf(type=kind) if kind in _PLAIN:
                return [_give_up_if(f"type({variable}) is not {_PLAIN[kind]}")], False
            case Leaf(type=kind) if kind is NoneType:
                return [_give_up_if(f"{variable} is not None")], False
            case Leaf(type=kind) if kind is float:
                return _check_float(variable), False
            case Leaf(type=kind):
                written = f"{variable} = {self._name(WRITERS[kind], 'leaf')}({variable})"
                return [written, _give_up_if(f"type({variable}) is Wrong")], True
            case AnyJson():
                return [_give_up_if(f"type({variable}) is not str and not is_json({variable})")], False
            case LiteralOf(values=values) if _are_all(str, values):
                return self._str_literal(values, variable), False
            case LiteralOf():
                written = f"{variable} = {self._name(self._hook(shape), 'hook')}({variable})"
                return [written, _give_up_if(f"type({variable}) is Wrong")], True
            case EnumOf(cls=cls):
                check = _give_up_if(f"type({variable}) is not {self._name(cls, 'enum')}")
                return [check, f"{variable} = {variable}._value_"], True
            case ArrayOf(item=item, make=make):
                lines, converts = self._each(item, variable, self._write)
                return [_give_up_if(f"type({variable}) is not {make.__name__}"), *lines], converts
            case TupleOf(items=items):
                return self._parts(items, variable, "tuple", self._write), True
            case DictOf(item=item):
                return self._each_value(item, variable, self._write)
            case OneOf(members=members):
                tests = [(self._is(variable, python_types(member)), member) for member in members]
                return self._choose(tests, variable, self._write)
            case TaggedUnion(members=by_tag):
                writers = {member.cls: self._writer_of(member) for member in by_tag.values()}
                return [f"{variable} = {self._table(writers)}[type({variable})]({variable})"], True
            case ClassShape():
                return [f"{variable} = {self._writer_of(shape)}({variable})"], True
            case _:
                assert_never(shape)

    # Both ways

    def _str_literal(self, values: tuple[Any, ...], variable: str) -> list[str]:
        members = self._name(frozenset(values), "values")
        return [_give_up_if(f"type({variable}) is not str or {variable} not in {members}")]

    def _each(self, item: Shape, variable: str, code: Callable[[Shape, str], _Code]) -> _Code:
        one = self._variable()
        lines, converts = code(item, one)
        if converts:
            done = self._variable()
            loop = [f"for {one} in {variable}:", *_indented([*lines, f"{done}.append({one})"])]
            return [f"{done} = []", *loop, f"{variable} = {done}"], True
        return ([f"for {one} in {variable}:", *_indented(lines)] if lines else []), False

    def _each_value(self, item: Shape, variable: str, code: Callable[[Shape, str], _Code]) -> _Code:
        check = _give_up_if(f"type({variable}) is not dict")
        one = self._variable()
        lines, converts = code(item, one)
        if converts:
            key, done = self._variable(), self._variable()
            loop = [f"for {key}, {one} in {variable}.items():", *_indented([*lines, f"{done}[{key}] = {one}"])]
            return [check, f"{done} = {{}}", *loop, f"{variable} = {done}"], True
        return [check, *([f"for {one} in {variable}.values():", *_indented(lines)] if lines else [])], False

    def _parts(
        self, items: tuple[Shape, ...], variable: str, kind: str, code: Callable[[Shape, str], _Code]
    ) -> list[str]:
        parts = [self._variable() for _ in items]
        all_of_them = "".join(f"{part}, " for part in parts)
        lines = [_give_up_if(f"type({variable}) is not {kind} or len({variable}) != {len(items)}")]
        if parts:
            lines.append(f"{all_of_them}= {variable}")
        for item, part in zip(items, parts, strict=True):
            lines += code(item, part)[0]
        return [*lines, f"{variable} = ({all_of_them})"]

    def _choose(self, tests: list[tuple[str, Shape]], variable: str, code: Callable[[Shape, str], _Code]) -> _Code:
        # None first: it costs least to look for. Every member checks for itself, so the last needs no test.
        is_none = f"{variable} is None"
        tests.sort(key=lambda test: test[0] != is_none)
        lines: list[str] = []
        any_converts = False
        for number, (test, shape) in enumerate(tests, 1):
            check, converts = code(shape, variable)
            if test == is_none:
                check = []  # that was all there is to check
            start = "else:" if number == len(tests) else f"{'elif' if lines else 'if'} {test}:"
            lines += [start, *_indented(check or ["pass"])]
            any_converts |= converts
        return lines, any_converts

    def _table(self, functions: dict[Any, str]) -> str:
        """A dict of generated functions, by their names: filled when the module runs, at its end."""
        table: dict[Any, Any] = {}
        name = self._name(table, "table")
        keys = self._name(list(functions), "keys")
        self._waiting.insert(
            0, lambda: self._lines.append(f"{name}.update(zip({keys}, [{', '.join(functions.values())}]))")
        )
        return name


def _without_type(read: Read) -> Accept:
    return lambda value: read(value, None)


_FACTORY: Final[Any] = attrs.Factory


def _only_stores(shape: ClassShape) -> bool:
    """True if all that the constructor does is to store each argument in its slot."""
    cls: Any = shape.cls
    slots = {name for base in cls.__mro__ for name in getattr(base, "__slots__", ())} - {"__weakref__"}
    return (
        slots == {field.name for field in shape.fields}
        and slots == {field.name for field in attrs.fields(cls)}
        and all(type(getattr(cls, name)) is MemberDescriptorType for name in slots)
        and all(field.converter is None and field.validator is None for field in attrs.fields(cls))
        and not any(type(field.default) is _FACTORY and field.default.takes_self for field in shape.fields)
        and not hasattr(cls, "__attrs_pre_init__")
        and not hasattr(cls, "__attrs_post_init__")
        and cls.__new__ is object.__new__
        and type(cls).__call__ is type.__call__
        # No class in between has its own way to set attributes: this is object's, or what attrs gives a frozen class.
        and getattr(cls.__setattr__, "__module__", None) in (None, "attr._make")
    )


def _read_float(variable: str) -> list[str]:
    return [
        f"if type({variable}) is int: {variable} = float({variable})",
        f"elif type({variable}) is not float or not -inf < {variable} < inf: raise GivesUp",
    ]


def _check_float(variable: str) -> list[str]:
    return [
        _give_up_if(f"type({variable}) is not int and (type({variable}) is not float or not -inf < {variable} < inf)")
    ]


def _are_all(kind: type[Any], values: Iterable[object]) -> bool:
    return all(type(value) is kind for value in values)
