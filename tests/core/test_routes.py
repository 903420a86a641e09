from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import pytest

from trio_wskit._core.lanes import serial
from trio_wskit._core.routes import OnConflict, Route, RouteOptions, RouteTable
from trio_wskit._core.schema import message, spec_of
from trio_wskit.errors import ConfigError


@message("A")
class A: ...


@message("B")
class B: ...


def first(_: object) -> None: ...


def second(_: object) -> None: ...


def table(*routes: Route) -> RouteTable:
    made = RouteTable()
    for route in routes:
        made.add(route)
    return made


def on(cls: type[Any], handler: Callable[[Any], Any] = first) -> Route:
    return Route(spec_of(cls), handler)


def handlers(routes: RouteTable) -> dict[str, Callable[[Any], Any]]:
    return {route.spec.type: route.handler for route in routes}


def test_a_table_holds_one_route_for_each_type_in_order_of_registration() -> None:
    routes = table(on(B), on(A))
    assert len(routes) == 2
    assert [route.spec.type for route in routes] == ["B", "A"]
    assert "A" in routes
    assert "C" not in routes


def test_a_type_that_is_taken_is_an_error_that_names_both_handlers() -> None:
    routes = table(on(A))
    with pytest.raises(ConfigError, match=r"'A' is registered already \(first\); to put second in its place"):
        routes.add(on(A, second))
    assert handlers(routes) == {"A": first}


def test_a_handler_without_a_name_is_shown_as_it_is() -> None:
    routes = table(on(A, partial(first)))
    with pytest.raises(ConfigError, match=r"functools\.partial"):
        routes.add(on(A))


@pytest.mark.parametrize(("on_conflict", "winner"), [("skip", first), ("replace", second)])
def test_a_conflict_can_be_decided_for_the_old_or_for_the_new(on_conflict: OnConflict, winner: object) -> None:
    routes = table(on(A), on(B))
    routes.update(iter([on(A, second)]), on_conflict)
    assert handlers(routes) == {"A": winner, "B": first}


def test_several_are_added_all_or_none() -> None:
    routes = table(on(A))
    with pytest.raises(ConfigError, match="'A' is registered already"):
        routes.update(iter([on(B), on(A, second)]), "error")
    assert handlers(routes) == {"A": first}
    routes.update(iter([on(B)]), "error")
    assert handlers(routes) == {"A": first, "B": first}


def test_what_fails_while_it_is_read_adds_nothing() -> None:
    def broken() -> Any:
        yield on(B)
        raise ConfigError("no")

    routes = table(on(A))
    with pytest.raises(ConfigError, match="no"):
        routes.update(broken(), "error")
    assert handlers(routes) == {"A": first}


def test_an_unknown_policy_is_an_error_even_without_a_conflict() -> None:
    unknown: Any = "overwrite"
    with pytest.raises(ConfigError, match="on_conflict takes 'error', 'skip' or 'replace', not 'overwrite'"):
        RouteTable().update(iter(()), unknown)


def test_a_route_is_a_value() -> None:
    assert on(A) == on(A) != on(A, second)
    assert on(A).middleware == ()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        on(A).handler = second  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_route_without_options_asks_for_nothing() -> None:
    assert on(A).options == RouteOptions(lane=None, timeout=None, detached=False)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"lane": "serial"}, r"lane takes serial, concurrent\(n\) or keyed\(key\), not 'serial'"),
        ({"timeout": 0}, "timeout takes seconds above 0, not 0"),
        ({"timeout": True}, "timeout takes seconds above 0, not True"),
        ({"timeout": "5"}, "timeout takes seconds above 0, not '5'"),
        ({"detached": 1}, "detached takes True or False, not 1"),
        ({"detached": True, "lane": serial}, "a detached handler runs beside its connection: it takes no lane"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        RouteOptions(**options)


def test_options_that_go_together_are_taken() -> None:
    options = RouteOptions(lane=serial, timeout=0.5)
    assert (options.lane, options.timeout) == (serial, 0.5)
    assert RouteOptions(timeout=1, detached=True).detached
