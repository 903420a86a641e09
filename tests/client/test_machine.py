"""Whatever server, network, tokens and callers do, and in whatever order: each request has one end, order holds, each
frame comes once, the queue drops what it should and tells so, and nothing is left."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import invariant

from tests.client.links import User
from tests.client.machine_rules import CALL_TIMEOUT, ClientRules
from trio_wskit.errors import ConnectFailed, RpcError, ServerError, ValidationError, WsKitError

pytestmark = pytest.mark.timeout(180)  # seven seconds, and ten times that on a busy machine


class ClientMachine(ClientRules):
    @invariant()
    def each_request_has_at_most_one_end_and_it_is_one_that_it_deserves(self) -> None:
        for name, asked in self.asked.items():
            assert len(asked.outcomes) <= 1
            for outcome in asked.outcomes:
                if isinstance(outcome, User):
                    assert outcome == User(name)
                    assert asked.deserved & {"reply", "reply twice"}
                elif isinstance(outcome, RpcError):
                    assert outcome.code == "DEADLINE_EXCEEDED" or "error" in asked.deserved
                elif isinstance(outcome, ServerError):
                    assert "plain error" in asked.deserved
                elif isinstance(outcome, ValidationError):
                    assert asked.deserved & {"wrong type", "wrong payload"}

    @invariant()
    def what_was_sent_arrives_in_its_order_and_once(self) -> None:
        in_turn = sorted(self.received, key=lambda one: one[0])
        numbers = [int(key) for _, key in in_turn if key not in self.asked]
        assert numbers == sorted(numbers)
        assert len({key for _, key in self.received}) == len(self.received), "a frame came twice"
        assert len(set(self.aborted)) == len(self.aborted), "a request was aborted twice"

    @property
    def reading(self) -> int | None:
        """The number of the present connection, if it is in order and the server reads."""
        links = self.server.links
        if hasattr(self, "client") and self.client.state == "open" and links[-1][0].reading.is_set():
            return len(links) - 1
        return None

    @invariant()
    def what_was_accepted_on_a_connection_that_lives_has_come(self) -> None:
        if self.reading is not None:
            assert {one for one in self.accepted if one[0] == self.reading} <= set(self.received)

    @invariant()
    def what_waited_comes_first_on_the_next_connection_and_nothing_else_that_waited(self) -> None:
        if not hasattr(self, "queue"):
            return
        for link, first in self.queue.first.items():
            came = [key for at, key in self.received if at == link]
            assert came[: len(first)] == first[: len(came)]
            assert link != self.reading or len(came) >= len(first), "what waited was not sent"

    @invariant()
    def what_the_queue_drops_is_counted_and_told(self) -> None:
        if not hasattr(self, "client"):
            return
        model, stats = self.queue, self.client.stats
        model.drop_old(self.run.clock.current_time())
        assert stats.queued == len(model.waiting)
        assert stats.queue_dropped == len(model.dropped) + model.refused + model.cleared
        told = [one for one in self.errors if type(one) is WsKitError]
        texts = [str(one) for one in told]
        assert sum(text.startswith("UNAVAILABLE: ") for text in texts) == len(model.dropped)
        assert sum("the offline queue is full" in text for text in texts) == model.refused
        for key, asked in self.asked.items():
            dropped = [one for one in asked.outcomes if getattr(one, "code", None) == "UNAVAILABLE"]
            assert len(dropped) == (key in model.dropped), f"{key} was dropped: {asked.outcomes}"

    @invariant()
    def nobody_waits_for_an_answer_on_a_connection_that_is_lost(self) -> None:
        last = len(self.server.links) - 1
        for name, link in self.given.items():
            if link < last or not self.server.open_links:
                assert self.asked[name].outcomes, f"{name} was sent on a connection that is lost"

    @invariant()
    def who_waits_for_an_answer_waits_in_the_queue_or_on_the_connection(self) -> None:
        if not hasattr(self, "client"):
            return
        waiting = {name for name, asked in self.asked.items() if not asked.outcomes}
        assert self.client.stats.pending == len(waiting)
        if self.client.state == "closed":
            assert not waiting, "the client is closed, and somebody waits"
        elif self.client.state in ("connecting", "reconnecting"):  # one that closes may have some who wait for room
            inside: Any = self.client
            queued = sum(one.on_sent is not None for one in inside._turns._queue._waiting)
            assert len(waiting) == queued, "somebody waits, and neither in the queue nor on a link"
        elif self.reading is not None:
            here = {name for name, link in self.given.items() if link == len(self.server.links) - 1}
            assert waiting <= here, "somebody waits for an answer to what was never sent"

    @invariant()
    def nobody_waits_longer_than_the_time_limit(self) -> None:
        now = self.run.clock.current_time()
        for name, asked in self.asked.items():
            assert asked.outcomes or now < asked.at + CALL_TIMEOUT, f"{name} waits for ever"

    @invariant()
    def a_request_that_was_given_up_on_is_aborted_and_no_other(self) -> None:
        for name in self.aborted:
            assert self.asked[name].outcomes, f"{name} was aborted, and its caller waits"
            for outcome in self.asked[name].outcomes:
                assert outcome == "cancelled" or getattr(outcome, "code", None) == "DEADLINE_EXCEEDED"

    @invariant()
    def news_come_in_their_order(self) -> None:
        assert self.seen_news == sorted(set(self.seen_news))

    @invariant()
    def there_is_one_connection_at_most(self) -> None:
        assert self.server.most_at_once <= 1

    @invariant()
    def no_exception_shows_the_token(self) -> None:
        for asked in self.asked.values():
            assert "secret" not in str(asked.outcomes)

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.finish()
        self.run.close()

    def finish(self) -> None:
        async def leave() -> None:
            if self.server.links:
                self.server.peer.resume()
            self.left.set()

        asked = list(self.asked.values())

        async def close() -> None:
            self.nursery.start_soon(self.client.close)

        self.run.do(close)
        self.run.sleep(30.0)
        assert self.client.state == "closed"
        assert all(len(one.outcomes) == 1 for one in asked), "a request is left hanging"
        assert not any(isinstance(one.outcomes[0], ConnectFailed) and "secret" in str(one) for one in asked)
        self.hear()
        if not self.faults and self.client.stats.queue_dropped == 0 and self.client.stats.connects == 1:
            hellos = [key for _, key in self.received if key not in self.asked]
            assert hellos == [key for _, key in self.accepted]
        self.run.do(leave)
        self.run.sleep(1.0)
        assert self.done.is_set()


TestClient = ClientMachine.TestCase
TestClient.settings = settings(max_examples=120, stateful_step_count=50)
