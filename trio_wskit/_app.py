"""The composition root: a router, its services, and the nursery in which they live."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, cast, final

import trio

from trio_wskit._budget import ByteBudget
from trio_wskit._compiled import compile_routes
from trio_wskit._core.frames import close_frame
from trio_wskit._core.handshake import Request
from trio_wskit._core.keeping import HistoryRules, keep_by
from trio_wskit._core.options import Limits
from trio_wskit._core.overflow import Overflow, check_overflow
from trio_wskit._core.publishing import PublishResult
from trio_wskit._core.terms import TermsBook
from trio_wskit._core.topics import TopicRules
from trio_wskit._door import Admission, Authenticate, Door, Place
from trio_wskit._drain import run_drain
from trio_wskit._flusher import Flusher
from trio_wskit._heartbeat import Heartbeat
from trio_wskit._idempotency import MemoryIdempotency
from trio_wskit._lease import AuthLease, LeaseKeeper
from trio_wskit._router import Router
from trio_wskit._services import Services
from trio_wskit._session import Session
from trio_wskit._work import Drain, DrainReport, Work
from trio_wskit.abc import BrokeredDriver, HistoryStore, IdempotencyStore, PubSubDriver, Transport
from trio_wskit.errors import ConfigError, ConnectionClosed, PubSubError, Reject, WsKitError
from trio_wskit.presence._presence import Presence
from trio_wskit.pubsub._desk import Desk
from trio_wskit.pubsub._fanout import BackpressureCounts
from trio_wskit.pubsub._history import Histories
from trio_wskit.pubsub._hub import Hub
from trio_wskit.pubsub._policy import PubSubPolicy
from trio_wskit.pubsub._publisher import Publisher
from trio_wskit.pubsub._throttle import ThrottledPublisher, ThrottleMode, open_throttled
from trio_wskit.pubsub.history import MemoryHistory
from trio_wskit.pubsub.memory import MemoryPubSub

__all__ = ["App", "open_app"]

logger = logging.getLogger("trio_wskit")

_REASON_BYTES: Final = 123  # RFC 6455 section 5.5: a control frame carries 125 bytes, two of them the code


@final
class App:
    """A router and what it needs to run: limits, authentication, a pub/sub driver.

    An app runs inside ``async with open_app(app)``; `serve` does that for you.

    Attributes:
        router: the handlers.
        limits: the bounds.
        door: lets connections in; `admit` holds it open.

    Args:
        router: the handlers.
        authenticate: ``async def authenticate(request)`` returns the connection's data (any object but None), or None
            for 401, or raises `Reject`. Anything else that it raises is a 500 without detail. Without it, everybody
            gets in, and the data is an empty dict.
        subprotocols: those that the server speaks, the best first; the first that a client offers too is chosen. None:
            the first that the client offers, whatever it is: browsers hang up where they offered some and none is
            chosen, and ws-kit's clients offer one to carry their token.
        origins: pages that may connect, such as ``{"https://example.org"}``; ``{"*"}`` for all. None: only pages from
            the host that they connect to.
        limits: the bounds.
        pubsub: the driver; by default a `MemoryPubSub` of its own. What `with_broker` gives is run while the app is
            open.
        topics: what a topic may be called, and how many there may be.
        policy: who may subscribe and publish, and hooks for both.
        history: which topics keep a history, and how much: a mapping from topics and patterns to `History`, of which
            the first that matches counts; or a function from the topic to a `History` or None.
        history_store: where it is kept; by default a `MemoryHistory` of its own.
        overflow: what happens to a subscriber that does not read fast enough: ``disconnect`` it with 1013,
            ``drop_oldest`` or ``drop_newest`` where its outbox is full, `conflate` or `block`; or a function from the
            topic to one of these, which is asked when somebody is behind.
        budget: bytes that may wait in all outboxes together; Apps may share one. None: a budget of its own, of 256 MiB.
            When there are more, clients are disconnected with 1013, first the one whose socket has taken nothing for
            longest.
        identity: names the client from its `Admission` (whose ``data`` is what `authenticate` returned), as text that
            is the same on each of its connections: ``lambda who: who.data["user_id"]``. None, or without it: the client
            id. Connections are counted by it, and idempotency keys belong to it.
        idempotency: what remembers the answers to calls with a ``meta.idempotencyKey``: True for a `MemoryIdempotency`,
            False for none, or a store.
        lease: when an authentication ends, and how it is renewed.
        presence: knows who is there; None for no such thing.
        close_on_unauthenticated: close with 1008 who gets the error UNAUTHENTICATED.
        close_on_permission_denied: close with 1008 who gets the error PERMISSION_DENIED.
        wall_clock: gives seconds since 1970, for timestamps on the wire and leases.

    Raises:
        ConfigError: an argument is of the wrong kind.
    """

    def __init__(
        self,
        router: Router,
        *,
        authenticate: Authenticate | None = None,
        subprotocols: Sequence[str] | None = None,
        origins: Collection[str] | None = None,
        limits: Limits | None = None,
        pubsub: PubSubDriver | None = None,
        topics: TopicRules | None = None,
        policy: PubSubPolicy | None = None,
        history: HistoryRules | None = None,
        history_store: HistoryStore | None = None,
        overflow: Overflow | Callable[[str], Overflow] = "disconnect",
        budget: ByteBudget | None = None,
        identity: Callable[[Admission], str | None] | None = None,
        idempotency: IdempotencyStore | bool = True,
        lease: AuthLease | None = None,
        presence: Presence | None = None,
        close_on_unauthenticated: bool = False,
        close_on_permission_denied: bool = False,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(cast("object", router), Router):
            raise ConfigError(f"App takes a Router, not {router!r}")
        if isinstance(origins, str):
            raise ConfigError(f"origins takes a set of origins, not the text {origins!r}")
        if not callable(overflow):
            check_overflow(overflow)
        if budget is not None and not isinstance(cast("object", budget), ByteBudget):
            raise ConfigError(f"budget takes a ByteBudget, not {budget!r}")
        self.router: Router = router
        self.limits: Limits = limits or Limits()
        if isinstance(subprotocols, str):
            raise ConfigError(f"subprotocols takes a list, not the text {subprotocols!r}")
        self._subprotocols = None if subprotocols is None else tuple(subprotocols)
        self._driver = pubsub if pubsub is not None else MemoryPubSub()
        rules = topics or TopicRules()
        terms = TermsBook()
        self._hub = Hub(self._driver, overflow, rules.max_publishing, budget=budget, terms=terms, wall_clock=wall_clock)
        self._idempotency: IdempotencyStore | None = (
            (MemoryIdempotency() if idempotency else None) if isinstance(idempotency, bool) else idempotency
        )
        self._lease = lease
        self._closing_codes = frozenset(
            code
            for code, closes in (
                ("UNAUTHENTICATED", close_on_unauthenticated),
                ("PERMISSION_DENIED", close_on_permission_denied),
            )
            if closes
        )
        self._wall_clock = wall_clock
        self._services: Services | None = None  # there while the app is open
        self._sessions: dict[str, Session] = {}
        self._presence = presence
        policy = policy or PubSubPolicy()
        if presence is not None:
            if not isinstance(cast("object", presence), Presence):
                raise ConfigError(f"presence=… takes a Presence, not {presence!r}: a store goes into Presence(store)")
            policy = presence.guarded(policy)
        self._desk = Desk(self._driver, rules, policy, self._sessions.get, terms)
        if history is not None:
            self._desk.histories = Histories(
                keep_by(history),
                MemoryHistory() if history_store is None else history_store,
                self._hub,
                limit=self.limits.outbox_messages,
                max_publishing=rules.max_publishing,
                wall_clock=wall_clock,
                client_of=self._sessions.get,
            )
        elif history_store is not None:
            raise ConfigError("history_store is where history= is kept: say which topics keep one")
        self._publisher = Publisher(self._hub, self._desk, lambda: self.router.hooks, wall_clock, lambda: self.is_open)
        self.door: Door = Door(
            self.limits,
            lambda: self.router.hooks,
            lambda: self._takes_connections,
            authenticate=authenticate,
            origins=origins,
            identity=identity,
            wall_clock=wall_clock,
        )
        self._brokered = self._driver if isinstance(self._driver, BrokeredDriver) else None
        self._draining = False
        self._drained: trio.Event | None = None  # there while a drain runs, and after
        self._report: DrainReport | None = None
        self._last_gone: trio.Event | None = None  # who waits for the last session
        self._broker_failure: PubSubError | None = None

    def __repr__(self) -> str:
        return f"<App of {self.router!r}, {len(self._sessions)} sessions>"

    @property
    def sessions(self) -> Collection[Session]:
        """A snapshot of the connected clients."""
        return tuple(self._sessions.values())

    @property
    def presence(self) -> Presence:
        """Who is there.

        Raises:
            RuntimeError: the app was made without a `Presence`.
        """
        if self._presence is None:
            raise RuntimeError("the app knows no presence: App(router, presence=Presence())")
        return self._presence

    @property
    def is_open(self) -> bool:
        """True inside ``async with open_app(app)``."""
        return self._services is not None

    @property
    def ready(self) -> bool:
        """True while the app is open, takes new connections, and hears its brokers.

        One that does not hear its brokers for a while serves its clients all the same.
        """
        return self._takes_connections and (self._brokered is None or self._brokered.ready)

    @property
    def _takes_connections(self) -> bool:
        return self._services is not None and not self._draining

    async def wait_ready(self) -> None:
        """Wait until the app hears its brokers. It may be so no more when this returns.

        Raises:
            RuntimeError: the app is not open.

        Cancelled: nothing has changed.
        """
        self._opened()
        if self._brokered is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._brokered.wait_ready()

    @property
    def backpressure(self) -> BackpressureCounts:
        """What subscribers that were behind did not get, in total. It goes on counting."""
        return self._hub.counts

    @property
    def budget(self) -> ByteBudget:
        """The bytes that may wait in all outboxes together, and how many do."""
        return self._hub.budget

    def _opened(self) -> Services:
        if self._services is None:
            raise RuntimeError("the app is not open: use it inside `async with open_app(app)`, or let serve() open it")
        return self._services

    @asynccontextmanager
    async def lifetime(self, shutdown_code: int) -> AsyncGenerator[None]:
        """See `open_app`."""
        if self._services is not None:
            raise RuntimeError("the app is open already")
        flusher = self._hub.flusher = Flusher(self.limits)
        heartbeat = Heartbeat(self._sessions, self.limits)
        leases = LeaseKeeper(self._sessions, self._lease, self._wall_clock)
        routes, plain_routes = compile_routes(
            tuple(self.router.routes), self.router.middleware, counts_calls=self.limits.max_calls is not None
        )
        failed: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                self._services = Services(
                    limits=self.limits,
                    routes=routes,
                    plain_routes=plain_routes,
                    hooks=self.router.hooks,
                    hub=self._hub,
                    desk=self._desk,
                    flusher=flusher,
                    publish=self._publisher.publish,
                    work=Work(self.limits, nursery),
                    idempotency=self._idempotency,
                    leases=leases,
                    presence=self._presence,
                    closing_codes=self._closing_codes,
                    shutdown_code=shutdown_code,
                    wall_clock=self._wall_clock,
                )
                nursery.start_soon(flusher.run)
                nursery.start_soon(heartbeat.run)
                nursery.start_soon(leases.run)
                if self._desk.histories is not None:
                    nursery.start_soon(self._desk.histories.run)
                try:
                    if self._presence is not None:
                        await nursery.start(self._presence.run, self._desk, self._publisher.publish, self._refuse)
                    if self._brokered is not None:
                        await nursery.start(self._listen, self._brokered, nursery.cancel_scope)
                    yield
                except BaseException as error:  # it leaves below, without the group that the nursery would make of it
                    failed = error
                self._draining = True
                try:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + self.limits.close_timeout):
                        await self.close_sessions(shutdown_code, "going away")
                        if self._sessions:
                            self._last_gone = trio.Event()
                            await self._last_gone.wait()
                finally:
                    flusher.stop()  # it is shielded: nothing else ends it
                nursery.cancel_scope.cancel()
            if self._broker_failure is not None:
                raise self._broker_failure
            if failed is not None:
                raise failed
        finally:
            self._services = self._last_gone = self._hub.flusher = None
            self._draining = False
            self._drained = self._report = self._broker_failure = None
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self.limits.close_timeout):
                await self._driver.aclose()

    async def _listen(
        self, brokered: BrokeredDriver, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Run the way in. Should it fail, everything is cancelled, and `lifetime` raises the failure, bare."""
        try:
            await brokered.run(self._publisher.deliver, missed=self._missed, task_status=task_status)
        except PubSubError as error:
            self._broker_failure = error
            scope.cancel()

    def _refuse(self, client_id: str, error: WsKitError) -> None:
        session = self._sessions.get(client_id)
        if session is not None:
            session.refuse(error, None)

    async def _missed(self) -> None:
        """Tell those who asked that something may have been missed, of any topic."""
        if self._desk.histories is not None:
            self._desk.histories.doubt()
        await self._hub.announce_gap(None)

    async def close_sessions(self, code: int = 1001, reason: str = "") -> None:
        """Close every connection at the same time; waits until all are closed, at most ``close_timeout`` seconds each.

        Raises:
            LocalProtocolError: the code may not be sent, or the reason is too long; nothing has happened.

        Cancelled: those not closed yet are aborted.
        """
        close_frame(code, reason)  # refuses what cannot be sent
        async with trio.open_nursery() as nursery:
            for session in self.sessions:
                nursery.start_soon(session.close, code, reason)

    async def drain(self, seconds: float, *, code: int = 1012, spread: float = 5.0) -> DrainReport:
        """End without a loss, before you leave ``async with open_app(app)``: there is no way back.

        From now on `ready` is False, handshakes are refused with 503 and new messages with UNAVAILABLE. What runs may
        finish; what has not after so many seconds is cancelled, and its client told so. Then everybody is sent away.

        Args:
            seconds: for the handlers that run; 0 cancels them at once.
            code: what connections are closed with: 1012 service restart, or 1001 going away.
            spread: clients are told to come back after 1 to 1 + `spread` seconds, each after another time, so that they
                do not come all at once.

        Returns:
            What came of it. A second drain waits for the first, and returns the same.

        Raises:
            ConfigError: the code is another one, or a time is below 0.
            RuntimeError: the app is not open.

        Cancelled: nothing new starts any more; what runs goes on, and nobody is closed yet.
        """
        work = self._opened().work
        if code not in (1001, 1012):
            raise ConfigError(f"drain(code=…) takes 1001 or 1012, not {code!r}")
        if not seconds >= 0 or not 0 <= spread < math.inf:
            raise ConfigError(f"drain() takes seconds of at least 0, not {seconds!r} and a spread of {spread!r}")
        if self._drained is None:
            self._drained = trio.Event()
            self._draining = True
            drain = Drain(lambda: random.uniform(1.0, 1.0 + spread))
            closed = partial(self.close_sessions, code, "shutting down")
            try:
                self._report = await run_drain(work, drain, lambda: self.sessions, seconds, closed)
            finally:
                self._drained.set()
        await self._drained.wait()
        if self._report is None:
            raise RuntimeError("the drain was given up")
        return self._report

    def admit(self, request: Request) -> AbstractAsyncContextManager[Admission]:
        """Decide about a handshake, and hold its place while the block runs: put the whole connection into the block.

        Example:
            >>> async with app.admit(request) as admission:
            ...     await app.serve_session(transport, admission)

        Raises:
            Reject: with the HTTP answer: 403 for an Origin that is not allowed, 429 over a limit, 503 while the app
                drains, 401, or what `authenticate` raised.

        Cancelled: the place is free again.
        """
        self._opened()
        return Place(self.door, request)

    def subprotocols_for(self, request: Request) -> Sequence[str]:
        """Those that may be chosen for this handshake, the best first."""
        return request.subprotocols[:1] if self._subprotocols is None else self._subprotocols

    async def serve_session(self, transport: Transport, request: Request | Admission) -> None:
        """Serve an accepted WebSocket until it is closed.

        Args:
            transport: the open connection.
            request: what `admit` gave, inside its block; or a plain request, which is then admitted here, and closed
                with 1008 where it is refused, or 1013 where there is no room.

        Raises:
            RuntimeError: the app is not open. Nothing is raised for what the client or a handler does.

        Cancelled: the client gets 1001, its handlers are cancelled, its `on_close` hooks run.
        """
        services = self._opened()
        if isinstance(request, Request):
            try:
                async with self.admit(request) as admission:
                    await self.serve_session(transport, admission)
            except Reject as refusal:
                await self._turn_away(transport, 1013 if refusal.status in (429, 503) else 1008, refusal.body)
            return
        if self._draining:  # it was let in just before
            await self._turn_away(transport, services.shutdown_code, "going away")
            return
        session = Session(services, transport, request.request, request.client_id, request.data, request.identity)
        self._sessions[session.client_id] = session
        try:
            if self._lease is not None:
                session.auth.expires_at = self._lease.end_of(request)
            await session.run()
        finally:
            del self._sessions[session.client_id]
            services.leases.leave(session)
            if self._presence is not None:
                self._presence.gone(session.client_id)
            if self._last_gone is not None and not self._sessions:
                self._last_gone.set()

    async def _turn_away(self, transport: Transport, code: int, reason: str) -> None:
        """Close a connection that never becomes a session."""
        reason = reason.encode()[:_REASON_BYTES].decode(errors="ignore")
        with trio.move_on_after(self.limits.close_timeout):  # cancelled, it aborts
            with suppress(ConnectionClosed):
                await transport.aclose(code, reason)

    async def invalidate(self, client_id: str) -> tuple[str, ...]:
        """Ask the policy about a client's topics again, because its rights have changed.

        What it may not have any more is unsubscribed, and the client is told: an ERROR with PERMISSION_DENIED whose
        details have ``reason`` ACL_SUBSCRIBE and the ``topics``.

        Returns:
            The topics that are gone; nothing for a client who is not there.

        Raises, Cancelled: as `Topics.recheck`.
        """
        session = self._sessions.get(client_id)
        if session is None:
            await trio.lowlevel.checkpoint()
            return ()
        revoked = await session.topics.recheck()
        if revoked:
            details = {"topics": list(revoked)}
            session.refuse(PubSubError("ACL_SUBSCRIBE", "no right to these topics any more", details), None)
        return revoked

    async def publish(
        self,
        topic: str,
        message: object,
        *,
        exclude: str | None = None,
        partition_key: str | None = None,
        meta: Mapping[str, Any] | None = None,
        quorum: float | None = None,
        within: float | None = None,
    ) -> PublishResult:
        """Publish to everybody who subscribes to the topic. Waits for no subscriber, unless a policy or a quorum asks.

        Args:
            topic: where to.
            message: an instance of a message class.
            exclude: a client id that shall not get it.
            partition_key: messages with the same key keep their order, where the driver divides its topics.
            meta: further meta.
            quorum: wait until the outboxes of this share of the subscribers here, above 0 and at most 1, have handed
                it to the system. The result's ``written`` tells how many did.
            within: seconds to wait for that, above 0.

        Returns:
            What came of it; what can go wrong at run time is in there, and is not raised.

        Raises:
            ConfigError: `message` is not an instance of a message class; `quorum` and `within` are not both good.

        Cancelled: nothing is delivered here; the driver may have sent it on its way. While it waits for subscribers,
        those who had room have it.
        """
        return await self._publisher.publish(
            topic, message, exclude=exclude, partition_key=partition_key, meta=meta, quorum=quorum, within=within
        )

    def throttled(
        self,
        window: float,
        mode: ThrottleMode = "last",
        *,
        join: Callable[[Sequence[Any]], Any] | None = None,
        max_topics: int = 10_000,
        max_messages: int = 1000,
    ) -> AbstractAsyncContextManager[ThrottledPublisher[Any]]:
        """Publish at most once a window to each topic, as long as the block runs, and what is kept at its end.

        Example:
            >>> async with app.throttled(0.1) as prices:
            ...     await prices.publish("price:ACME", Price(42))

        Args: as `ThrottledPublisher`.

        Raises:
            ConfigError: an argument is of the wrong kind.

        Cancelled: what is kept is not published.
        """
        publisher = ThrottledPublisher[Any](
            self.publish, window, mode, join=join, max_topics=max_topics, max_messages=max_messages
        )
        return open_throttled(publisher)


@asynccontextmanager
async def open_app(app: App, *, shutdown_code: int = 1001) -> AsyncGenerator[App]:
    """Open an app inside a nursery of your own, for the time of an ``async with`` block.

    Leaving the block closes every session with `shutdown_code` (1001 going away, or 1012 service restart) and waits for
    them, at most ``Limits.close_timeout`` seconds; then it cancels what is left. What your block raises comes out bare.
    """
    if shutdown_code not in (1001, 1012):
        raise ConfigError(f"shutdown_code takes 1001 or 1012, not {shutdown_code!r}")
    async with app.lifetime(shutdown_code):
        yield app
