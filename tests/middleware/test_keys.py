from __future__ import annotations

from typing import Any, cast

import attrs
import pytest

from trio_wskit import Context, Request
from trio_wskit.limiter import Policy
from trio_wskit.limiter._wire import WirePolicy
from trio_wskit.middleware import address_key, per_address, per_connection, per_user, per_user_per_type


@attrs.frozen
class FakeSession:
    client_id: str
    identity: str
    request: Request


@attrs.frozen
class FakeContext:
    session: FakeSession
    type: str = "SAY"

    @property
    def client_id(self) -> str:
        return self.session.client_id


def context(identity: str | None = None, remote: str | None = None) -> Context[Any]:
    session = FakeSession("0193", "0193" if identity is None else identity, Request(remote=remote))
    return cast("Context[Any]", FakeContext(session))


def test_a_user_is_who_the_app_says_it_is() -> None:
    assert per_user(context("alice")) == "user:{alice}"
    assert per_user_per_type(context("alice")) == "user:{alice}:SAY"


def test_the_anonymous_are_each_for_themselves() -> None:
    assert per_user(context()) == "connection:{0193}"
    assert per_user_per_type(context()) == "connection:{0193}:SAY"


def test_a_connection_is_a_connection_whoever_it_is() -> None:
    assert per_connection(context("alice")) == per_connection(context()) == "connection:{0193}"


def test_a_user_whose_name_has_braces_is_no_other_user() -> None:
    names = ["a}:b", "a", "a%7D:b", "{a}", "%7Ba%7D", "", "}{"]
    keys = [per_user_per_type(context(name)) for name in names]
    assert len(set(keys)) == len(names)
    assert all(key.count("{") == key.count("}") == 1 for key in keys)


@pytest.mark.parametrize(
    ("remote", "key"),
    [
        ("203.0.113.7", "address:{203.0.113.7}"),
        ("2001:db8:1:2:3:4:5:6", "address:{2001:db8:1:2::/64}"),
        ("2001:db8:1:2::", "address:{2001:db8:1:2::/64}"),
        ("2001:db8:1:3::", "address:{2001:db8:1:3::/64}"),
        ("fe80::1%eth0", "address:{fe80::/64}"),
        ("::ffff:203.0.113.7", "address:{203.0.113.7}"),
        ("not an {address}", "address:{not an %7Baddress%7D}"),
    ],
)
def test_an_address_is_one_customer_s(remote: str, key: str) -> None:
    assert address_key(remote) == key
    assert per_address(context("alice", remote)) == key


def test_without_an_address_each_connection_is_for_itself() -> None:
    assert per_address(context("alice")) == "connection:{0193}"


def test_what_one_client_pays_lives_in_one_slot() -> None:
    tags = {
        WirePolicy(policy).key(key).split("{")[1].split("}")[0]
        for policy in (Policy(1, 1), Policy(2, 2, "hour:"))
        for key in (per_user(context("alice")), per_user_per_type(context("alice")))
    }
    assert tags == {"alice"}
