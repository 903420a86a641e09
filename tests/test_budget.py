from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.sessions import Client, House, Said, open_house, settle
from trio_wskit import App, ByteBudget, ConfigError, ConnectionClosed, LimitExceeded, Limits, Router


@final
class Debtor:
    """An outbox that only owes."""

    def __init__(self, budget: ByteBudget, log: list[str], name: str) -> None:
        self.charged = 0
        self.budget = budget
        self.log = log
        self.name = name
        self.then: Callable[[], object] | None = None

    def owes(self, size: int) -> None:
        self.budget.charge(self, size)

    def progress(self) -> None:
        self.budget.progressed(self)

    def evict(self, used: int, limit: float) -> None:
        assert used > limit
        self.log.append(self.name)
        self.owes(0)
        if self.then is not None:
            self.then()


def crowd(max_bytes: float, names: str = "abcd") -> tuple[ByteBudget, list[str], list[Debtor]]:
    budget = ByteBudget(max_bytes)
    log: list[str] = []
    return budget, log, [Debtor(budget, log, name) for name in names]


# --- the arithmetic --------------------------------------------------------------------------------------------------


def test_what_is_owed_is_the_sum_of_what_each_owes() -> None:
    budget, log, (a, b, *_) = crowd(100)
    a.owes(30)
    b.owes(40)
    a.owes(50)
    assert (budget.used, budget.behind) == (90, 2)
    b.owes(0)
    a.owes(10)
    assert (budget.used, budget.behind, log) == (10, 1, [])


def test_over_the_budget_goes_who_has_made_progress_least_recently() -> None:
    budget, log, (a, b, c, d) = crowd(100)
    for debtor in (a, b, c, d):
        debtor.owes(25)
    a.progress()
    b.progress()
    d.owes(26)
    assert log == ["c"]
    assert (budget.used, budget.behind, budget.evicted) == (76, 3, 1)


def test_as_many_go_as_it_takes_and_no_more() -> None:
    budget, log, (a, b, c, d) = crowd(100)
    for debtor in (a, b, c):
        debtor.owes(30)
    d.owes(60)
    assert log == ["a", "b"]
    assert budget.used == 90


def test_who_owes_more_than_all_of_it_goes_itself_in_the_end() -> None:
    budget, log, (a, b, *_) = crowd(100)
    a.owes(10)
    b.owes(101)
    assert log == ["a", "b"]
    assert (budget.used, budget.behind) == (0, 0)


def test_paying_back_never_costs_anybody_its_place() -> None:
    budget, log, (a, b, *_) = crowd(100)
    a.owes(60)
    budget.max_bytes = 50
    a.owes(55)
    assert log == []
    b.owes(1)
    assert log == ["a"]


def test_who_pays_everything_back_begins_anew_behind_the_others() -> None:
    _, log, (a, b, c, _) = crowd(100)
    for debtor in (a, b, a):
        debtor.owes(0 if debtor.charged else 30)
    a.owes(30)
    a.progress()
    c.progress()  # it owes nothing, and still owes nothing
    c.owes(50)
    assert log == ["b"]


def test_one_that_cannot_be_disconnected_is_no_debtor_any_more(caplog: pytest.LogCaptureFixture) -> None:
    budget, log, (a, b, c, _) = crowd(100)

    def fail() -> None:
        raise ZeroDivisionError

    a.then = fail
    for debtor in (a, b, c):
        debtor.owes(45)
    assert log == ["a"]
    assert budget.used == 90
    assert "could not be disconnected" in caplog.text


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60) | st.none())))
def test_it_is_never_over_its_bound_and_always_the_sum(steps: list[tuple[int, int | None]]) -> None:
    budget, log, debtors = crowd(100)
    order: list[Debtor] = []
    for index, size in steps:
        debtor = debtors[index]
        gone = len(log)
        if size is None:
            debtor.progress()
            if debtor in order:
                order.remove(debtor)
                order.append(debtor)
        else:
            if size and debtor not in order:
                order.append(debtor)
            debtor.owes(size)
        for name in log[gone:]:
            assert order.pop(0).name == name
        order = [one for one in order if one.charged]
        assert budget.used == sum(one.charged for one in debtors) <= 100
        assert budget.behind == len(order)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "1", None, math.nan, -math.inf])
def test_a_budget_is_a_whole_number_of_bytes(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="a whole number of bytes above 0"):
        ByteBudget(wrong)


def test_an_infinite_budget_evicts_nobody() -> None:
    _, log, (a, *_) = crowd(math.inf)
    a.owes(10**12)
    assert log == []


# --- an app's --------------------------------------------------------------------------------------------------------

LIMITS = Limits(ping_interval=math.inf, write_timeout=math.inf, close_timeout=math.inf)


async def subscriber(house: House, *, stalls: bool = True) -> Client:
    client = await house.connect(capacity=1)
    await client.session.topics.subscribe("t")
    if stalls:
        client.peer.stall()
    return client


async def test_while_the_system_takes_everything_nothing_is_charged(autojump_clock: MockClock) -> None:
    budget = ByteBudget(1)
    async with open_house(budget=budget) as house:
        client = await house.connect()
        await client.session.topics.subscribe("t")
        for n in range(100):
            await house.app.publish("t", Said(str(n)))
        assert budget.used == 0
        assert len(await client.texts()) == 100
        assert (budget.evicted, house.app.backpressure.evicted) == (0, 0)


async def test_over_the_budget_the_one_whose_socket_took_nothing_for_longest_is_disconnected_with_1013(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    told: list[LimitExceeded] = []
    router.on_limit_exceeded(told.append)
    budget = ByteBudget(20_000)
    async with open_house(router, limits=LIMITS, budget=budget) as house:
        assert house.app.budget is budget
        dead, slow = await subscriber(house), await subscriber(house)
        published = 0
        while slow.session.close_code is None and not told:
            await house.app.publish("t", Said("x" * 1000))
            published += 1
            await settle()
            slow.peer.resume()  # it takes one now and then
            await slow.receive()
            slow.peer.stall()
            await settle()
            assert budget.used <= 20_000
            assert budget.used == sum(s.outbox.charged for s in house.app.sessions)
        (info,) = told
        assert (info.type, info.limit, info.client_id) == ("backpressure", 20_000, dead.client_id)
        assert info.observed > 20_000
        assert (budget.evicted, house.app.backpressure.evicted) == (1, 1)
        await dead.served.wait()
        assert dead.session.close_code == 1013
        assert slow.session.close_code is None
        assert published > 15
    assert budget.used == 0


async def test_replies_count_as_messages_of_topics_do(autojump_clock: MockClock) -> None:
    budget = ByteBudget(5_000)
    async with open_house(limits=LIMITS, budget=budget) as house:
        client = await subscriber(house)
        with pytest.raises(ConnectionClosed):  # noqa: PT012
            while True:
                await client.session.send(Said("x" * 1000))
                await settle()
        await client.served.wait()
        assert client.session.close_code == 1013
        assert budget.evicted == 1


async def test_who_is_disconnected_for_the_message_itself_has_neither_got_nor_missed_it(
    autojump_clock: MockClock,
) -> None:
    async with open_house(limits=LIMITS, budget=ByteBudget(4_000)) as house:
        client = await subscriber(house)
        results = [await house.app.publish("t", Said("x")), await house.app.publish("t", Said("x"))]
        await settle()
        while results[-1].delivered:
            results.append(await house.app.publish("t", Said("x" * 1000)))
            await settle()
        assert (results[-1].matched_local, results[-1].delivered, results[-1].dropped) == (1, 0, 0)
        assert house.app.backpressure.evicted == 1
        await client.served.wait()


async def test_apps_may_share_a_budget(autojump_clock: MockClock) -> None:
    budget = ByteBudget(10_000)
    async with open_house(limits=LIMITS, budget=budget) as two:
        second = await subscriber(two)
        await two.app.publish("t", Said())
        await two.app.publish("t", Said())
        await settle()
        tasks = two.tasks
        async with open_house(limits=LIMITS, budget=budget) as one:
            first = await subscriber(one)
            for _ in range(8):
                await one.app.publish("t", Said("x" * 1000))
                await settle()
            assert budget.used > 6_000
            second.peer.resume()
            assert await second.texts() == ["", ""]
            second.peer.stall()
            for _ in range(6):
                await two.app.publish("t", Said("x" * 1000))
                await settle()
            await first.served.wait()
            assert first.session.close_code == 1013
            assert (one.app.backpressure.evicted, two.app.backpressure.evicted, budget.evicted) == (1, 0, 1)
        assert two.tasks == tasks
        assert second.session.close_code is None
    assert budget.used == 0


async def test_an_app_has_a_budget_of_its_own() -> None:
    one, two = App(Router()), App(Router())
    assert one.budget is not two.budget
    assert one.budget.max_bytes == 256 * 1024 * 1024
