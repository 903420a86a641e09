"""For property tests: message classes of every supported shape, their instances, and payloads that nearly fit them."""

from __future__ import annotations

import enum
from datetime import UTC, date, datetime
from decimal import Decimal
from types import GenericAlias, NoneType
from typing import Any, Literal, Union, cast
from uuid import UUID

import attrs
from hypothesis import strategies as st

from trio_wskit._core.json_text import MAX_INT, MIN_INT

__all__ = ["Typed", "classes", "noise", "payloads", "wrong_instances"]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Mixed(enum.Enum):
    WORD = "w"
    NUMBER = 7


@attrs.frozen
class Circle:
    radius: float
    kind: Literal["circle"] = "circle"


@attrs.frozen
class Square:
    side_length: float
    kind: Literal["square", "box"] = "square"


@attrs.frozen
class First:
    version: Literal[1]
    at: datetime


@attrs.frozen
class Second:
    version: Literal[2]


@attrs.define
class Tree:
    label: str
    children: list[Tree] = attrs.field(factory=list)
    only_child: Tree | None = None


@attrs.frozen
class OwnConstructor:
    name: str
    size: int = 5

    def __init__(self, name: str, size: int = 50) -> None:
        self.__attrs_init__(name, size)  # type: ignore[attr-defined]


def upper(text: str) -> str:
    return text.upper()


@attrs.frozen
class Checked:
    low: int = attrs.field(validator=attrs.validators.ge(0))
    high: int = attrs.field(default=10, kw_only=True)
    span: int = attrs.field(default=attrs.Factory(lambda self: self.high - self.low, takes_self=True))
    text: str = attrs.field(default="x", converter=upper)


@attrs.frozen
class Counted:
    name: str
    tags: list[str] = attrs.field(factory=list)
    note: str | None = None


for _cls in (Circle, Square, First, Second, Tree, OwnConstructor, Checked, Counted):
    attrs.resolve_types(_cls)


@attrs.frozen
class Typed:
    """An annotation, with a strategy for values that fit it."""

    annotation: Any
    values: st.SearchStrategy[Any]

    def __repr__(self) -> str:
        return str(self.annotation)


json_leaves: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers(MIN_INT, MAX_INT)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["red", "w", "circle", "box", "2024-01-01", "2024-01-01T00:00:00Z", "1.5", str(UUID(int=1))])
)
noise: st.SearchStrategy[Any] = st.recursive(
    json_leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)

_texts = st.text(max_size=5)
_finite = st.floats(allow_nan=False, allow_infinity=False)
_trees: st.SearchStrategy[Any] = st.recursive(
    st.builds(Tree, _texts),
    lambda inner: st.builds(Tree, _texts, st.lists(inner, max_size=2), st.none() | inner),
    max_leaves=4,
)

_leaves: list[Typed] = [
    Typed(str, _texts),
    Typed(int, st.integers(MIN_INT, MAX_INT)),
    Typed(bool, st.booleans()),
    Typed(NoneType, st.none()),
    Typed(float, _finite | st.integers(-(2**53), 2**53)),  # more than that a float does not hold exactly
    Typed(datetime, st.datetimes(timezones=st.just(UTC))),
    Typed(date, st.dates()),
    Typed(UUID, st.uuids()),
    Typed(Decimal, st.decimals(allow_nan=False, allow_infinity=False, places=2)),
    Typed(Any, noise),
    Typed(Literal["a", "b"], st.sampled_from(["a", "b"])),
    Typed(Literal["a", 1, True], st.sampled_from(["a", 1, True])),
    Typed(Colour, st.sampled_from(Colour)),
    Typed(Size, st.sampled_from(Size)),
    Typed(Mixed, st.sampled_from(Mixed)),
    Typed(Counted, st.builds(Counted, _texts, st.lists(_texts, max_size=2), st.none() | _texts)),
    Typed(Tree, _trees),
    Typed(Checked, st.builds(Checked, st.integers(0, 5), high=st.integers(0, 5), span=st.integers(0, 5), text=_texts)),
    Typed(OwnConstructor, st.builds(OwnConstructor, _texts, st.integers(0, 5))),
    Typed(Union[Circle, Square], st.builds(Circle, _finite) | st.builds(Square, _finite, st.just("box"))),  # noqa: UP007
    Typed(Union[First, Second], st.builds(First, st.just(1), st.datetimes(timezones=st.just(UTC)))),  # noqa: UP007
    Typed(tuple[()], st.just(())),
    Typed(Union[int, float], _finite | st.integers(MIN_INT, MAX_INT)),  # noqa: UP007
    Typed(Union[str, int, None, list[int]], st.none() | st.integers(0, 9) | _texts | st.lists(st.integers(0, 9))),  # noqa: UP007
    Typed(Union[Literal["a", None], float], st.sampled_from(["a", None, 1.5, 2])),  # noqa: PYI061, UP007
    Typed(Union[bool, Counted, None], st.booleans() | st.none() | st.builds(Counted, _texts)),  # noqa: UP007
]


def _optional(inner: Typed) -> Typed:
    return Typed(inner.annotation | None, st.none() | inner.values)


def _nest(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    return (
        inner.map(lambda one: Typed(GenericAlias(list, one.annotation), st.lists(one.values, max_size=2)))
        | inner.map(
            lambda one: Typed(GenericAlias(tuple, (one.annotation, ...)), st.lists(one.values, max_size=2).map(tuple))
        )
        | st.tuples(inner, inner).map(
            lambda two: Typed(
                GenericAlias(tuple, (two[0].annotation, two[1].annotation)), st.tuples(two[0].values, two[1].values)
            )
        )
        | inner.map(
            lambda one: Typed(
                GenericAlias(dict, (str, one.annotation)), st.dictionaries(_texts, one.values, max_size=2)
            )
        )
        | inner.filter(lambda one: one.annotation is not NoneType).map(_optional)
    )


_types: st.SearchStrategy[Typed] = st.recursive(st.sampled_from(_leaves), _nest, max_leaves=3)


@st.composite
def classes(draw: st.DrawFn) -> Typed:
    """A class of up to four fields, of any shapes, some with defaults; frozen or not, slotted or not."""
    fields: dict[str, Any] = {}
    values: dict[str, st.SearchStrategy[Any]] = {}
    for number, one in enumerate(draw(st.lists(_types, max_size=4))):
        name = draw(st.sampled_from(["text", "room_id", "unit_price_2", "items", "class_"])) + str(number)
        options: dict[str, Any] = {}
        kind = draw(st.sampled_from(["required", "required", "default", "keyword"]))
        if kind != "required":
            options["kw_only"] = kind == "keyword" or None
        if kind == "default":
            options["default"] = draw(one.values)
            options["kw_only"] = True
        fields[name] = attrs.field(type=one.annotation, **options)
        values[name] = one.values
    cls: Any = attrs.make_class("Made", fields, frozen=draw(st.booleans()), slots=draw(st.booleans()))
    return Typed(cls, st.builds(cls, **values))


@st.composite
def payloads(draw: st.DrawFn, payload: Any) -> Any:
    """A payload that was right, with one thing in it changed, taken away or put in; or quite another one."""
    change = draw(st.sampled_from(["nothing", "replace", "remove", "add", "inside"]))
    if change == "nothing":
        return payload
    if change != "replace" and payload and isinstance(payload, dict):
        keys = cast("dict[str, Any]", payload)
        key = draw(st.sampled_from(sorted(keys)))
        if change == "add":
            return {**keys, draw(_texts): draw(noise)}
        if change == "inside":
            return {**keys, key: draw(payloads(keys[key]))}
        return {name: value for name, value in keys.items() if name != key}
    if change != "replace" and payload and isinstance(payload, list):
        items = cast("list[object]", payload)
        at = draw(st.integers(0, len(items) - 1))
        put = {"add": [items[at], draw(noise)], "inside": [draw(payloads(items[at]))], "remove": []}
        return [*items[:at], *put[change], *items[at + 1 :]]
    return draw(noise)


@st.composite
def wrong_instances(draw: st.DrawFn, instance: Any) -> Any:
    """An instance with one of its attributes set to something else, which may even fit."""
    fields = [field.name for field in attrs.fields(instance.__class__)]
    if not fields:
        return instance
    copy: Any = attrs.evolve(instance)
    other = (
        noise
        | st.builds(object)
        | st.just(float("nan"))
        | st.sampled_from([Colour.RED, Size.LARGE, "\ud800", 2**70, (1,)])
    )
    object.__setattr__(copy, draw(st.sampled_from(fields)), draw(other))
    return copy
