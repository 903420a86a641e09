from __future__ import annotations

import inspect
from types import FrameType
from typing import Any, NotRequired, cast

import attrs
import pytest

from trio_wskit._core.annotations import camel_case
from trio_wskit._core.compiling import Compiled, Options, Unresolved, compile_class, read_or_explain
from trio_wskit._core.envelope import ABSENT
from trio_wskit._core.leaves import Wrong
from trio_wskit.errors import ConfigError


@attrs.frozen
class Empty:
    pass


@attrs.frozen
class Point:
    x_axis: int
    y_axis: int = 0


def compiled(
    cls: type[Any], *, forbid_extra: bool = True, meta: dict[str, Any] | None = None, **names: Any
) -> Compiled:
    frame = cast("FrameType", inspect.currentframe())
    options = Options(camel_case, forbid_extra, meta or {}, frame)
    return compile_class(cls, options, names, None)


def test_what_is_compiled_reads_and_writes_both_ways() -> None:
    found = compiled(Point)
    assert found.accept({"xAxis": 1}) == found.read({"xAxis": 1}, None) == Point(1)
    assert found.encode(Point(1), "T", {}) == b'{"type":"T","meta":{},"payload":{"xAxis":1,"yAxis":0}}'
    assert found.write(Point(1)) == {"xAxis": 1, "yAxis": 0}
    assert (found.shape.cls, list(found.shapes), found.meta, found.reply) == (Point, [Point], (), None)


def test_a_class_without_fields_accepts_nothing_as_well() -> None:
    accept = compiled(Empty).accept
    assert accept(ABSENT) == accept(None) == accept({}) == Empty()


def test_unknown_keys_are_accepted_where_they_are_allowed() -> None:
    assert compiled(Point, forbid_extra=False).accept({"xAxis": 1, "z": 2}) == Point(1)


def test_marks_are_found_and_the_checker_is_compiled_once() -> None:
    found = compiled(Point)
    assert found.check({"xAxis": 1, "yAxis": 2}) == []
    checkers = found.checkers
    assert found.check({"xAxis": Wrong("a"), "yAxis": 2}) == [
        {"path": "xAxis", "message": "expected an integer, got str"}
    ]
    assert found.checkers is checkers is not None


def test_declared_meta_is_checked() -> None:
    found = compiled(Empty, meta={"a": int, "b": NotRequired[str]})
    assert found.meta_issues({"a": 1}) == []
    assert found.meta_issues({"b": 5}) == [
        {"path": "meta.a", "message": "missing: expected an integer"},
        {"path": "meta.b", "message": "expected a string, got an integer"},
    ]


def test_a_name_that_does_not_exist_is_unresolved() -> None:
    missing: Any = "Missing"
    Late = attrs.make_class("Late", {"x": attrs.field(type=missing)})  # noqa: N806
    with pytest.raises(Unresolved, match="Late: an annotation names 'Missing'"):
        compiled(Late)
    assert compiled(Late, Missing=int).accept({"x": 1}) == Late(1)


@pytest.mark.parametrize("annotation", ["int.nothing", "list[", "5 + 'a'"])
def test_an_annotation_that_is_no_type_is_a_config_error(annotation: Any) -> None:
    Bad = attrs.make_class("Bad", {"x": attrs.field(type=annotation)})  # noqa: N806
    with pytest.raises(ConfigError, match="Bad: an annotation is not a type"):
        compiled(Bad)


def test_a_reading_that_fails_gives_its_issues() -> None:
    found = compiled(Point)
    assert read_or_explain(found.read, {"xAxis": 1}, found.shapes) == (Point(1), [])
    assert read_or_explain(found.read, {"xAxis": "1"}, found.shapes, "at") == (
        None,
        [{"path": "at.xAxis", "message": "expected an integer, got a string"}],
    )


def test_a_failure_too_deep_to_walk_down_is_one_issue() -> None:
    @attrs.frozen
    class Node:
        inner: Node | None = None

    payload: Any = 5
    for _ in range(5000):
        payload = {"inner": payload}
    found = compiled(Node, Node=Node)
    assert read_or_explain(found.read, payload, found.shapes)[1][0]["message"] == "nested too deeply, or holds itself"

    def fail(*_: object) -> Any:
        error: Exception = ValueError("at the bottom")
        for _times in range(5000):
            error = found_by_cattrs(error)
        raise error

    assert read_or_explain(fail, None, found.shapes, "at") == (
        None,
        [{"path": "at", "message": "nested too deeply, or holds itself"}],
    )


def found_by_cattrs(error: Exception) -> Exception:
    from cattrs import IterableValidationError, IterableValidationNote

    error.add_note(IterableValidationNote("item", 0, int))
    make: Any = IterableValidationError
    outer: Exception = make("", [error], list)
    return outer
