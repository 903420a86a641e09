"""The routed work as an app, in the way our documents show it."""

from __future__ import annotations

from trio_wskit import App, Context, Router, Rpc, message

router = Router()


@message("ECHO")
class Echo:
    room_id: str
    seq: int
    text: str


@message("ECHOED")
class Echoed:
    room_id: str
    seq: int
    text: str


@message("JOIN")
class Join:
    room_id: str


@message("JOINED")
class Joined:
    room_id: str


@message("SAY")
class Say:
    room_id: str
    seq: int
    text: str


@message("SAID")
class Said:
    room_id: str
    seq: int
    text: str


@message("USER")
class User:
    id: int
    name: str
    roles: list[str]


@message("GET_USER")
class GetUser(Rpc[User]):
    id: int


@router.on(Echo)
async def echo(ctx: Context[Echo]) -> None:
    said = ctx.payload
    await ctx.send(Echoed(said.room_id, said.seq, said.text))


@router.rpc(GetUser)
async def get_user(ctx: Context[GetUser]) -> User:
    return User(ctx.payload.id, "Ada Lovelace", ["admin", "author"])


@router.on(Join)
async def join(ctx: Context[Join]) -> None:
    await ctx.topics.subscribe(f"room:{ctx.payload.room_id}")
    await ctx.send(Joined(ctx.payload.room_id))


@router.on(Say)
async def say(ctx: Context[Say]) -> None:
    said = ctx.payload
    await ctx.publish(f"room:{said.room_id}", Said(said.room_id, said.seq, said.text))


app = App(router)
