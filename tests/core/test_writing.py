"""What each shape writes, and that nothing wrong slips through: it is marked, and the readers find the mark."""

from __future__ import annotations

import enum
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import attrs
import pytest

from trio_wskit._core.annotations import Shapes, camel_case
from trio_wskit._core.leaves import Wrong
from trio_wskit._core.writing import Writers


class Colour(enum.Enum):
    RED = "red"


class Word(enum.StrEnum):
    YES = "yes"


@attrs.frozen
class Circle:
    radius: float
    kind: Literal["circle"] = "circle"


@attrs.frozen
class Sphere(Circle):
    weight: float = 1.0


@attrs.frozen
class Square:
    side: float
    kind: Literal["square"] = "square"


@attrs.frozen
class Tree:
    my_label: str
    children: list[Tree] = attrs.field(factory=list)
    my_note: str | None = None
    parent: str | None = attrs.field(default="root", kw_only=True)
    length: int = attrs.field(init=False, default=7)


def resolve(cls: type[Any]) -> None:
    attrs.resolve_types(cls)


def write(annotation: Any, value: Any) -> Any:
    shape = Shapes(camel_case, resolve).of_type(annotation, "field")
    return Writers().writer(shape)(value)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (str, "a", "a"),
        (Any, {"a": [1, None]}, {"a": [1, None]}),
        (Literal["a", 1, True], True, True),
        (Colour, Colour.RED, "red"),
        (list[Decimal], [Decimal("1.5")], ["1.5"]),
        (tuple[Decimal, ...], (Decimal("1.5"),), ["1.5"]),
        (tuple[int, Colour], (1, Colour.RED), [1, "red"]),
        (dict[str, Colour], {"a": Colour.RED}, {"a": "red"}),
        (dict[str, int], {Word.YES: 1}, {"yes": 1}),
        (int | None, None, None),
        (int | float, 5, 5),
        (float | None, 5, 5),
        (int | datetime, datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01T00:00:00Z"),
        (str | int, Word.YES, "yes"),
        (Circle | Square, Square(2.0), {"side": 2.0, "kind": "square"}),
        (
            Tree,
            Tree("a", [Tree("b", my_note="n", parent=None)]),
            {
                "myLabel": "a",
                "children": [{"myLabel": "b", "children": list[Any](), "myNote": "n", "parent": None}],
                "parent": "root",
            },
        ),
    ],
)
def test_what_fits_is_written(annotation: Any, value: Any, expected: Any) -> None:
    found = write(annotation, value)
    assert json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


@pytest.mark.parametrize(
    ("annotation", "value", "got"),
    [
        (Any, frozenset[int](), "frozenset"),
        (Any, float("nan"), "float"),
        (Literal["a", 1], True, "bool"),
        (Literal["a", 1], ["a"], "list"),
        (Colour, "red", "str"),
        (list[int], (1,), "tuple"),
        (list[int], "12", "str"),
        (tuple[int, ...], [1], "list"),
        (tuple[int, int], [1, 2], "list"),
        (tuple[int, int], (1,), "an array of 1"),
        (dict[str, int], [("a", 1)], "list"),
        (dict[str, int], {1: 1}, "an object with a key that is no text"),
        (dict[str, int], {"\ud800": 1}, "an object with a key that is no text"),
        (int | None, "5", "str"),
        (int | None, True, "bool"),
        (str | None, 5, "int"),
        (Circle, Sphere(1.0), "Sphere"),
        (Circle, {"radius": 1.0}, "dict"),
        (Circle | Square, Sphere(1.0), "Sphere"),
        (Circle | Square, Tree("a"), "Tree"),
    ],
)
def test_what_does_not_fit_is_marked(annotation: Any, value: Any, got: str) -> None:
    mark = write(annotation, value)
    assert type(mark) is Wrong
    assert mark.got == got


def test_everything_that_does_not_fit_inside_is_marked() -> None:
    wrong: Any = 5
    found = write(Tree, Tree(wrong, [wrong, Tree("b", my_note=wrong)]))
    assert type(found["myLabel"]) is type(found["children"][0]) is type(found["children"][1]["myNote"]) is Wrong


def test_each_class_is_compiled_once() -> None:
    writers = Writers()
    shape = Shapes(camel_case, resolve).of_class(Tree)
    assert writers.writer(shape) is writers.writer(shape)
