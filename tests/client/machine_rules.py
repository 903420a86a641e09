"""What callers, servers, networks and tokens may do to a client, in whatever order: the half of a state machine."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from operator import methodcaller
from typing import Any, final

import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.client.guest import GuestRun
from tests.client.links import GetUser, Hello, News, Server, open_pair
from tests.client.queue_model import QueueModel, key_of
from trio_wskit import Limits, QueueOptions, Reconnect, TokenAuth
from trio_wskit.client import Client, Stream
from trio_wskit.errors import ConnectionClosed, ServerError, ValidationError, WsKitError

__all__ = ["CALL_TIMEOUT", "ClientRules"]

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


class ClientRules(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.run = GuestRun()
        self.server = Server()
        self.client: Client
        self.token_fails = 0
        self.sent = 0
        self.accepted: list[tuple[int, str]] = []  # link, or -1 where there was none; number
        self.received: list[tuple[int, str]] = []  # what reached the server: link, number or id
        self.asked: dict[str, Asked] = {}
        self.queue: QueueModel
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

    @initialize(
        policy=st.sampled_from(["drop_newest", "drop_oldest", "drop_oldest", "off"]),
        queued=st.sampled_from([(2, 10_000), (12, 500), (12, 10_000)]),
        age=st.sampled_from([0.7, 2.1, 60.0]),  # no patience ends at the same moment
        capacity=st.sampled_from([300, 65536]),
    )
    def begin(self, policy: Any, queued: tuple[int, int], age: float, capacity: int) -> None:
        self.server.capacity = capacity
        options = QueueOptions(policy=policy, max_messages=queued[0], max_bytes=queued[1], max_age=age)
        self.queue = QueueModel(options, self.still_waits, lambda: len(self.server.links) - 1)

        async def start() -> None:
            opened = trio.Event()

            async def live() -> None:
                async with open_pair(
                    self.server,
                    logged=[],
                    wait=False,
                    auth=TokenAuth(self.token),
                    queue=options,
                    reconnect=Reconnect(max_attempts=20),
                    limits=Limits(ping_interval=20, outbox_messages=2, call_timeout=CALL_TIMEOUT),
                    max_pending=5,
                ) as (self.client, _):
                    self.client.on_error(lambda error, _: self.errors.append(error))
                    inside: Any = self.client
                    self.queue.watch(inside._turns._queue)
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

    def still_waits(self, key: str) -> bool:
        return key not in self.asked or not self.asked[key].outcomes

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
                    if one["type"] in ("HELLO", "GET_USER"):
                        self.received.append((link, key_of(one)))
                    elif one["type"] == "$ws:abort":
                        self.aborted.append(one["meta"]["correlationId"])

        self.run.do(hear)

    # What callers do.

    @precondition(lambda self: not self.closed)
    @rule(times=st.integers(1, 6))
    def send(self, times: int) -> None:
        self.send_some(times)

    def send_some(self, times: int) -> None:
        async def send_all() -> None:
            for _ in range(times):
                number, self.sent = self.sent, self.sent + 1
                with suppress(ConnectionClosed, WsKitError):
                    await self.client.send(Hello(str(number)))
                    link = len(self.server.links) - 1 if self.client.state == "open" else -1
                    self.accepted.append((link, str(number)))

        async def start() -> None:
            self.nursery.start_soon(self.in_turn, send_all)

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
        here = [name for name in self.given if self.given[name] == len(self.server.links) - 1]
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

    @property
    def given(self) -> dict[str, int]:
        """The requests that reached the server, and on which link."""
        return {key: link for link, key in self.received if key in self.asked}

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

    @rule(
        refusals=st.integers(0, 6),
        before=st.integers(0, 2),
        requests=st.integers(0, 3),
        pause=st.sampled_from([0.0, 0.2, 0.8, 3.0]),
        times=st.integers(1, 12),
        stalled=st.booleans(),
    )
    def go_away(self, refusals: int, before: int, requests: int, pause: float, times: int, stalled: bool) -> None:
        """There is no server for a while; callers go on."""
        self.faults += 1
        for _ in range(0 if self.closed else before):
            self.ask(1000.0)
        for _ in range(refusals):
            self.server.refuse(503)
        self.server.born_stalled |= stalled
        self.on_link(self.server.peer.cut if self.server.links else lambda: None)
        if not self.closed:
            for _ in range(requests):
                self.ask(1000.0)
            self.wait(pause)
            self.send_some(times)

    @precondition(lambda self: not self.closed)
    @rule(times=st.integers(0, 9), requests=st.integers(0, 2))
    def come_back(self, times: int, requests: int) -> None:
        """There is a server again; if it does not read at first, then it does after a while."""
        self.server.failures.clear()
        self.token_fails = 0
        self.wait(6.0)
        self.send_some(times)
        for _ in range(requests):
            self.ask(1000.0)
        if self.server.links:
            self.on_link(self.server.peer.resume)

    @rule(seconds=st.sampled_from([0.05, 0.05, 1.0, 1.0, 6.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.run.sleep(seconds)
        self.hear()
