"""Topics that many processes share, over Redis 7 or Valkey: a driver, a consumer, and what opens both."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal, NamedTuple, TypeAlias, cast, final, get_args

import trio

from trio_wskit._core.patterns import SubscriptionIndex
from trio_wskit._core.publishing import PublishEnvelope, PublishResult
from trio_wskit._core.redis_envelope import encode_envelope, escape_glob, glob_of
from trio_wskit.abc import Deliver
from trio_wskit.errors import ConfigError, PubSubError
from trio_wskit.pubsub._redis_ear import Name
from trio_wskit.pubsub._redis_egress import Egress
from trio_wskit.pubsub._redis_ingress import Ingress, IngressCounts, IngressLimits
from trio_wskit.pubsub._redis_link import RedisSentinel, Servers

__all__ = [
    "IngressCounts",
    "RedisConsumer",
    "RedisMode",
    "RedisParts",
    "RedisPubSub",
    "RedisSentinel",
    "WsKitConsumer",
    "open_redis_pubsub",
]

RedisMode: TypeAlias = Literal["topics", "sharded", "wskit"]

_PREFIX: Final = "ws:"


@final
class RedisPubSub:
    """A `trio_wskit.abc.PubSubDriver` that publishes to Redis; made by `open_redis_pubsub`, which says what it does.

    Its index is that of `MemoryPubSub`. What it publishes is delivered on this process by whoever calls it.
    """

    def __init__(self, egress: Egress, *, prefix: str, max_envelope_bytes: int, estimate: bool) -> None:
        self._egress = egress
        self._prefix = prefix
        self._max_envelope_bytes = max_envelope_bytes
        self._estimate = estimate
        self._index = SubscriptionIndex()

    async def publish(self, envelope: PublishEnvelope) -> PublishResult:
        """Send the envelope once, and wait until Redis has it: for `max_wait` seconds at most.

        Returns:
            Its capability is ``unknown``: who gets it elsewhere nobody tells. With ``estimate=True`` it is
            ``estimate``, with the subscribers of this process, and in the details ``processes``: how many links listen
            to the topic by its name, on the node that was asked; those that listen to a pattern are not among them.
            A failure is PAYLOAD_TOO_LARGE, BACKPRESSURE (too many bytes wait for an answer), CONNECTION_CLOSED (the
            driver is closed) or ADAPTER_ERROR, and then it was perhaps published.

        Cancelled: it may have been published.
        """
        data = encode_envelope(envelope)
        if len(data) > self._max_envelope_bytes:
            await trio.lowlevel.checkpoint()
            details = {"observed": len(data), "limit": self._max_envelope_bytes}
            return PublishResult.failure("PAYLOAD_TOO_LARGE", None, details)
        came = await self._egress.publish(self._prefix + envelope.topic, data, counted=self._estimate)
        if isinstance(came, PublishResult):
            return came
        if not self._estimate:
            return PublishResult(ok=True, capability="unknown")
        subscribers, matching = self._index.match(envelope.topic)
        return PublishResult(
            ok=True,
            capability="estimate",
            matched_local=len(subscribers) - (envelope.exclude in subscribers),
            matching=matching,
            details={"processes": came},
        )

    async def subscribe(self, client_id: str, topic: str) -> None:
        """Add to the index; no change where it is there. Never waits: the consumer tells Redis."""
        self._index.add(client_id, topic)

    async def unsubscribe(self, client_id: str, topic: str) -> None:
        """Remove from the index; no change where it is not there. Never waits."""
        self._index.remove(client_id, topic)

    def local_subscribers(self, topic: str) -> Collection[str]:
        """The client ids, those of the topic itself in the order in which they subscribed. It may be a live view."""
        return self._index.subscribers(topic)

    def list_topics(self) -> tuple[str, ...]:
        """Every topic and pattern that has a subscriber."""
        return tuple(self._index.names())

    def has_topic(self, topic: str) -> bool:
        """True where somebody subscribes to this very topic or pattern."""
        return topic in self._index

    async def aclose(self) -> None:
        """Let every later publish fail. Waits for nothing. Cancelled: it is closed."""
        self._egress.close()
        await trio.lowlevel.checkpoint()


@final
class RedisConsumer:
    """A `trio_wskit.abc.SelectiveConsumer`: it hears the topics that somebody here subscribes to, and no others.

    Made by `open_redis_pubsub`, which says what it does.

    Attributes:
        name: for logs.
    """

    name: str = "redis"

    def __init__(self, ingress: Ingress, *, prefix: str, is_sharded: bool) -> None:
        self._ingress = ingress
        self._prefix = prefix
        self._is_sharded = is_sharded
        self._topics: dict[Name, set[str]] = {}  # two patterns of ours may be one of Redis

    @property
    def counts(self) -> IngressCounts:
        """What has come in."""
        return self._ingress.counts

    async def run(self, deliver: Deliver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hear what is followed, until the link is lost. See `trio_wskit.abc.BrokerConsumer.run`.

        Raises:
            PubSubError: ADAPTER_ERROR: the link could not be opened, or is lost; or it was given up, because more came
                than was delivered. It never just returns.

        Cancelled: the link is closed.
        """
        await self._ingress.run(deliver, task_status)

    async def follow(self, topic: str) -> None:
        """Hear this topic, or this pattern, from when this returns.

        Before the first `run` it is only remembered; so it is later while the link is down, with
        ``while_down="remember"``.

        Raises:
            PubSubError: ADAPTER_ERROR: Redis refused, or did not confirm it within `max_wait`, because the link is down
                or the server slow. Call `unfollow`. INVALID_TOPIC: a pattern, and shards know none.

        Cancelled: it may be heard; `unfollow` undoes it.
        """
        name = self._name_of(topic)
        self._topics.setdefault(name, set()).add(topic)
        await self._ingress.want(name)

    async def unfollow(self, topic: str) -> None:
        """Hear it no more; no change where it was not heard. Never waits, and never fails.

        Redis is told as soon as may be. Cancelled: it is done.
        """
        try:
            name = self._name_of(topic)
        except PubSubError:
            return
        topics = self._topics.get(name, set())
        topics.discard(topic)
        if not topics and self._topics.pop(name, None) is not None:
            self._ingress.leave(name)

    def _name_of(self, topic: str) -> Name:
        if "*" not in topic:
            return Name("SSUBSCRIBE" if self._is_sharded else "SUBSCRIBE", self._prefix + topic)
        if self._is_sharded:
            raise PubSubError(
                "INVALID_TOPIC", "sharded pub/sub of Redis has no patterns", {"why": "unsupported", "topic": topic}
            )
        return Name("PSUBSCRIBE", glob_of(self._prefix, topic))


@final
class WsKitConsumer:
    """A `trio_wskit.abc.BrokerConsumer` that hears every topic, by one pattern, as ws-kit's servers do.

    Made by `open_redis_pubsub`, which says what it does.

    Attributes:
        name: for logs.
    """

    name: str = "redis (ws-kit)"

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress

    @property
    def counts(self) -> IngressCounts:
        """What has come in."""
        return self._ingress.counts

    async def run(self, deliver: Deliver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hear every topic, until the link is lost. See `RedisConsumer.run`, also for what it raises.

        Cancelled: the link is closed.
        """
        await self._ingress.run(deliver, task_status)


class RedisParts(NamedTuple):
    """What `open_redis_pubsub` gives: ``with_broker(*parts)`` joins them.

    Attributes:
        driver: publishes, and keeps the index.
        consumer: hears what others publish.
    """

    driver: RedisPubSub
    consumer: RedisConsumer | WsKitConsumer


@asynccontextmanager
async def open_redis_pubsub(
    target: str | Sequence[str] | RedisSentinel,
    *,
    mode: RedisMode = "topics",
    prefix: str | None = None,
    tls: ssl.SSLContext | None = None,
    estimate: bool = False,
    while_down: Literal["refuse", "remember"] = "refuse",
    connect_timeout: float = 2.0,
    max_wait: float = 1.0,
    check_every: float = 5.0,
    max_envelope_bytes: int = 2_000_000,
    max_publishing_bytes: int = 16_000_000,
    max_waiting: int = 10_000,
    max_waiting_bytes: int = 32_000_000,
) -> AsyncGenerator[RedisParts]:
    """A driver and a consumer on Redis 7 or Valkey, for ``App(router, pubsub=with_broker(driver, consumer))``.

    The server need not be there when this is entered. Links are opened when they are needed: one to publish, and one
    to listen while the app is open (in a cluster with ``sharded``, one of each for each node). A link that breaks
    is not mended in silence: a publish fails, once; a consumer ends, and whoever supervises it runs it again and counts
    an epoch more, for what was published meanwhile is lost.

    Args:
        target: the server's URL, such as ``redis://user:password@localhost:6379/0``, ``rediss://…`` for TLS, or
            ``unix:///path``; those of several nodes of one cluster, which are tried in order; or a `RedisSentinel`.
        mode: ``topics`` subscribes to each topic that somebody here subscribes to; ``sharded`` does so with SSUBSCRIBE
            and SPUBLISH, which in a cluster reach only the node that has the topic's slot, and knows no patterns;
            ``wskit`` subscribes to all topics by one pattern, and shares them with ws-kit's own servers.
        prefix: what the names of the channels begin with, before the topic; None means ``ws:``, and with ``wskit``
            nothing, as there. It may have any characters.
        tls: for ``rediss://`` URLs; None means the system's certificates. Either way the host's name should be checked.
        estimate: ask with each publish how many links listen to the topic.
        while_down: what a new topic meets while the link that listens is down: ``refuse`` lets it wait for `max_wait`
            seconds, and fails then; ``remember`` lets it succeed at once, and it is deaf to other processes until the
            link is back, which begins with a gap notice as for all.
        connect_timeout: seconds that one attempt to connect may take, above 0.
        max_wait: seconds that a publish, or a new topic, may wait for the server, above 0; then it fails.
        check_every: seconds between pings on the link that listens, and how long the server may take to answer one;
            above 0. One that has stopped is noticed within twice that time.
        max_envelope_bytes: the largest envelope that is sent or read, above 0.
        max_publishing_bytes: of what is published and not yet answered, above 0; beyond it a publish fails.
        max_waiting: envelopes that have come and are not delivered yet, above 0. Beyond it the link is given up.
        max_waiting_bytes: the same in bytes, above 0.

    Raises:
        ConfigError: an option is out of its bounds, or a URL is none.
    """
    if mode not in get_args(RedisMode):
        raise ConfigError(f"open_redis_pubsub(mode=…) takes 'topics', 'sharded' or 'wskit', not {mode!r}")
    if while_down not in ("refuse", "remember"):
        raise ConfigError(f"open_redis_pubsub(while_down=…) takes 'refuse' or 'remember', not {while_down!r}")
    seconds = {"connect_timeout": connect_timeout, "max_wait": max_wait, "check_every": check_every}
    bounds = {
        "max_envelope_bytes": max_envelope_bytes,
        "max_publishing_bytes": max_publishing_bytes,
        "max_waiting": max_waiting,
        "max_waiting_bytes": max_waiting_bytes,
    }
    for option, value in {**seconds, **bounds}.items():
        kind = (int, float) if option in seconds else int
        if not isinstance(cast("object", value), kind) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ConfigError(f"open_redis_pubsub({option}=…) takes a number above 0, not {value!r}")
    servers = Servers(target, tls, connect_timeout)
    start = ("" if mode == "wskit" else _PREFIX) if prefix is None else prefix
    is_sharded = mode == "sharded"
    limits = IngressLimits(
        max_wait=max_wait,
        remember=while_down == "remember",
        check_every=check_every,
        max_waiting=max_waiting,
        max_waiting_bytes=max_waiting_bytes,
        max_envelope_bytes=max_envelope_bytes,
    )
    ingress = Ingress(servers, limits, prefix=start, is_sharded=is_sharded, foreign=mode == "wskit")
    consumer: RedisConsumer | WsKitConsumer
    if mode == "wskit":
        ingress.wanted.add(Name("PSUBSCRIBE", escape_glob(start) + "*"))
        consumer = WsKitConsumer(ingress)
    else:
        consumer = RedisConsumer(ingress, prefix=start, is_sharded=is_sharded)
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        egress = Egress(servers, nursery, is_sharded=is_sharded, max_wait=max_wait, max_bytes=max_publishing_bytes)
        driver = RedisPubSub(egress, prefix=start, max_envelope_bytes=max_envelope_bytes, estimate=estimate)
        try:
            yield RedisParts(driver, consumer)
        except Exception as error:
            raised = error  # bare, without the group that the nursery would make of it
        finally:
            egress.close()
            nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised
