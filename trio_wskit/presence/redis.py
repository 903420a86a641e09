"""Presence that many processes share, on Redis 7 or Valkey: one script for each beat, by the server's time."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast, final

import trio

from trio_wskit._core.json_text import loads
from trio_wskit._core.presence import MAX_SWEPT, PresenceAnswer, PresenceBeat, PresenceSnapshot, TopicDiff
from trio_wskit._coredis import RedisClient, Script, check_options, open_script

__all__ = ["RedisClient", "RedisPresence", "open_redis_presence"]


@final
class RedisPresence:
    """A `trio_wskit.abc.PresenceStore` on Redis; made by `open_redis_presence`, which says what it does."""

    def __init__(self, script: Script, name: str, max_wait: float) -> None:
        self._script = script
        self._prefix = f"{{{name}}}:"
        self._keys = [self._prefix + key for key in ("nodes", "numbers", "version")]
        self._max_wait = max_wait
        self._swept: list[bytes] = []  # nodes, and what they held: reported, and not yet acknowledged

    async def beat(self, beat: PresenceBeat) -> PresenceAnswer:
        """See `trio_wskit.abc.PresenceStore.beat`. Waits for one call, `max_wait` at most.

        What the answer reports of lapsed nodes is acknowledged by the next beat, before which it asks for one; so it
        is reported by somebody else, should this process end meanwhile.

        Raises:
            WsKitError: UNAVAILABLE: the server has not answered.

        Cancelled: it may have been carried out.
        """
        swept = self._swept
        arguments: list[str | bytes] = [
            beat.node,
            str(beat.number),
            str(beat.answered),
            "1" if beat.first else "0",
            "1" if beat.doubtful else "0",
            str(round(beat.ttl * 1000)),
            str(beat.max_members),
            str(MAX_SWEPT),
            str(len(swept) // 2),
            *swept,
        ]
        for topic, identity, state in beat.changes:
            arguments += (topic, identity, b"" if state is None else state)
        known, held, more, diffs, refused, now_swept = await self._call("beat", arguments)
        self._swept = now_swept
        return PresenceAnswer(
            known=bool(known),
            held=held,
            more=bool(more or now_swept),
            diffs=tuple(_diff(*diff) for diff in diffs),
            refused=tuple((topic.decode(), identity.decode()) for topic, identity in _pairs(refused)),
        )

    async def retire(self, node: str, seconds: float) -> None:
        """See `trio_wskit.abc.PresenceStore.retire`. Waits for one call; raises as `beat`."""
        await self._call("retire", (node, str(round(seconds * 1000))))

    async def members(self, topic: str) -> PresenceSnapshot:
        """See `trio_wskit.abc.PresenceStore.members`. Waits for one call; raises as `beat`."""
        lapsed, flat = await self._call("members", (topic,))
        return await self._snapshot(lapsed, flat)

    async def count(self, topic: str, besides: Sequence[str] = ()) -> int:
        """See `trio_wskit.abc.PresenceStore.count`. Waits for one call; raises as `beat`.

        While members of a lapsed node are not yet swept away the server gives the list, which is counted here.
        """
        count, *listed = await self._call("count", (topic, *besides))
        if not listed:
            return int(count)
        members = (await self._snapshot(*listed)).members
        return len(members) + sum(identity not in members for identity in besides)

    async def _snapshot(self, lapsed: Sequence[bytes], flat: Any) -> PresenceSnapshot:
        if isinstance(flat, dict):  # RESP3
            flat = [part for pair in cast("dict[bytes, bytes]", flat).items() for part in pair]
        gone = {node.decode() for node in lapsed}
        version = 0
        members: dict[str, bytes] = {}
        for number, (identity, text) in enumerate(_pairs(flat)):
            if not identity:
                version = int(text)
                continue
            told: dict[str, tuple[int, str]] = loads(text)
            alive = [one for node, one in told.items() if node not in gone]
            if alive:
                members[identity.decode()] = max(alive)[1].encode()
            if number % 500 == 499:
                await trio.lowlevel.checkpoint()
        return PresenceSnapshot(version, members)

    async def _call(self, command: str, arguments: Sequence[str | bytes]) -> Any:
        words = [command, self._prefix, *arguments]
        return await self._script.ask(self._keys, words, self._max_wait, "presence store")


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return cast("Iterator[tuple[bytes, bytes]]", zip(flat[::2], flat[1::2], strict=True))


def _diff(
    topic: bytes, previous: int, version: int, count: int, joins: Sequence[bytes], leaves: Sequence[bytes]
) -> TopicDiff:
    return TopicDiff(
        topic.decode(),
        previous,
        version,
        count,
        tuple((identity.decode(), state) for identity, state in _pairs(joins)),
        tuple(identity.decode() for identity in leaves),
    )


@asynccontextmanager
async def open_redis_presence(
    target: str | RedisClient,
    *,
    name: str = "wskit-presence",
    max_wait: float = 1.0,
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[RedisPresence]:
    """A presence store that all processes share which name the same server and name.

    Each call is one script on the server, by its time, with at most 1,000 changes. All keys are in one slot of a
    cluster. The server must not evict keys (``maxmemory-policy noeviction``). When all processes have died, what they
    told stays until the next one comes, which sweeps it away.

    It does not need the server to be there when it is opened. A server that loses its memory is told everything again.

    Args:
        target: the server's URL, such as ``redis://localhost:6379/0``; or a `coredis.Redis` or `coredis.RedisCluster`
            that is open (entered in a parent task) and was made with ``retry_policy=coredis.retry.NoRetryPolicy()``.
        name: what all keys begin with.
        max_wait: seconds that one call may take, above 0.
        tls: for ``rediss://`` URLs; None means the system's certificates. Either way the host's name should be checked.

    Raises:
        ConfigError: an option is out of its bounds, the target is no URL, or the client would ask again by itself.
    """
    check_options("open_redis_presence", name, max_wait)
    async with open_script(
        target,
        "trio_wskit.presence",
        "presence.lua",
        tls=tls,
        connect_timeout=max_wait,
        use="presence",
        twice="a beat may come twice",
    ) as script:
        yield RedisPresence(script, name, max_wait)
