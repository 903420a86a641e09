from __future__ import annotations

import json

import pytest

from trio_wskit._core.envelope import Envelope
from trio_wskit._core.history import Position
from trio_wskit._core.schema import spec_of
from trio_wskit._core.subscribing import Subscribe, Subscribed, Unsubscribe, Unsubscribed


def test_what_is_not_known_is_left_out() -> None:
    """A strict server of another make knows no more than the topic."""
    assert json.loads(spec_of(Subscribe).encode(Subscribe("t"), {}))["payload"] == {"topic": "t"}
    assert json.loads(spec_of(Subscribed).encode(Subscribed("t"), {}))["payload"] == {"topic": "t"}
    assert json.loads(spec_of(Unsubscribe).encode(Unsubscribe("t"), {}))["payload"] == {"topic": "t"}


def test_each_request_names_its_answer() -> None:
    assert spec_of(Subscribe).reply is spec_of(Subscribed)
    assert spec_of(Unsubscribe).reply is spec_of(Unsubscribed)


@pytest.mark.parametrize("recovered", [True, False])
def test_an_answer_with_a_position(recovered: bool) -> None:
    payload = {"topic": "t", "recovered": recovered, "epoch": "e", "offset": 7}
    assert spec_of(Subscribed).structure(Envelope("SUBSCRIBED", {}, payload)) == Subscribed("t", recovered, "e", 7)


def test_a_position_in_a_request() -> None:
    payload = {"topic": "t", "since": {"epoch": "e", "offset": 7}}
    subscribe = Subscribe("t", Position("e", 7))
    assert spec_of(Subscribe).structure(Envelope("SUBSCRIBE", {}, payload)) == subscribe
    assert json.loads(spec_of(Subscribe).encode(subscribe, {}))["payload"] == payload
