from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Literal

import attrs
import pytest
from attrs import validators
from cattrs import AttributeValidationNote

from trio_wskit._core.annotations import Shapes, camel_case
from trio_wskit._core.explaining import (
    MAX_FAILURES,
    TOO_DEEP,
    expected_of,
    issues_of,
    note_of,
    one_of,
    validator_failures,
)
from trio_wskit._core.leaves import Read
from trio_wskit._core.reading import Readers
from trio_wskit._core.shapes import Shape


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen
class Item:
    unit_price: float
    quantity: int = attrs.field(default=1, validator=validators.ge(1))


@attrs.frozen
class Basket:
    items: list[Item]
    prices: dict[str, float] = attrs.field(factory=dict)
    my_note: str | None = None


def no_resolving(_: type[Any]) -> None:
    pass


def resolve(cls: type[Any]) -> None:
    attrs.resolve_types(cls)


def shape_of(annotation: Any) -> Shape:
    return Shapes(camel_case, resolve).of_type(annotation, "field")


def explain(annotation: Any, value: Any, path: str = "") -> list[tuple[str, str]]:
    readers = Readers(forbid_extra=True)
    read: Read = readers.reader(shape_of(annotation))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of four kinds
        read(value, None)
    return [(issue["path"], issue["message"]) for issue in issues_of(caught.value, readers.shapes, path)]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (str, "a string"),
        (Any, "any JSON"),
        (Literal["a"], "'a'"),
        (Literal["a", 2, True, False], "one of 'a', 2, true, false"),
        (Colour, "one of 'red', 'blue'"),
        (list[int], "an array"),
        (tuple[int, int], "an array of 2"),
        (dict[str, int], "an object"),
        (Item, "an object"),
        (int | None, "an integer or null"),
    ],
)
def test_each_shape_says_what_it_takes(annotation: Any, expected: str) -> None:
    assert expected_of(shape_of(annotation)) == expected


def test_only_the_first_of_many_values_are_named() -> None:
    assert one_of(tuple(range(12))) == "one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert one_of((None, "a")) == "one of null, 'a'"


def test_every_wrong_value_is_an_issue_with_its_path_on_the_wire() -> None:
    payload = {
        "items": [{"unitPrice": "5", "quantity": True}, 7, {"unitPrice": 1, "quantity": 0}, {"zz": 1, "a b": 2}],
        "prices": {"tea": "x", "no cake": None},
        "myNote": 5,
        "my_note": "x",
    }
    assert explain(Basket, payload) == [
        ("items[0].unitPrice", "expected a number, got a string"),
        ("items[0].quantity", "expected an integer, got a boolean"),
        ("items[1]", "expected an object, got an integer"),
        ("items[2].quantity", "'quantity' must be >= 1"),
        ("items[3].unitPrice", "missing: expected a number"),
        ('items[3]["a b"]', "unknown key"),
        ("items[3].zz", "unknown key"),
        ("prices.tea", "expected a number, got a string"),
        ('prices["no cake"]', "expected a number, got null"),
        ("myNote", "expected a string or null, got an integer"),
        ("my_note", "unknown key"),
    ]


def test_paths_go_on_from_where_the_reader_stood() -> None:
    assert explain(Item, {}, "meta.item") == [("meta.item.unitPrice", "missing: expected a number")]
    assert explain(Item, 5, "meta.item") == [("meta.item", "expected an object, got an integer")]
    assert explain(dict[str, int], {"a-b": "x"}) == [('["a-b"]', "expected an integer, got a string")]


def test_long_keys_of_the_sender_are_cut() -> None:
    ((path, _),) = explain(dict[str, int], {"k" * 100_000: "x"})
    assert path == "k" * 39 + "…"
    ((path, _),) = explain(dict[str, int], {" " * 100_000: "x"})
    assert len(path) < 50


def test_no_more_than_a_hundred_wrong_items_of_one_array_or_object_are_named() -> None:
    assert len(explain(list[int], ["x"] * 10_000)) == MAX_FAILURES == 100
    assert len(explain(dict[str, int], {str(number): "x" for number in range(500)})) == MAX_FAILURES
    assert len(explain(Item, {str(number): "x" for number in range(500)})) == MAX_FAILURES + 1


def test_the_text_of_a_validator_is_cut() -> None:
    @attrs.frozen
    class Picky:
        text: str = attrs.field(validator=validators.matches_re("never"))

    ((path, message),) = explain(Picky, {"text": "x" * 100_000})
    assert path == "text"
    assert message == "'text' must match regex 'never'"

    def refuse(*_: object) -> None:
        raise ValueError("no " * 1000)

    Wordy = attrs.make_class("Wordy", {"x": attrs.field(type=int, validator=refuse)})  # noqa: N806
    ((path, message),) = explain(Wordy, {"x": 1})
    assert path == "x"
    assert len(message) == 200


def refuse_in_own_words(*_: object) -> None:
    raise ValueError("not on a Sunday: (got one)")


@pytest.mark.parametrize(
    ("validator", "value", "message"),
    [
        (validators.ge("t"), "secret", "'x' must be >= t"),
        (validators.lt("a"), "secret (got it): ('yes", "'x' must be < a"),
        (validators.max_len(3), "secret", "Length of 'x' must be <= 3"),
        (validators.min_len(9), "secret", "Length of 'x' must be >= 9"),
        (validators.matches_re("[a-c]+"), "secret", "'x' must match regex '[a-c]+'"),
        (validators.matches_re("[a-c]+"), "it's a secret", "'x' must match regex '[a-c]+'"),
        (validators.in_(["a", "b"]), "secret", "'x' must be in ['a', 'b']"),
        (validators.instance_of(int), "secret", "'x' must be <class 'int'>"),
        (validators.optional(validators.max_len(3)), "secret", "Length of 'x' must be <= 3"),
        (validators.and_(validators.min_len(1), validators.max_len(3)), "secret", "Length of 'x' must be <= 3"),
        (refuse_in_own_words, "secret", "not on a Sunday: (got one)"),
    ],
)
def test_a_refusal_says_what_is_wanted_and_not_what_came(validator: Any, value: str, message: str) -> None:
    Asked = attrs.make_class("Asked", {"x": attrs.field(type=str, validator=validator)})  # noqa: N806
    assert explain(Asked, {"x": value}) == [("x", message)]


def test_no_validator_of_attrs_names_the_value_wherever_it_stands() -> None:
    member = validators.or_(validators.max_len(3), validators.matches_re("x+"))

    @attrs.frozen
    class Deep:
        many: list[str] = attrs.field(validator=validators.deep_iterable(member))
        named: dict[str, str] = attrs.field(
            validator=validators.deep_mapping(validators.max_len(3), validators.in_("ab"))
        )

    issues = explain(Deep, {"many": ["secret"], "named": {"secret": "secret"}})
    assert [path for path, _ in issues] == ["many", "named"]
    assert "secret" not in str(issues)


def test_a_converter_that_is_no_python_names_no_value_either() -> None:
    Converted = attrs.make_class("Converted", {"x": attrs.field(type=str, converter=int)})  # noqa: N806
    ((_, message),) = explain(Converted, {"x": "secret"})
    assert message == "invalid"


def test_a_validator_without_a_text_is_invalid() -> None:
    def refuse(*_: object) -> None:
        raise ValueError

    Silent = attrs.make_class("Silent", {"x": attrs.field(type=int, validator=refuse)})  # noqa: N806
    assert explain(Silent, {"x": 1}) == [("x", "invalid")]


def test_a_bug_in_a_validator_is_raised_as_it_is() -> None:
    def buggy(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    Buggy = attrs.make_class("Buggy", {"x": attrs.field(type=int, validator=buggy)})  # noqa: N806
    with pytest.raises(ZeroDivisionError, match="a bug"):
        explain(Buggy, {"x": 1})


def test_an_error_that_nobody_raised_says_what_it_says() -> None:
    assert list(issues_of(ValueError("as it is: (got it)"), {}, "a")) == [
        {"path": "a", "message": "as it is: (got it)"}
    ]


def test_too_deep_for_the_stack_is_an_issue() -> None:
    assert list(issues_of(RecursionError(), {}, "a")) == [{"path": "a", "message": TOO_DEEP}]


def test_notes_of_another_kind_are_passed_over() -> None:
    error = ValueError("x")
    assert note_of(error, AttributeValidationNote) is None
    error.add_note("not ours")
    error.add_note(AttributeValidationNote("ours", "a", int))
    assert note_of(error, AttributeValidationNote).name == "a"


# Which validators


def failures_of(cls: type[Any], **given: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for error in validator_failures(cls, given):
        (note,) = (note for note in error.__notes__ if isinstance(note, AttributeValidationNote))
        found[note.name] = str(error.args[0])
    return found


def at_least(bound: int) -> Callable[[Any, Any, int], None]:
    def check(_: Any, field: Any, value: int) -> None:
        if value < bound:
            raise ValueError(f"{field.name} is below {bound}")

    return check


def test_all_validators_that_refuse_are_found_and_each_field_is_named() -> None:
    @attrs.frozen
    class Three:
        a: int = attrs.field(validator=at_least(1))
        b: int = attrs.field(validator=at_least(1))
        c: int = attrs.field(validator=at_least(1))
        d: int = 0

    assert failures_of(Three, a=0, b=1, c=-1) == {"a": "a is below 1", "c": "c is below 1"}


def test_validators_see_the_whole_instance() -> None:
    def check(span: Any, _: Any, end: int) -> None:
        if end < span.start:
            raise ValueError("ends before it starts")

    @attrs.frozen
    class Span:
        start: int
        end: int = attrs.field(validator=check)

    assert failures_of(Span, start=5, end=3) == {"end": "ends before it starts"}


def test_defaults_and_converters_are_as_the_constructor_has_them() -> None:
    def add_one(value: Any, instance: Any) -> Any:
        return value + getattr(instance, "a", 0)

    adds_a: Any = attrs.Converter(add_one, takes_self=True)

    @attrs.frozen
    class Made:
        a: int = attrs.field(converter=int, validator=at_least(100))
        b: int = attrs.field(default=5, converter=adds_a, validator=at_least(100))  # type: ignore[misc]
        c: list[int] = attrs.field(factory=list)
        d: int = attrs.field(default=attrs.Factory(lambda self: self.a, takes_self=True), validator=at_least(100))
        e: int = attrs.field(init=False, default=1, validator=at_least(2))
        _f: int = attrs.field(default=1, validator=at_least(2))

    assert failures_of(Made, a="7", f=0) == {
        "a": "a is below 100",
        "b": "b is below 100",
        "d": "d is below 100",
        "e": "e is below 2",
        "_f": "_f is below 2",
    }
    assert failures_of(Made, a="150", f=3) == {"e": "e is below 2"}
