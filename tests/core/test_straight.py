"""The generated code against the strict cattrs hooks: the same is accepted, with the same result."""

from __future__ import annotations

import json
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.payloads import OwnConstructor, Typed, classes, noise, payloads, wrong_instances
from trio_wskit._core.annotations import Shapes, camel_case
from trio_wskit._core.json_text import dumps, loads
from trio_wskit._core.leaves import READERS, WRITERS, Read, Write
from trio_wskit._core.reading import Readers
from trio_wskit._core.shapes import Shape
from trio_wskit._core.straight import Accept, Encode, GivesUp, straight_encoder, straight_reader
from trio_wskit._core.writing import Writers

META: dict[str, Any] = {"timestamp": 5}


class Both:
    """One class, read and written both ways."""

    def __init__(self, cls: type[Any], *, forbid_extra: bool = True) -> None:
        self.shape = Shapes(camel_case, resolve).of_class(cls)
        self.readers = Readers(forbid_extra=forbid_extra)
        self.read: Read = self.readers.reader(self.shape)
        self.write: Write = Writers().writer(self.shape)
        self.accept: Accept = straight_reader(self.shape, self.readers.reader, forbid_extra=forbid_extra)
        self.encode: Encode = straight_encoder(self.shape, Writers().writer)

    def slow_read(self, payload: Any) -> tuple[bool, Any]:
        try:
            return True, self.read(payload, None)
        except Exception:
            return False, None

    def fast_read(self, payload: Any) -> tuple[bool, Any]:
        try:
            return True, self.accept(payload)
        except Exception:
            return False, None

    def slow_write(self, instance: Any) -> bytes | None:
        payload = self.write(instance)
        checkers = Readers(forbid_extra=True, construct=False)
        try:
            checkers.reader(self.shape)(payload, None)
            return dumps({"type": "T", "meta": META, **({"payload": payload} if self.shape.fields else {})})
        except Exception:
            return None

    def fast_write(self, instance: Any) -> bytes | None:
        try:
            return self.encode(instance, "T", META)
        except Exception:
            return None


def resolve(cls: type[Any]) -> None:
    attrs.resolve_types(cls)


@given(st.data(), classes(), st.booleans())
def test_what_cattrs_accepts_is_accepted_and_the_same_is_read(data: st.DataObject, made: Typed, strict: bool) -> None:
    both = Both(made.annotation, forbid_extra=strict)
    payload = data.draw(payloads(loads(dumps(both.write(data.draw(made.values))))))
    accepted, found = both.fast_read(payload)
    expected_to_be, expected = both.slow_read(payload)
    assert accepted == expected_to_be
    assert repr(found) == repr(expected)
    assert found == expected


@given(classes(), noise)
def test_arbitrary_json_is_accepted_or_not_by_both(made: Typed, payload: Any) -> None:
    both = Both(made.annotation)
    assert both.fast_read(payload) == both.slow_read(payload)


@given(st.data(), classes())
def test_what_is_written_is_the_same_and_is_read_as_it_was(data: st.DataObject, made: Typed) -> None:
    both = Both(made.annotation)
    instance = data.draw(made.values)
    frame = both.fast_write(instance)
    assert frame is not None
    assert frame == both.slow_write(instance)
    assert list(json.loads(frame)) == ["type", "meta", *(["payload"] if both.shape.fields else [])]
    assert both.accept(loads(frame).get("payload", {})) == instance


@given(st.data(), classes())
def test_what_is_written_wrongly_by_neither_is_written_by_none(data: st.DataObject, made: Typed) -> None:
    both = Both(made.annotation)
    instance = data.draw(wrong_instances(data.draw(made.values)))
    fast = both.fast_write(instance)
    # The generated code may leave subclasses of the plain types to the hooks; it never writes what they would not.
    assert fast is None or fast == both.slow_write(instance)


def test_the_constructor_of_a_plain_class_is_not_called_and_any_other_is() -> None:
    called: list[str] = []

    @attrs.frozen
    class Plain:
        a: int
        b: list[int] = attrs.field(factory=list)

    @attrs.frozen
    class Noting:
        a: int

        def __attrs_post_init__(self) -> None:
            called.append("post")

    @attrs.frozen
    class NotingBefore:
        a: int

        def __attrs_pre_init__(self) -> None:
            called.append("pre")

    @attrs.define
    class Setting:
        a: int

        def __setattr__(self, name: str, value: object) -> None:
            called.append("set")
            object.__setattr__(self, name, value)

    assert Both(Plain).accept({"a": 1}) == Plain(1, [])
    assert Both(Plain).accept({"a": 1}).b is not Both(Plain).accept({"a": 1}).b
    for cls in (Noting, NotingBefore, Setting):
        assert Both(cls).accept({"a": 1}).a == 1
    assert called == ["post", "pre", "set"]


def test_a_frozen_instance_that_was_read_is_whole() -> None:
    @attrs.frozen(cache_hash=True)
    class Cached:
        a: int

    @attrs.frozen
    class Hashable:
        a: int
        b: tuple[int, ...] = ()

    for cls in (Cached, Hashable):
        found = Both(cls).accept({"a": 1})
        assert hash(found) == hash(cls(1))
        assert found == cls(1)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            found.a = 2


def test_the_default_of_a_constructor_of_its_own_is_used() -> None:
    assert Both(OwnConstructor).accept({"name": "a"}).size == 50


def test_keys_are_counted_only_where_they_are_forbidden() -> None:
    @attrs.frozen
    class Small:
        a: int
        b: int = 2

    assert Both(Small, forbid_extra=False).accept({"a": 1, "c": 3}) == Small(1)
    assert Both(Small).fast_read({"a": 1, "c": 3}) == (False, None)
    assert Both(Small).fast_read({"a": 1, "b": 3}) == (True, Small(1, 3))


def test_a_literal_with_none_is_looked_at_beyond_none() -> None:
    @attrs.frozen
    class Odd:
        a: Literal["x", None] | float  # noqa: PYI061

    both = Both(Odd)
    assert both.fast_read({"a": None}) == (True, Odd(None))
    assert both.fast_read({"a": "x"}) == (True, Odd("x"))
    assert both.fast_read({"a": "y"}) == (False, None)
    assert both.fast_write(Odd(None)) == both.slow_write(Odd(None)) is not None
    wrong: Any = "y"
    assert both.fast_write(Odd(wrong)) is None


def test_names_on_the_wire_may_be_anything() -> None:
    @attrs.frozen
    class Strange:
        a: int
        b: int = 0

    names = {"a": "quote ' \" \\ \n", "b": "{a}"}
    shape = Shapes(names.__getitem__, resolve).of_class(Strange)
    readers = Readers(forbid_extra=True)
    payload = {names["a"]: 1, names["b"]: 2}
    assert straight_reader(shape, readers.reader, forbid_extra=True)(payload) == Strange(1, 2)
    assert loads(straight_encoder(shape, Writers().writer)(Strange(1, 2), "T", {}))["payload"] == payload


def test_a_meta_of_anything_but_numbers_and_text_is_left_to_be_checked() -> None:
    @attrs.frozen
    class Empty:
        pass

    encode = Both(Empty).encode
    assert encode(Empty(), "T", {"timestamp": 5, "correlationId": "c"}) == (
        b'{"type":"T","meta":{"timestamp":5,"correlationId":"c"}}'
    )
    for value in (float("nan"), None, [1]):
        with pytest.raises(GivesUp):
            encode(Empty(), "T", {"a": value})


def test_a_shape_that_cannot_be_done_better_goes_to_its_hook() -> None:
    asked: list[Shape] = []

    def reader(shape: Shape) -> Read:
        asked.append(shape)
        return READERS[int]

    def writer(shape: Shape) -> Write:
        asked.append(shape)
        return WRITERS[int]

    @attrs.frozen
    class Version:
        number: Literal[1, "one"]

    shape = Shapes(camel_case, resolve).of_class(Version)
    assert straight_reader(shape, reader, forbid_extra=True)({"number": 7}).number == 7
    one: Any = 7
    assert loads(straight_encoder(shape, writer)(Version(one), "T", {}))["payload"] == {"number": 7}
    assert asked == [shape.fields[0].shape] * 2
