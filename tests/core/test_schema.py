from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NotRequired
from uuid import UUID

import attrs
import pytest
from attrs import validators
from hypothesis import given
from hypothesis import strategies as st

from tests.core.payloads import Typed, classes
from trio_wskit._core.codec import decode
from trio_wskit._core.envelope import ABSENT, Envelope
from trio_wskit._core.schema import MessageSpec, Rpc, find_spec, message, spec_of
from trio_wskit._core.straight import GivesUp
from trio_wskit.errors import ConfigError, PayloadInvalid

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForCheckers


@attrs.frozen
class Item:
    unit_price: Decimal
    tags: list[str] = attrs.field(factory=list)


@message("ORDER")
class Order:
    order_id: UUID
    items: list[Item]
    note: str | None = None
    paid_at: datetime | None = None


@message("PING")
class Ping:
    pass


@message("USER")
class User:
    user_name: str
    age: int = attrs.field(default=0, validator=validators.ge(0))


@message("GET_USER")
class GetUser(Rpc[User]):
    user_id: str


@message("LATER")
class Later:
    inner: DefinedBelow


@attrs.frozen
class DefinedBelow:
    x: int


@message("GET_LATER")
class GetLater(Rpc["ReplyBelow"]):
    pass


@message("REPLY_BELOW")
class ReplyBelow:
    x: int


@message("NEVER")
class Never:
    price: OnlyForCheckers


@message("NODE")
class Node:
    label: str
    children: list[Node] = attrs.field(factory=list)


ID = UUID("12345678-1234-5678-9abc-def012345678")


def structure(spec: MessageSpec, payload: Any = ABSENT, meta: dict[str, Any] | None = None) -> Any:
    return spec.structure(Envelope(spec.type, meta or {}, payload))


def spec_before_use(cls: Any) -> MessageSpec:
    """As `spec_of`, but without what that does for a class that waits for a name."""
    spec: MessageSpec = cls.__wskit_spec__
    return spec


def issues_of(call: Callable[[], object]) -> list[tuple[str, str]]:
    with pytest.raises(PayloadInvalid) as caught:
        call()
    return [(issue["path"], issue["message"]) for issue in caught.value.issues]


# A class made a message


def test_a_message_is_a_frozen_slotted_attrs_class() -> None:
    order = Order(ID, [], note="n")
    assert order == Order(order_id=ID, items=[], note="n")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        order.note = "other"  # type: ignore[misc]
    assert not hasattr(order, "__dict__")
    assert hash(Ping()) == hash(Ping())


def test_a_message_goes_out_and_comes_in_as_it_was() -> None:
    order = Order(ID, [Item(Decimal("1.50"), ["a"]), Item(Decimal(2))], paid_at=datetime(2024, 2, 29, tzinfo=UTC))
    frame = spec_of(order).encode(order, {"timestamp": 5})
    assert frame == (
        b'{"type":"ORDER","meta":{"timestamp":5},"payload":{"orderId":"12345678-1234-5678-9abc-def012345678",'
        b'"items":[{"unitPrice":"1.50","tags":["a"]},{"unitPrice":"2","tags":[]}],"paidAt":"2024-02-29T00:00:00Z"}}'
    )
    assert spec_of(Order).structure(decode(frame)) == order


def test_the_spec_belongs_to_the_class_and_to_its_instances() -> None:
    spec = spec_of(Order)
    assert (spec.type, spec.cls, spec.reply) == ("ORDER", Order, None)
    assert spec_of(Order(ID, [])) is spec
    assert find_spec(Order) is spec


def test_an_attrs_class_that_exists_is_taken_as_it_is() -> None:
    @attrs.define
    class Mutable:
        x: int

    assert message("MUTABLE")(Mutable) is Mutable
    instance = Mutable(1)
    instance.x = 2
    assert json.loads(spec_of(Mutable).encode(instance, {}))["payload"] == {"x": 2}
    assert structure(spec_of(Mutable), {"x": 3}) == Mutable(3)


def test_a_subclass_of_a_message_is_none_until_it_is_decorated() -> None:
    @attrs.frozen
    class Sub(Ping):
        extra: int = 0

    with pytest.raises(ConfigError, match="Sub is not a message"):
        spec_of(Sub)
    assert find_spec(Sub(1)) is None
    message("SUB")(Sub)
    assert structure(spec_of(Sub), {"extra": 1}) == Sub(1)
    assert structure(spec_of(Ping)) == Ping()


@pytest.mark.parametrize("thing", [int, 5, "ORDER", None, Item, Item(Decimal(1)), Rpc])
def test_what_is_no_message_is_a_config_error(thing: object) -> None:
    assert find_spec(thing) is None
    with pytest.raises(ConfigError, match="is not a message"):
        spec_of(thing)


# Names


def test_renaming_may_be_turned_off_or_be_a_function() -> None:
    @message("SAME", rename=None)
    class Same:
        room_id: str
        from_: str

    @message("UPPER", rename=str.upper)
    class Upper:
        room_id: str
        item: Item

    assert json.loads(spec_of(Same).encode(Same("a", "b"), {}))["payload"] == {"room_id": "a", "from_": "b"}
    frame = spec_of(Upper).encode(Upper("a", Item(Decimal(1))), {})
    assert json.loads(frame)["payload"] == {"ROOM_ID": "a", "ITEM": {"UNIT_PRICE": "1", "TAGS": []}}
    assert structure(spec_of(Upper), json.loads(frame)["payload"]) == Upper("a", Item(Decimal(1)))


def test_unknown_keys_are_refused_unless_allowed_inside_as_well() -> None:
    @message("OPEN", forbid_extra=False)
    class Open:
        item: Item

    payload: dict[str, Any] = {"item": {"unitPrice": "1", "zz": 1}, "yy": 2}
    assert structure(spec_of(Open), payload) == Open(Item(Decimal(1)))
    assert issues_of(lambda: structure(spec_of(Order), {"orderId": str(ID), "items": [payload["item"]], "yy": 2})) == [
        ("items[0].zz", "unknown key"),
        ("yy", "unknown key"),
    ]


def test_a_spec_may_be_had_under_another_name() -> None:
    spec = spec_of(GetUser).with_type("users.GET_USER")
    assert spec.type == "users.GET_USER"
    assert spec.cls is GetUser
    assert json.loads(spec.encode(GetUser("a"), {}))["type"] == "users.GET_USER"
    assert structure(spec, {"userId": "a"}) == GetUser("a")
    assert spec.reply is spec_of(User)
    assert spec_of(GetUser).type == "GET_USER"
    with pytest.raises(ConfigError, match="reserved"):
        spec.with_type("__users")


# Payloads


@pytest.mark.parametrize("payload", [ABSENT, None, {}])
def test_a_message_without_fields_takes_no_payload(payload: Any) -> None:
    assert structure(spec_of(Ping), payload) == Ping()
    assert spec_of(Ping).encode(Ping(), {}) == b'{"type":"PING","meta":{}}'


def test_a_message_without_fields_refuses_a_payload() -> None:
    assert issues_of(lambda: structure(spec_of(Ping), {"a": 1})) == [("a", "unknown key")]
    assert issues_of(lambda: structure(spec_of(Ping), 5)) == [("", "expected an object, got an integer")]

    @message("PING_2", forbid_extra=False)
    class Ping2:
        pass

    assert structure(spec_of(Ping2), {"a": 1}) == Ping2()


def test_a_message_with_fields_wants_a_payload_though_all_have_defaults() -> None:
    @message("DEFAULTS")
    class Defaults:
        a: int = 1

    assert structure(spec_of(Defaults), {}) == Defaults(1)
    assert issues_of(lambda: structure(spec_of(Defaults))) == [("", "missing: expected an object")]
    assert issues_of(lambda: structure(spec_of(Defaults), None)) == [("", "expected an object, got null")]


def test_every_issue_is_found() -> None:
    payload = {"orderId": 5, "items": [{"unitPrice": 1.5}, {"unitPrice": "1", "tags": ["a", None]}], "note": []}
    assert issues_of(lambda: structure(spec_of(Order), payload)) == [
        ("orderId", "expected a UUID, got an integer"),
        ("items[0].unitPrice", "expected a decimal number in a string, got a number with a fraction or exponent"),
        ("items[1].tags[1]", "expected a string, got null"),
        ("note", "expected a string or null, got an array"),
    ]


def test_the_error_names_the_type_and_has_the_issues_as_its_details() -> None:
    with pytest.raises(PayloadInvalid, match="Validation failed for USER") as caught:
        structure(spec_of(User), {"userName": "a", "age": -1})
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.details == {"issues": [{"path": "age", "message": "'age' must be >= 0"}]}
    assert caught.value.__cause__ is None


def test_a_bug_in_a_validator_comes_out_as_it_is() -> None:
    def buggy(_instance: object, _field: object, _value: int) -> None:
        raise ZeroDivisionError

    @message("BUGGY")
    class Buggy:
        x: int = attrs.field(validator=buggy)

    with pytest.raises(ZeroDivisionError):
        structure(spec_of(Buggy), {"x": 1})


def test_a_payload_deeper_than_the_stack_is_an_issue() -> None:
    payload: dict[str, Any] = {"label": "x"}
    for _times in range(5000):
        payload = {"label": "x", "children": [payload]}
    assert issues_of(lambda: structure(spec_of(Node), payload))[0][1] == "nested too deeply, or holds itself"


def test_the_hooks_decide_where_the_generated_code_gives_up() -> None:
    @message("UNSURE")
    class Unsure:
        x: int

    def give_up(*_: object) -> Any:
        raise GivesUp

    compiled = spec_of(Unsure).compile()
    compiled.accept = compiled.encode = give_up
    spec = spec_of(Unsure).with_type("SURE")
    assert structure(spec, {"x": 1}) == Unsure(1)
    assert spec.encode(Unsure(1), {}) == b'{"type":"SURE","meta":{},"payload":{"x":1}}'


# Outgoing values


def test_wrong_types_are_found_before_they_are_sent() -> None:
    wrong: Any = 5
    order = Order(wrong, [Item(wrong), wrong], note=wrong)
    assert issues_of(lambda: spec_of(Order).encode(order, {})) == [
        ("orderId", "expected a UUID, got int"),
        ("items[0].unitPrice", "expected a decimal number in a string, got int"),
        ("items[1]", "expected an object, got int"),
        ("note", "expected a string or null, got int"),
    ]


def test_another_class_is_not_sent_in_its_place() -> None:
    assert issues_of(lambda: spec_of(User).encode(Ping(), {})) == [("", "expected an object, got Ping")]
    assert issues_of(lambda: spec_of(Ping).encode(User("a"), {})) == [("", "expected an object, got User")]


def test_values_that_json_cannot_carry_are_found() -> None:
    @message("ANY")
    class Anything:
        value: Any
        number: int = 1

    assert issues_of(lambda: spec_of(User).encode(User("\ud800", 2**64), {})) == [
        ("userName", "expected a string, got text with a lone surrogate"),
        ("age", "expected an integer, got an integer outside 64 bits"),
    ]
    assert issues_of(lambda: spec_of(Anything).encode(Anything([float("nan")]), {})) == [
        ("value", "expected any JSON, got list")
    ]
    assert issues_of(lambda: spec_of(Anything).encode(Anything({"a": object()}), {})) == [
        ("value", "expected any JSON, got dict")
    ]


def test_what_holds_itself_is_found() -> None:
    loop = Node("a")
    loop.children.append(loop)
    assert issues_of(lambda: spec_of(Node).encode(loop, {})) == [("", "nested too deeply, or holds itself")]
    deep = Node("a")
    for _times in range(150):
        deep = Node("a", [deep])
    assert issues_of(lambda: spec_of(Node).encode(deep, {})) == [("", "nested too deeply, or holds itself")]


def test_validators_are_not_asked_again_when_a_message_is_sent() -> None:
    @message("WORD")
    @attrs.define
    class Word:
        text: str = attrs.field(validator=validators.max_len(3))
        kind: str = "k"

    class Sub(str):
        __slots__ = ()

    with validators.disabled():
        word, odd = Word("too long"), Word("too long", kind=Sub("s"))
    assert json.loads(spec_of(Word).encode(word, {}))["payload"]["text"] == "too long"
    assert json.loads(spec_of(Word).encode(odd, {}))["payload"] == {"text": "too long", "kind": "s"}


def test_a_message_without_fields_goes_the_slow_way_too() -> None:
    assert spec_of(Ping).encode(Ping(), {"tags": ["a"]}) == b'{"type":"PING","meta":{"tags":["a"]}}'
    assert spec_of(User).unstructure(User("a", 1)) == {"userName": "a", "age": 1}


@pytest.mark.parametrize("value", [float("nan"), {1}, object(), [float("inf")], 2**64])
def test_a_meta_that_is_not_json_is_refused(value: object) -> None:
    assert issues_of(lambda: spec_of(Ping).encode(Ping(), {"timestamp": 5, "extra": value})) == [
        ("meta", "expected JSON")
    ]


def test_a_meta_with_any_json_is_sent() -> None:
    frame = spec_of(Ping).encode(Ping(), {"timestamp": 5, "extra": {"a": [1.5, None]}})
    assert json.loads(frame)["meta"] == {"timestamp": 5, "extra": {"a": [1.5, None]}}


def test_a_meta_that_json_cannot_write_as_text_is_refused() -> None:
    assert issues_of(lambda: spec_of(Ping).encode(Ping(), {"extra": "\ud800"})) == [("meta", "expected JSON")]


# Declared meta


@message("AUDITED", meta={"tenantId": UUID, "region": NotRequired[Literal["eu", "us"]]})
class Audited:
    text: str


def test_declared_meta_is_checked_and_stays_as_it_came() -> None:
    meta = {"tenantId": str(ID), "region": "eu", "other": 5}
    envelope = Envelope("AUDITED", meta, {"text": "a"})
    assert spec_of(Audited).structure(envelope) == Audited("a")
    assert envelope.meta == {"tenantId": str(ID), "region": "eu", "other": 5}
    assert structure(spec_of(Audited), {"text": "a"}, {"tenantId": str(ID)}) == Audited("a")


def test_declared_meta_that_is_missing_or_wrong_is_an_issue_beside_those_of_the_payload() -> None:
    assert issues_of(lambda: structure(spec_of(Audited), {"text": 5}, {"region": "mars"})) == [
        ("meta.tenantId", "missing: expected a UUID"),
        ("meta.region", "expected one of 'eu', 'us', got a string"),
        ("text", "expected a string, got an integer"),
    ]
    assert issues_of(lambda: structure(spec_of(Audited), ABSENT, {"tenantId": str(ID)})) == [
        ("", "missing: expected an object")
    ]


def test_a_message_without_fields_may_declare_meta() -> None:
    @message("KNOCK", meta={"secret": int})
    class Knock:
        pass

    assert structure(spec_of(Knock), ABSENT, {"secret": 5}) == Knock()
    assert issues_of(lambda: structure(spec_of(Knock), ABSENT)) == [("meta.secret", "missing: expected an integer")]


def test_declared_meta_is_checked_on_the_way_out() -> None:
    assert json.loads(spec_of(Audited).encode(Audited("a"), {"tenantId": str(ID)}))["meta"] == {"tenantId": str(ID)}
    assert issues_of(lambda: spec_of(Audited).encode(Audited("a"), {"tenantId": "x"})) == [
        ("meta.tenantId", "expected a UUID, got other text")
    ]
    wrong: Any = 5
    assert issues_of(lambda: spec_of(Audited).encode(Audited(wrong), {"tenantId": str(ID)})) == [
        ("text", "expected a string, got int")
    ]


# Requests


def test_a_request_knows_its_reply() -> None:
    assert spec_of(GetUser).reply is spec_of(User)
    assert GetUser.__wskit_rpc__() == (GetUser, User)


def test_a_reply_may_be_named_as_text_and_be_defined_later() -> None:
    assert spec_of(GetLater).reply is spec_of(ReplyBelow)


def test_a_request_may_inherit_its_reply() -> None:
    class ForUsers(Rpc[User]):
        __slots__ = ()

    @message("FIND_USER")
    class FindUser(ForUsers):
        name: str

    assert spec_of(FindUser).reply is spec_of(User)


@pytest.mark.parametrize("reply", [int, Item, "Missing", None])
def test_a_reply_that_is_no_message_is_a_config_error(reply: Any) -> None:
    class Bad(Rpc[reply]):
        __slots__ = ()

    with pytest.raises(ConfigError, match="Bad: its reply"):
        spec_of(message("BAD")(Bad))


def test_a_request_without_a_reply_is_a_config_error() -> None:
    class Bare(Rpc):  # type: ignore[type-arg]
        __slots__ = ()

    with pytest.raises(ConfigError, match=r"name the reply in brackets: class Bare\(Rpc\[Reply\]\)"):
        message("BARE")(Bare)


def test_a_class_that_is_no_message_has_no_reply() -> None:
    with pytest.raises(ConfigError, match="is not a message"):
        Rpc.__wskit_rpc__()


# Definitions that are read later


def test_what_is_defined_further_down_is_found_at_first_use() -> None:
    assert structure(spec_of(Later), {"inner": {"x": 1}}) == Later(DefinedBelow(1))


def test_a_name_that_does_not_exist_is_a_config_error_at_first_use() -> None:
    early = spec_before_use(Never)
    assert not early.is_compiled
    for call in (lambda: spec_of(Never), lambda: early.structure(Envelope("NEVER", {}, {}))):
        with pytest.raises(ConfigError, match="Never: an annotation names 'OnlyForCheckers', which does not exist"):
            call()


def test_a_spec_that_was_not_ready_is_quick_after_its_first_use() -> None:
    @message("WAITS")
    class Waits:
        inner: Awaited

    spec = spec_before_use(Waits)
    states = [spec.is_compiled]

    @attrs.frozen
    class Awaited:
        x: int

    assert json.loads(spec.encode(Waits(Awaited(1)), {}))["payload"] == {"inner": {"x": 1}}
    assert [*states, spec.is_compiled] == [False, True]
    assert structure(spec, {"inner": {"x": 1}}) == Waits(Awaited(1))


def test_classes_in_functions_may_name_one_another_and_themselves() -> None:
    @attrs.frozen
    class Leaf:
        value: int
        again: Leaf | None = None

    @message("LOCAL")
    class Local:
        leaf: Leaf
        more: list[Local] = attrs.field(factory=list)

    local = Local(Leaf(1, Leaf(2)), [Local(Leaf(3))])
    assert spec_of(Local).structure(decode(spec_of(Local).encode(local, {}))) == local


def test_the_function_that_a_class_was_defined_in_is_not_kept_alive() -> None:
    class Big:
        pass

    def define() -> tuple[type[Any], weakref.ref[Big]]:
        big = Big()

        @message("SMALL")
        class Small:
            x: int

        return Small, weakref.ref(big)

    _small, big = define()
    gc.collect()
    assert big() is None


# Definitions that are wrong


@pytest.mark.parametrize("name", ["", None, 5, b"T"])
def test_a_type_that_is_no_text_is_a_config_error(name: Any) -> None:
    with pytest.raises(ConfigError, match="Bad: a message type is a non-empty str"):

        @message(name)
        class Bad:
            pass


@pytest.mark.parametrize("name", ["__bad", "$bad", "$ws:abort", "__"])
def test_a_reserved_type_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match=r"Bad: message types that start .* are reserved"):

        @message(name)
        class Bad:
            pass


@pytest.mark.parametrize("key", ["clientId", "receivedAt"])
def test_a_reserved_meta_key_is_a_config_error(key: str) -> None:
    with pytest.raises(ConfigError, match=f"Bad: the meta key '{key}' is reserved"):

        @message("BAD", meta={key: str})
        class Bad:
            pass


def test_an_unsupported_meta_type_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="Bad: meta 'a': unsupported type bytes"):

        @message("BAD", meta={"a": bytes})
        class Bad:
            pass


def test_an_unsupported_field_is_a_config_error_at_definition() -> None:
    with pytest.raises(ConfigError, match=r"Bad\.data: unsupported type bytes"):

        @message("BAD")
        class Bad:
            data: bytes


def test_a_field_without_annotation_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="Bad cannot be made a message"):

        @message("BAD")
        class Bad:
            x = attrs.field()  # pyright: ignore[reportGeneralTypeIssues]


def test_fields_in_an_order_that_attrs_refuses_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="Bad cannot be made a message"):

        @message("BAD")
        class Bad:
            a: int = 1
            b: int = attrs.field()  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]


@pytest.mark.parametrize("annotation", ["list[", "datetime.nothing", "5 + 'a'"])
def test_an_annotation_that_is_no_type_is_a_config_error(annotation: str) -> None:
    class Bad:
        __annotations__ = {"x": annotation}

    with pytest.raises(ConfigError, match="Bad: an annotation is not a type"):
        message("BAD")(Bad)


def test_a_message_twice_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="User is a message already"):
        message("AGAIN")(User)


def test_what_is_no_class_is_a_config_error() -> None:
    def function() -> None: ...

    thing: Any = function
    with pytest.raises(ConfigError, match="decorates a class"):
        message("F")(thing)


# Whatever the class


@given(st.data(), classes())
def test_every_message_comes_back_as_it_was(data: st.DataObject, made: Typed) -> None:
    class Base(made.annotation):  # type: ignore[name-defined, misc]
        pass

    cls = message("MADE")(attrs.define(Base))
    instance = data.draw(made.values)
    instance = cls(**{field.alias: getattr(instance, field.name) for field in attrs.fields(cls)})
    frame = spec_of(cls).encode(instance, {"timestamp": 5})
    assert spec_of(cls).structure(decode(frame)) == instance
