"""The strict reference: what each shape takes, and that nothing is coerced."""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import attrs
import pytest
from attrs import validators
from cattrs.errors import BaseValidationError

from trio_wskit._core.annotations import Shapes, camel_case
from trio_wskit._core.explaining import MAX_FAILURES
from trio_wskit._core.leaves import Refused, Wrong
from trio_wskit._core.reading import Readers


class Colour(enum.Enum):
    RED = "red"
    FIVE = 5


@attrs.frozen
class Circle:
    radius: float
    kind: Literal["circle"] = "circle"


@attrs.frozen
class Square:
    side: float
    kind: Literal["square"] = "square"


@attrs.frozen
class One:
    number: Literal[1]


@attrs.frozen
class Two:
    number: Literal[2]


@attrs.frozen
class Tree:
    label: str
    children: list[Tree] = attrs.field(factory=list)


@attrs.frozen
class Full:
    room_id: str
    sent_at: datetime | None = None
    _secret: int = attrs.field(default=5, kw_only=True)
    length: int = attrs.field(init=False, default=7)


def resolve(cls: type[Any]) -> None:
    attrs.resolve_types(cls)


def read(annotation: Any, value: Any, **options: bool) -> Any:
    shape = Shapes(camel_case, resolve).of_type(annotation, "field")
    return Readers(**{"forbid_extra": True, **options}).reader(shape)(value, None)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (str, "a", "a"),
        (Any, {"a": [1, None]}, {"a": [1, None]}),
        (Literal["a", 1, True], True, True),
        (Literal["a", 1, True], 1, 1),
        (Literal["a", 1] | None, None, None),
        (Literal[None], None, None),  # noqa: PYI061
        (Colour, "red", Colour.RED),
        (Colour, 5, Colour.FIVE),
        (list[float], [1, 2.5], [1.0, 2.5]),
        (tuple[float, ...], [1, 2.5], (1.0, 2.5)),
        (tuple[int, str], [1, "a"], (1, "a")),
        (tuple[()], [], ()),
        (dict[str, Decimal], {"a": "1.5"}, {"a": Decimal("1.5")}),
        (int | None, None, None),
        (int | None, 5, 5),
        (int | float, 5, 5),
        (float | None, 5, 5.0),
        (str | list[int] | Circle, [1], [1]),
        (str | list[int] | Circle, {"radius": 1}, Circle(1.0)),
        (Circle | Square, {"side": 2, "kind": "square"}, Square(2.0)),
        (One | Two, {"number": 2}, Two(2)),
        (Tree, {"label": "a", "children": [{"label": "b"}]}, Tree("a", [Tree("b")])),
        (Full, {"roomId": "r"}, Full("r")),
        (
            Full,
            {"roomId": "r", "sentAt": "2024-01-01T00:00:00Z", "secret": 6},
            Full("r", datetime(2024, 1, 1, tzinfo=UTC), secret=6),  # pyright: ignore[reportCallIssue]
        ),
    ],
)
def test_what_fits_is_read(annotation: Any, value: Any, expected: Any) -> None:
    found = read(annotation, value)
    assert repr(found) == repr(expected)
    assert found == expected


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Any, Wrong(object())),
        (Literal["a", 1], True),
        (Literal["a", 1], 1.0),
        (Literal["a", 1], ["a"]),
        (Literal[True], 1),
        (Colour, "RED"),
        (Colour, 5.0),
        (Colour, {"red": 1}),
        (Colour, Wrong("red")),
        (list[int], (1,)),
        (list[int], {"0": 1}),
        (list[int], "1"),
        (list[int], None),
        (tuple[int, ...], (1,)),
        (tuple[int, str], [1]),
        (tuple[int, str], [1, "a", "b"]),
        (tuple[int, str], (1, "a")),
        (dict[str, int], [["a", 1]]),
        (int | None, "5"),
        (int | None, True),
        (int | float, True),
        (str | list[int], {}),
        (Circle | Square, "circle"),
        (Tree, None),
        (Tree, ["a"]),
    ],
)
def test_what_does_not_fit_is_refused(annotation: Any, value: Any) -> None:
    with pytest.raises(Refused):
        read(annotation, value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (list[int], [1, "2"]),
        (tuple[int, str], ["1", "a"]),
        (dict[str, int], {"a": "1"}),
        (Circle | Square, {"radius": 1}),
        (Circle | Square, {"radius": 1, "kind": "oval"}),
        (Circle | Square, {"radius": 1, "kind": ["circle"]}),
        (One | Two, {"number": True}),
        (One | Two, {"number": 1.0}),
        (Circle, {"radius": 1, "kind": "square"}),
        (Tree, {}),
        (Tree, {"label": "a", "children": [{"label": 5}]}),
        (Full, {"room_id": "r"}),
        (Full, {"roomId": "r", "length": 5}),
        (Full, {"roomId": "r", "other": 5}),
    ],
)
def test_what_does_not_fit_inside_is_collected(annotation: Any, value: Any) -> None:
    with pytest.raises(BaseValidationError):
        read(annotation, value)


def test_unknown_keys_may_be_ignored_in_all_classes() -> None:
    value = {"label": "a", "more": 1, "children": [{"label": "b", "more": 2}]}
    assert read(Tree, value, forbid_extra=False) == Tree("a", [Tree("b")])


def test_each_class_is_compiled_once_and_listed() -> None:
    readers = Readers(forbid_extra=True)
    shape = Shapes(camel_case, resolve).of_class(Tree)
    assert readers.reader(shape) is readers.reader(shape)
    assert readers.shapes == {Tree: shape}


def test_the_refusal_of_a_constructor_is_put_down_to_its_validators() -> None:
    @attrs.frozen
    class Checked:
        a: int = attrs.field(validator=validators.ge(1))
        b: int = attrs.field(default=0, validator=validators.ge(1))

    with pytest.raises(BaseValidationError) as caught:
        read(Checked, {"a": 0})
    assert [str(error) for error in caught.value.exceptions] == ["'a' must be >= 1: 0", "'b' must be >= 1: 0"]


def test_the_refusal_of_a_constructor_without_such_validators_stands() -> None:
    @attrs.frozen
    class Sorted:
        low: int
        high: int

        def __attrs_post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("not sorted")

    with pytest.raises(BaseValidationError) as caught:
        read(Sorted, {"low": 2, "high": 1})
    assert [str(error) for error in caught.value.exceptions] == ["not sorted"]
    assert read(Sorted, {"low": 1, "high": 2}) == Sorted(1, 2)


def test_a_reader_that_only_checks_does_not_ask_the_constructor() -> None:
    @attrs.frozen
    class Never:
        a: int = attrs.field(validator=validators.ge(10**9))

    assert read(Never, {"a": 1}, construct=False) is None
    with pytest.raises(BaseValidationError):
        read(Never, {"a": "1"}, construct=False)


def test_no_more_than_a_hundred_failures_of_one_array_are_collected() -> None:
    with pytest.raises(BaseValidationError) as caught:
        read(list[int], ["x"] * 1000)
    assert len(caught.value.exceptions) == MAX_FAILURES
