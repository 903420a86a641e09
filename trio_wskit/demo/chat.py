"""A chat server: rooms, who is here, a rate limit, and a long job that its client can stop. All in memory."""

from __future__ import annotations

from collections import Counter, deque
from datetime import UTC, datetime
from math import isqrt
from uuid import UUID, uuid4

import trio
from attrs import field, frozen, validators

from trio_wskit import App, Context, Limits, Router, Rpc, Session, message
from trio_wskit.limiter import MemoryRateLimiter, Policy
from trio_wskit.middleware import RateLimit, rate_limit

# --- What goes over the wire: up_to here is upTo there, and a handler only ever sees what fits. ---


@frozen
class Person:
    id: str
    name: str
    room: str


@message("LOBBY")  # to everybody
class Lobby:
    rooms: dict[str, int]
    counting: int


@message("JOIN_ROOM")
class JoinRoom:
    room: str = field(validator=validators.matches_re("[a-z0-9-]{1,32}"))
    name: str = field(validator=validators.matches_re(r"\S(.{0,22}\S)?"))


@message("PRESENCE")  # to a room
class Presence:
    room: str
    people: list[Person]


@message("SAID")  # to a room, and the reply to SAY
class Said:
    id: UUID
    by: Person
    text: str
    at: datetime


@message("SAY")
class Say(Rpc[Said]):
    text: str = field(validator=[validators.min_len(1), validators.max_len(500)])


@message("ROOM_STATE")  # to who has joined
class RoomState:
    you: Person
    recent: list[Said]


@message("PRIMES")
class Primes:
    count: int


@message("COUNT_PRIMES")
class CountPrimes(Rpc[Primes]):
    up_to: int = field(validator=[validators.ge(2), validators.le(10_000_000)])


# --- What the server remembers. ---
people: dict[str, Person] = {}  # by client id
recent: deque[Said] = deque(maxlen=100)
counting: set[object] = set()  # calls
workers: trio.CapacityLimiter = trio.CapacityLimiter(2)
talk: RateLimit = rate_limit(MemoryRateLimiter(Policy(capacity=5, tokens_per_second=0.5)))


def lobby() -> Lobby:
    rooms = {"lobby": 0, "garden": 0, "workshop": 0, **Counter(one.room for one in people.values())}
    return Lobby(rooms=rooms, counting=len(counting))


# --- What it does. A room is the topic of its name; everybody is in the topic of no room's name. ---

EVERYBODY = "all:"
router: Router = Router()
app: App = App(router, limits=Limits(call_timeout=600))


@router.on_open
async def welcome(session: Session) -> None:
    await session.topics.subscribe(EVERYBODY)
    await session.send(lobby())


async def tell(session: Session) -> None:
    """Tell the rooms that this client is in, or leaves, who is there; and everybody how full the rooms are."""
    for room in {*session.topics} - {EVERYBODY}:
        await session.publish(room, Presence(room=room, people=[one for one in people.values() if one.room == room]))
    await session.publish(EVERYBODY, lobby())


@router.on_close
async def leave(session: Session) -> None:
    people.pop(session.client_id, None)
    await tell(session)


@router.on(JoinRoom)
async def join(ctx: Context[JoinRoom]) -> None:
    me = people[ctx.client_id] = Person(ctx.client_id, ctx.payload.name, ctx.payload.room)
    await ctx.topics.subscribe(me.room)
    await ctx.send(RoomState(you=me, recent=[said for said in recent if said.by.room == me.room]))
    await tell(ctx.session)
    for room in {*ctx.topics} - {EVERYBODY, me.room}:
        await ctx.topics.unsubscribe(room)


@router.route(Say).use(talk).rpc
async def say(ctx: Context[Say]) -> Said:
    me = people.get(ctx.client_id) or ctx.error("FAILED_PRECONDITION", "Join a room first.")
    said = Said(id=uuid4(), by=me, text=ctx.payload.text, at=datetime.now(UTC))
    recent.append(said)
    await ctx.publish(me.room, said, exclude_self=True)
    return said


def primes_between(start: int, stop: int) -> int:
    return sum(all(n % d for d in range(2, isqrt(n) + 1)) for n in range(start, stop))


@router.rpc(CountPrimes)
async def count_primes(ctx: Context[CountPrimes]) -> Primes:
    counting.add(ctx)
    up_to, found = ctx.payload.up_to, 0
    try:
        await ctx.publish(EVERYBODY, lobby())
        for start in range(2, up_to, 1_000):  # in small pieces: a cancel takes effect between two of them
            found += await trio.to_thread.run_sync(primes_between, start, min(start + 1_000, up_to), limiter=workers)
            ctx.progress({"done": start / up_to, "found": found}, throttle=0.1)
        return Primes(count=found)
    finally:  # it is done, or its client has cancelled it, or has gone
        counting.discard(ctx)
        with trio.move_on_after(1, shield=True):
            await ctx.publish(EVERYBODY, lobby())
