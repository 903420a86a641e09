"""Connections driven at random in virtual time: whatever comes in whatever order, each request gets its one answer.

Rules that hold at every moment
- A request with a correlation id gets at most one terminal answer, and nothing with this id after it.
- It gets exactly one while its connection lives; also where the app drains.
- An id that is in flight belongs to one call: no other runs with it, and nothing answers it before that call has ended.
- A drain ends with the last handler, not later.
- Progress comes in order; handlers of plain routes start in the order of their messages; events are served in order.
- In the end nothing is left behind: no task, no call, no lane, no key, no byte.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.client.guest import GuestRun
from tests.sessions import Client, House, open_house
from trio_wskit import (
    ConnectionClosed,
    Context,
    DrainReport,
    Limits,
    MemoryIdempotency,
    Router,
    Rpc,
    concurrent,
    keyed,
    message,
    serial,
)

Mode = Literal["reply", "early", "error", "raise", "nothing", "shield", "stubborn"]
Order = tuple[str, str, Mode, float, int, int | None, str | None]
MODES = st.sampled_from(["reply", "early", "error", "raise", "nothing", "shield", "stubborn"])
WHAT = (*["call"] * 10, *["abort"] * 4, *["again"] * 4, "note", "note", "garbage", "heartbeat", "large")
SECONDS = st.sampled_from([0.0, 0.0, 0.5, 2.0, 7.0])
KINDS = ("PLAIN", "SERIAL", "NARROW", "KEYED", "DETACHED", "HURRIED")


@message("DONE")
class Done:
    n: int


@message("PLAIN")
class Plain(Rpc[Done]):
    n: int = 0
    seconds: float = 0.0
    steps: int = 0
    mode: str = "reply"


@message("SERIAL")
class Serial(Rpc[Done]):
    n: int = 0
    seconds: float = 0.0
    steps: int = 0
    mode: str = "reply"


@message("NARROW")
class Narrow(Rpc[Done]):
    n: int = 0
    seconds: float = 0.0
    steps: int = 0
    mode: str = "reply"


@message("KEYED")
class Keyed(Rpc[Done]):
    n: int = 0
    seconds: float = 0.0
    steps: int = 0
    mode: str = "reply"


@message("DETACHED")
class Detached(Rpc[Done]):
    n: int = 0
    seconds: float = 0.0
    steps: int = 0
    mode: str = "reply"


@message("HURRIED")
class Hurried(Rpc[Done]):
    n: int = 0
    seconds: float = 0.0
    steps: int = 0
    mode: str = "reply"


@message("NOTE")
class Note:
    n: int
    seconds: float = 0.0


@message("NOTED")
class Noted:
    n: int


class Record:
    """What the handlers do, as they know it themselves.

    Attributes:
        begun: of each client the numbers of its plain calls, in the order of their starts.
        running: of each client and correlation id the number of the call that runs and has not answered.
        wrong: what must not be.
        last_end: when a handler ended last.
    """

    def __init__(self) -> None:
        self.begun: dict[str, list[int]] = defaultdict(list)
        self.running: dict[tuple[str, str], int] = {}
        self.wrong: list[str] = []
        self.last_end = 0.0

    @contextmanager
    def at_work(self, ctx: Context[Any]) -> Generator[None]:
        who = (ctx.client_id, ctx.correlation_id or "")
        number: int = ctx.payload.n
        if ctx.is_rpc:
            if who in self.running:
                self.wrong.append(f"the calls {self.running[who]} and {number} run with one id")
            self.running[who] = number
        try:
            yield
        finally:
            self.last_end = trio.current_time()
            if self.running.get(who) == number:
                del self.running[who]


def router_of(record: Record) -> Router:
    router = Router()

    async def work(ctx: Context[Any]) -> Any:
        with record.at_work(ctx):
            return await do(ctx)

    async def do(ctx: Context[Any]) -> Any:
        order: Plain = ctx.payload  # they are all alike
        if ctx.type == "PLAIN":
            record.begun[ctx.client_id].append(order.n)
        for step in range(order.steps):
            ctx.progress(step)
        if order.mode == "early":
            await ctx.reply(Done(order.n))
            record.running.pop((ctx.client_id, ctx.correlation_id or ""), None)
        try:
            await trio.sleep(order.seconds)
        except trio.Cancelled:
            if order.mode == "stubborn":
                raise KeyError("failed while it was cancelled") from None
            if order.mode == "shield":
                with ctx.shield(0.3):
                    await trio.sleep(0.2)
            raise
        if order.mode == "error":
            ctx.error("NOT_FOUND")
        if order.mode == "raise":
            raise KeyError(order.n)
        return None if order.mode == "nothing" else Done(order.n)

    router.rpc(Plain)(work)
    router.rpc(Serial, lane=serial)(work)
    router.rpc(Narrow, lane=concurrent(1))(work)
    router.rpc(Keyed, lane=keyed(lambda ctx: ctx.payload.n % 2))(work)
    router.rpc(Detached, detached=True)(work)
    router.rpc(Hurried, timeout=1)(work)

    @router.on(Note)
    async def note(ctx: Context[Note]) -> None:
        with record.at_work(ctx):
            if ctx.payload.seconds:
                await trio.sleep(ctx.payload.seconds)
            with suppress(ConnectionClosed):
                await ctx.send(Noted(ctx.payload.n))

    return router


class Link:
    """One client, and what it has sent and heard."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.sent: Counter[str] = Counter()
        self.before_drain: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()  # refused, for a call with this id ran
        self.steps: dict[str, int] = {}
        self.noted: list[int] = []
        self.left = False  # by us
        self.ended: list[str] = []  # ids that were answered since we last asked

    def take(self, one: dict[str, Any]) -> None:
        kind, call = one["type"], one["meta"].get("correlationId")
        if kind == "$ws:rpc-progress":
            assert self.answered[call] < self.sent[call], "progress after the answer"
            if self.sent[call] == 1:
                assert one["payload"] == self.steps.get(call, -1) + 1, "progress out of order"
                self.steps[call] = one["payload"]
        elif kind in ("DONE", "RPC_ERROR"):
            self.answered[call] += 1
            self.ended.append(call)
            assert self.answered[call] + self.taken[call] <= self.sent[call], "a second answer"
        elif kind == "ERROR" and one["payload"]["code"] == "ALREADY_EXISTS":
            self.taken[one["payload"]["details"]["correlationId"]] += 1
        elif kind == "NOTED":
            self.noted.append(one["payload"]["n"])


class ConnectionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.run = GuestRun()
        self.links: list[Link] = []
        self.house: House
        self.count = 0
        self.record = Record()
        self.ran_before: dict[tuple[str, str], int] = {}
        self.store: MemoryIdempotency
        self.drained: DrainReport | None = None
        self.draining = False
        self.drain_began = self.drain_ended = 0.0
        self.leave = trio.Event()
        self.failed: BaseException | None = None
        self.ended = trio.Event()

    @initialize()
    def begin(self) -> None:
        async def start() -> None:
            opened = trio.Event()
            self.store = MemoryIdempotency(clock=trio.current_time, max_age=30)

            async def live() -> None:
                limits = Limits(max_in_flight=8, max_payload_bytes=600, max_protocol_errors=20, call_timeout=6)
                try:
                    async with open_house(router_of(self.record), limits=limits, idempotency=self.store) as self.house:
                        opened.set()
                        await self.leave.wait()
                        self.house.logged()
                except BaseException as error:
                    self.failed = error
                self.ended.set()

            trio.lowlevel.spawn_system_task(live)
            await opened.wait()

        self.run.do(start)
        self.connect()

    def alive(self) -> list[Link]:
        return [link for link in self.links if not link.left]

    def hear(self) -> None:
        async def hear() -> None:
            for link in self.links:
                for one in await link.client.heard():
                    link.take(one)

        self.run.do(hear)
        running, before = self.record.running, self.ran_before
        for link in self.links:
            for call in link.ended:
                who = (link.client.client_id, call)
                # It ran when we last looked and runs still: what has come meanwhile is no answer of it.
                assert who not in running or running[who] != before.get(who), f"{call} is answered while it runs"
            link.ended.clear()
        assert self.record.wrong == []
        self.ran_before = dict(running)

    def number(self) -> int:
        self.count += 1
        return self.count

    @precondition(lambda self: len(self.links) < 4 and not self.draining)
    @rule()
    def connect(self) -> None:
        async def connect() -> None:
            self.links.append(Link(await self.house.connect()))

        self.run.do(connect)

    @precondition(lambda self: self.alive())
    @rule(
        data=st.data(),
        orders=st.lists(
            st.tuples(
                st.sampled_from(WHAT),
                st.sampled_from(KINDS),
                MODES,
                SECONDS,
                st.integers(0, 3),
                st.sampled_from([None, None, 300, 3_000]),
                st.sampled_from([None, None, None, "k1", "k2"]),
            ),
            min_size=2,
            max_size=8,
        ),
    )
    def send(
        self, data: st.DataObject, orders: list[tuple[str, str, Mode, float, int, int | None, str | None]]
    ) -> None:
        """Several messages in one read."""
        link = data.draw(st.sampled_from(self.alive()), "link")

        async def send() -> None:
            with suppress(ConnectionClosed, trio.WouldBlock):
                for order in orders:
                    self._send(link, *order)

        self.run.do(send)
        self.hear()

    def _send(
        self, link: Link, what: str, kind: str, mode: Mode, seconds: float, steps: int, ms: int | None, key: str | None
    ) -> None:
        client = link.client
        known = list(link.sent)
        if what in ("call", "again"):
            n = self.number()
            call = str(n)
            if what == "again" and known:  # with the id of one that runs, where there is one
                run = [one for who, one in self.record.running if who == client.client_id and one in link.sent]
                call = run[n % len(run)] if run else known[-1 - n % min(4, len(known))]
            meta: dict[str, object] = {}
            if ms is not None:
                meta["timeoutMs"] = ms
            if key is not None:
                meta["idempotencyKey"] = key
            payload = {"n": n, "seconds": seconds, "steps": steps, "mode": mode}
            client.send(kind, payload, call_id=call, **meta)
            link.sent[call] += 1
        elif what == "abort":
            client.send(
                "$ws:abort", correlationId=known[-1 - self.number() % min(4, len(known))] if known else "nobody"
            )
        elif what == "note":
            client.send("NOTE", {"n": self.number(), "seconds": seconds})
        elif what == "heartbeat":
            client.send("__heartbeat")
        else:
            client.peer.send_nowait("{garbage" if what == "garbage" else "x" * 700)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 3.0]))
    def sleep(self, seconds: float) -> None:
        self.run.sleep(seconds)
        self.hear()

    @precondition(lambda self: len(self.alive()) > 1)
    @rule(data=st.data(), clean=st.booleans())
    def disconnect(self, data: st.DataObject, clean: bool) -> None:
        link = data.draw(st.sampled_from(self.alive()), "link")
        link.left = True

        async def disconnect() -> None:
            if clean:
                link.client.peer.close()
            else:
                link.client.peer.cut()

        self.run.do(disconnect)
        self.hear()

    @precondition(lambda self: not self.draining and self.count > 25)
    @rule(seconds=st.sampled_from([0.0, 1.0, 20.0]))
    def drain(self, seconds: float) -> None:
        self.draining = True

        async def drain() -> None:
            self.drain_began = trio.current_time()
            self.drained = await self.house.app.drain(seconds)
            self.drain_ended = trio.current_time()

        async def begin() -> None:
            for link in self.links:
                link.before_drain = Counter(link.sent)
            self.house.nursery.start_soon(drain)

        self.run.do(begin)
        self.hear()

    def teardown(self) -> None:
        if not hasattr(self, "house"):
            return
        try:
            while any(link.client.session.waiting_messages for link in self.links):  # many serial ones in a line
                self.run.sleep(20)
            self.run.sleep(40)
            self.hear()
            for link in self.links:
                self._check(link)
            if self.draining:
                assert self.drained is not None, "the drain hangs"
                until = max(self.drain_began, self.record.last_end)
                assert self.drain_ended == until, f"the drain ended {self.drain_ended - until} s too late"
            self.run.do(self._leave)
            self.run.sleep(20)
            assert self.ended.is_set(), "the app hangs"
            if self.failed is not None:
                raise self.failed
            assert self.store.running == 0
        finally:
            self.run.close()

    async def _leave(self) -> None:
        self.leave.set()
        await trio.lowlevel.checkpoint()

    def _check(self, link: Link) -> None:
        assert link.noted == sorted(link.noted), "events out of order"
        begun = self.record.begun[link.client.client_id]
        assert begun == sorted(begun), "calls started out of order"
        session: Any = link.client.session  # its inside, too
        owed = link.before_drain if self.draining else link.sent
        if link.left or (session.close_code is not None and not self.draining) or session.close_code == 1008:
            return  # too many protocol errors, or it left
        for call, times in owed.items():
            answers = link.answered[call] + link.taken[call]
            assert answers >= times, f"{call} was sent {times} times and answered {answers} times"
        assert len(session._dispatcher.lanes) == 0


TestConnection = ConnectionMachine.TestCase
TestConnection.settings = settings(max_examples=40, stateful_step_count=25)
