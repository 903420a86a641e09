"""Whatever server, network, tokens and callers do, and in whatever order: each request has one end, order holds, and
nothing is left."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from operator import methodcaller
from typing import Any, final

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.client.guest import GuestRun
from tests.client.links import GetUser, Hello, News, Server, User, open_pair
from trio_wskit import Limits, QueueOptions, Reconnect, TokenAuth
from trio_wskit.client import Client, Stream
from trio_wskit.errors import ConnectFailed, ConnectionClosed, RpcError, ServerError, ValidationError, WsKitError

CALL_TIMEOUT = 25.0


@final
class Asked:
    """One request of the test, and how it ended."""

    def __init__(self, number: int, now: float) -> None:
        self.number = number
        self.at = now
        self.scope = trio.CancelScope()
        self.outcomes: list[object] = []
        self.deserved = {"cancelled"}  # what the server has sent for it


class ClientMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.run = GuestRun()
        self.server = Server()
        self.client: Client
        self.token_fails = 0
        self.sent = 0
        self.accepted: list[int] = []
        self.received: list[tuple[int, int]] = []  # link, number
        self.asked: dict[str, Asked] = {}
        self.given: list[tuple[int, str]] = []  # requests that reached the server: link, id
        self.aborted: list[str] = []
        self.news = 0
        self.seen_news: list[int] = []
        self.faults = 0
        self.closed = False
        self.nursery: trio.Nursery
        self.left = trio.Event()
        self.done = trio.Event()
        self.errors: list[Exception] = []

    # The client, in a task of its own.

    @initialize(queue=st.sampled_from(["drop_newest", "drop_oldest", "off"]))
    def begin(self, queue: Any) -> None:
        async def start() -> None:
            opened = trio.Event()

            async def live() -> None:
                async with open_pair(
                    self.server,
                    logged=[],
                    wait=False,
                    auth=TokenAuth(self.token),
                    queue=QueueOptions(policy=queue, max_messages=4, max_age=60),
                    reconnect=Reconnect(max_attempts=20),
                    limits=Limits(ping_interval=20, outbox_messages=2, call_timeout=CALL_TIMEOUT),
                    max_pending=5,
                ) as (self.client, _):
                    self.client.on_error(lambda error, _: self.errors.append(error))
                    async with (
                        trio.open_nursery() as self.nursery,
                        self.client.messages(News, capacity=2) as stream,
                    ):
                        self.nursery.start_soon(self.read_news, stream)
                        opened.set()
                        await self.left.wait()
                        self.nursery.cancel_scope.cancel()
                self.done.set()

            trio.lowlevel.spawn_system_task(live)
            await opened.wait()

        self.run.do(start)
        self.hear()

    async def read_news(self, stream: Stream[News]) -> None:
        with suppress(ConnectionClosed):
            async for news in stream:
                self.seen_news.append(int(news.text))
                await trio.sleep(0.1)

    async def token(self) -> str:
        if self.token_fails:
            self.token_fails -= 1
            raise OSError("the secret token")
        return "secret"

    def do(self, job: Callable[[], Awaitable[None]]) -> None:
        self.run.do(job)
        self.hear()

    def hear(self) -> None:
        """Read what has come to the server, unless it is stalled."""

        async def hear() -> None:
            for link, (transport, _) in enumerate(self.server.links):
                if not transport.reading.is_set():
                    continue
                for one in await self.server.heard(link):
                    if one["type"] == "HELLO":
                        self.received.append((link, int(one["payload"]["name"])))
                    elif one["type"] == "GET_USER":
                        self.given.append((link, one["meta"]["correlationId"]))
                    elif one["type"] == "$ws:abort":
                        self.aborted.append(one["meta"]["correlationId"])

        self.run.do(hear)

    # What callers do.

    @rule(times=st.integers(1, 6))
    def send(self, times: int) -> None:
        async def send_all() -> None:
            for _ in range(times):
                number, self.sent = self.sent, self.sent + 1
                with suppress(ConnectionClosed, WsKitError):
                    await self.client.send(Hello(str(number)))
                    self.accepted.append(number)

        async def start() -> None:
            self.nursery.start_soon(self.in_turn, send_all)

        if not self.closed:
            self.do(start)

    async def in_turn(self, job: Callable[[], Awaitable[None]]) -> None:
        # One sender at a time: only then there is an order to hold.
        if not hasattr(self, "lock"):
            self.lock = trio.Lock()
        async with self.lock:
            await job()

    @precondition(lambda self: not self.closed)
    @rule(patience=st.sampled_from([0.5, 5.0, 1000.0, 1000.0]), times=st.integers(1, 3))
    def request(self, patience: float, times: int) -> None:
        for _ in range(times):
            self.ask(patience)

    def ask(self, patience: float) -> None:
        asked = Asked(len(self.asked), self.run.clock.current_time())
        name = f"r{asked.number}"
        self.asked[name] = asked

        async def ask() -> None:
            outcome: object = "cancelled"
            asked.scope.deadline = trio.current_time() + patience
            with asked.scope:
                try:
                    outcome = await self.client.request(GetUser(name), correlation_id=name)
                except (ServerError, ValidationError, ConnectionClosed, WsKitError) as error:
                    outcome = error
            asked.outcomes.append(outcome)

        async def start() -> None:
            self.nursery.start_soon(ask)

        self.do(start)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        asked = self.asked[data.draw(st.sampled_from(sorted(self.asked)))]

        async def cancel() -> None:
            asked.scope.cancel()

        self.do(cancel)

    @precondition(lambda self: not self.closed)
    @rule(sure=st.integers(0, 9))
    def close(self, sure: int) -> None:
        async def close() -> None:
            self.nursery.start_soon(self.client.close, 4000, "enough")

        if sure == 9:
            self.closed = True
            self.do(close)

    # What the server does.

    def on_link(self, act: Callable[[], None]) -> None:
        async def do() -> None:
            if self.server.open_links:
                with suppress(ConnectionClosed, trio.WouldBlock):
                    act()

        self.do(do)

    @rule(
        kind=st.sampled_from(
            ["reply", "reply twice", "error", "plain error", "wrong type", "wrong payload", "progress"]
        ),
        data=st.data(),
    )
    def answer(self, kind: str, data: st.DataObject) -> None:
        here = [name for link, name in self.given if link == len(self.server.links) - 1]
        if not here:
            return
        name = data.draw(st.sampled_from(here))
        send = self.server.send
        acts: dict[str, Callable[[], None]] = {
            "reply": lambda: send("USER", {"name": name}, id=name, extra="ignored"),
            "reply twice": lambda: (send("USER", {"name": name}, id=name), send("USER", {"name": "no"}, id=name))[0],
            "error": lambda: send("RPC_ERROR", {"code": "ABORTED", "message": name}, id=name),
            "plain error": lambda: send("ERROR", {"code": "X", "message": name}, id=name),
            "wrong type": lambda: send("OTHER", {}, id=name),
            "wrong payload": lambda: send("USER", {"name": 5, "more": 1}, id=name),
            "progress": self.endless_progress(name),
        }
        self.asked[name].deserved.add(kind)
        self.on_link(acts[kind])

    @rule(
        text=st.one_of(
            st.sampled_from(['{"type":"__heartbeat_ack"}', '{"type":"$ws:abort"}', "[]", '{"type":5}', '{"type":"?"}']),
            st.text(max_size=20),
            st.sampled_from(['{"type":"USER","meta":{"correlationId":"nobody"},"payload":{"name":"x"}}']),
            st.just(json.dumps({"type": "RPC_ERROR", "meta": {"correlationId": "nobody"}})),
            st.integers(1, 5),
        )
    )
    def say(self, text: str | int) -> None:
        """Garbage; or as many news."""
        if isinstance(text, str):
            self.on_link(lambda: self.server.peer.send_nowait(text.encode(errors="replace")))
            return
        for _ in range(text):
            number, self.news = self.news, self.news + 1
            self.on_link(partial(self.server.send, "NEWS", {"text": str(number)}))

    def endless_progress(self, name: str) -> Callable[[], None]:
        def send() -> None:
            for number in range(300):
                self.server.send("$ws:rpc-progress", number, id=name)

        return send

    @rule(
        kind=st.sampled_from(["cut", "cut", "cut", "stall", "resume", "be born stalled", "be slow", "break a token"])
        | st.sampled_from([1000, 1001, 1008, 1011, 1012, 4000])
        | st.sampled_from([500, 429, None, KeyError("secret")])
        | st.sampled_from([1013, 4401, 401, 403, 503]),
        much=st.booleans(),
        sure=st.integers(0, 5),
    )
    def fail(self, kind: Any, much: bool, sure: int) -> None:
        """What a network and a server can do; a number is a close code, or the status of the next handshake."""
        if kind in (401, 403, 4401) and sure < 5:
            kind = "cut"  # what ends the client ends the test, too
        self.faults += 1
        server = self.server
        if isinstance(kind, Exception):
            server.failures.append(kind)
        elif kind is None or (isinstance(kind, int) and kind < 1000):
            server.refuse(kind, 3.0 if much else None)
        elif isinstance(kind, int):
            self.on_link(lambda: server.peer.close(kind, "why not"))
        elif kind == "be born stalled":
            server.born_stalled = True
        elif kind == "be slow":
            server.failures.append(11.0 if much else 1.0)
        elif kind == "break a token":
            self.token_fails += 1 + much
        else:
            self.on_link(lambda: methodcaller(kind)(server.peer))

    @rule(seconds=st.sampled_from([0.05, 0.05, 1.0, 1.0, 6.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.run.sleep(seconds)
        self.hear()

    # What always holds.

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
        numbers = [number for _, number in sorted(self.received)]
        assert numbers == sorted(set(numbers))
        by_link = [number for link in range(len(self.server.links)) for at, number in self.received if at == link]
        assert by_link == numbers

    @invariant()
    def nobody_waits_for_an_answer_on_a_connection_that_is_lost(self) -> None:
        last = len(self.server.links) - 1
        for link, name in self.given:
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
        elif self.client.state != "open":
            inside: Any = self.client
            queued = sum(one.on_sent is not None for one in inside._turns._queue._waiting)
            assert len(waiting) == queued, "somebody waits, and neither in the queue nor on a link"
        elif self.server.links[-1][0].reading.is_set():
            here = {name for link, name in self.given if link == len(self.server.links) - 1}
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
            assert [number for _, number in self.received] == self.accepted
        self.run.do(leave)
        self.run.sleep(1.0)
        assert self.done.is_set()


TestClient = ClientMachine.TestCase
TestClient.settings = settings(max_examples=80, stateful_step_count=50)
