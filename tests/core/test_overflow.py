from __future__ import annotations

from typing import Any

import pytest

from trio_wskit import ConfigError
from trio_wskit._core.overflow import Block, Conflate, block, check_overflow, conflate, may_conflate


@pytest.mark.parametrize(
    "policy",
    ["disconnect", "drop_oldest", "drop_newest", Conflate(), conflate("k"), Block(1), block(0.5, "disconnect")],
)
def test_what_is_a_policy_is_taken_as_it_is(policy: Any) -> None:
    assert check_overflow(policy) is policy


@pytest.mark.parametrize("wrong", ["drop_all", None, 5, ["disconnect"], Conflate, {}])
def test_what_is_no_policy_is_refused_with_what_would_be_one(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"'drop_newest', conflate\(…\) or block\(…\), not"):
        check_overflow(wrong)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), True, "1", None])
def test_a_block_takes_a_finite_time(seconds: Any) -> None:
    with pytest.raises(ConfigError, match="a finite number of seconds above 0"):
        block(seconds)


def test_a_block_ends_in_dropping_the_newest_or_in_disconnecting() -> None:
    wrong: Any = "drop_oldest"
    assert block(1).then == "drop_newest"
    with pytest.raises(ConfigError, match="'drop_newest' or 'disconnect', not 'drop_oldest'"):
        block(1, wrong)


def test_a_key_is_a_function_of_the_message_on_the_wire_or_the_same_for_all() -> None:
    text = b'{"type":"PRICE","meta":{"by":"me"},"payload":{"symbol":"ACME"}}'
    assert conflate(lambda m: (m.type, m.payload["symbol"], m.meta["by"])).key_of(text) == ("PRICE", "ACME", "me")
    assert conflate("same").key_of(text) == "same"
    assert conflate().key_of(text) is None
    reserved = b'{"type":"$ws:something"}'
    assert conflate(lambda m: m.type).key_of(reserved) == "$ws:something"


def test_what_may_conflate_is_a_conflating_policy_and_every_function() -> None:
    assert may_conflate(conflate())
    assert may_conflate(lambda _: "disconnect")
    assert not may_conflate("drop_oldest")
    assert not may_conflate(block(1))


def test_policies_are_values() -> None:
    assert conflate("a") == conflate("a") != conflate("b")
    assert block(1) == Block(1, "drop_newest") != block(2)
