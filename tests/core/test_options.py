from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from trio_wskit._core.bucket import Policy
from trio_wskit._core.options import Limits
from trio_wskit.errors import ConfigError

COUNTS = [field.name for field in attrs.fields(Limits) if isinstance(field.default, int)]
OPTIONAL_COUNTS = [
    "max_calls",
    "max_pending",
    "max_connections",
    "max_connections_per_address",
    "max_connections_per_identity",
]
RATES = ["message_rate", "byte_rate"]
TIMES = [field.name for field in attrs.fields(Limits) if isinstance(field.default, float)]


def test_every_option_is_a_count_a_time_or_the_one_choice() -> None:
    assert {*COUNTS, *OPTIONAL_COUNTS, *RATES, *TIMES, "on_exceeded"} == {field.name for field in attrs.fields(Limits)}


def test_the_defaults_are_those_that_are_documented() -> None:
    limits = Limits()
    assert limits.max_payload_bytes == 1_000_000
    assert limits.max_in_flight == 32
    assert (limits.ping_interval, limits.ping_timeout) == (30, 5)
    assert limits.on_exceeded == "send"
    assert limits.max_connections is None


def test_limits_are_values() -> None:
    assert Limits(max_in_flight=3) == Limits(max_in_flight=3) != Limits()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Limits().max_in_flight = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", [*COUNTS, *OPTIONAL_COUNTS])
@pytest.mark.parametrize("value", [0, -1, 1.5, math.inf, True, "5"])
def test_a_count_is_a_whole_number_above_0(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"Limits\\({name}=…\\) takes a whole number above 0.*not {value!r}"):
        Limits(**_options(name, value))


@pytest.mark.parametrize("name", OPTIONAL_COUNTS)
def test_what_does_not_bound_memory_by_itself_may_be_unlimited(name: str) -> None:
    assert getattr(Limits(**_options(name, None)), name) is None


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_that_bounds_memory_cannot_be_none(name: str) -> None:
    with pytest.raises(ConfigError, match="takes a whole number above 0, not None"):
        Limits(**_options(name, None))


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", [0, -1, 0.0, math.nan, True, "5", None])
def test_a_time_is_a_number_above_0(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"Limits\\({name}=…\\) takes a number above 0"):
        Limits(**_options(name, value))


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", [1, 0.001, math.inf])
def test_inf_switches_a_time_limit_off(name: str, value: float) -> None:
    assert getattr(Limits(**_options(name, value)), name) == value


@pytest.mark.parametrize("value", ["ignore", None, ["send"]])
def test_on_exceeded_is_one_of_three(value: object) -> None:
    with pytest.raises(ConfigError, match="on_exceeded=…\\) takes 'send', 'close' or 'custom'"):
        Limits(**_options("on_exceeded", value))


def test_a_frame_may_be_four_times_what_a_message_may() -> None:
    assert Limits(max_payload_bytes=100).max_frame_bytes == 400


def _options(name: str, value: object) -> dict[str, Any]:
    return {name: value}


@pytest.mark.parametrize("name", RATES)
def test_a_rate_is_a_policy_or_none(name: str) -> None:
    policy = Policy(10, 5)
    assert getattr(Limits(**_options(name, policy)), name) is policy
    assert getattr(Limits(), name) is None
    with pytest.raises(ConfigError, match=f"Limits\\({name}=…\\) takes a Policy or None, not 10"):
        Limits(**_options(name, 10))
