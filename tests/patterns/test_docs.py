"""The examples of the page are programs that work."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.patterns.worlds import client_of, instance_of
from tests.sessions import Client, open_house
from trio_wskit import open_app
from trio_wskit._core.schema import spec_of
from trio_wskit.patterns import DeltaReplica, Deltas, FlowSender, Snapshot, StateReplica, StateSync, StateUpdate

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "howto" / "patterns.md"
PIECES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType(f"patterns_example_{request.param}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # annotations are resolved in a class' module
    exec(compile(PIECES[request.param], str(PAGE), "exec"), module.__dict__)
    return module


async def feed(client: Client, replica: Any, *classes: Any) -> None:
    """Give a replica all that its client has heard."""
    by_type = {spec_of(cls).type: cls for cls in classes}
    for received in await client.heard():
        replica.take(instance_of(by_type[received["type"]], received))


@pytest.mark.parametrize("example", [0], indirect=True)
async def test_the_board_is_the_same_for_all(autojump_clock: MockClock, example: Any) -> None:
    replica: DeltaReplica[dict[str, str]] = DeltaReplica(example.apply, {})
    async with open_house(example.router) as house:
        ann, bob = await house.connect(), await house.connect()
        ann.send("OPEN", {"rev": None})
        bob.send("PUT", {"key": "a", "value": "1", "clientReqId": None})
        bob.send("PUT", {"key": "b", "value": "2", "clientReqId": None})
        await feed(ann, replica, Snapshot, Deltas)
        assert replica.state == example.log.state == {"a": "1", "b": "2"}


@pytest.mark.parametrize("example", [1], indirect=True)
async def test_the_highest_bid_is_known_to_all(autojump_clock: MockClock, example: Any) -> None:
    replica: StateReplica[Any] = StateReplica("table", lambda state, bid: {"highest": max(state["highest"], bid)})
    async with open_house(example.router) as house:
        ann, bob = await house.connect(), await house.connect()
        ann.send("SIT")
        for seq, amount in ((1, 5), (2, 7), (2, 7), (3, 6)):
            bob.send("BID", {"seq": seq, "amount": amount})
        await feed(ann, replica, StateSync, StateUpdate)
        assert replica.state == example.table.state == {"highest": 7}
        assert replica.expected_seq == 4
        ann.send("CATCH_UP_REQUEST", {"topic": "table", "fromSeq": 2})
        assert [one["payload"]["seq"] for one in await ann.heard()] == [2, 3]


@pytest.mark.parametrize("example", [2], indirect=True)
async def test_a_sender_with_credits_is_never_dropped(autojump_clock: MockClock, example: Any) -> None:
    async with open_app(example.app) as app, trio.open_nursery() as nursery, client_of(app, nursery) as client:
        async with FlowSender.open(client, window=10) as sender, trio.open_nursery() as sending:
            for number in range(30):
                sending.start_soon(sender.send, example.Data(f"m{number}", number), f"m{number}")
        assert sender.resent == 0
        assert trio.current_time() == pytest.approx(3.0)
