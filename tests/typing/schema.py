"""What must check, and what must not, of messages and requests; nothing here is run.

mypy and pyright read this file with the rest of the tests, in `make test`. Each line that must be refused has a
comment that both of them know, and both complain of one that ignores nothing: so a line that checks though it must not
fails the run.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar, assert_type

import attrs

from trio_wskit._core.schema import MessageSpec, Rpc, RpcType, message, spec_of

M_co = TypeVar("M_co", covariant=True)
Q = TypeVar("Q")
R = TypeVar("R")


@message("USER")
class User:
    user_id: str
    age: int = attrs.field(default=3, validator=attrs.validators.ge(0))
    tags: list[str] = attrs.field(factory=list, kw_only=True)


@message("OTHER", rename=None, forbid_extra=False, meta={"tenantId": str})
class Other:
    x: int


@message("PING")
class Ping:
    pass


@message("GET_USER")
class GetUser(Rpc[User]):
    id: str


@message("FIND_USER", rename=str.upper)
@attrs.frozen
class FindUser(Rpc["User"]):
    name: str


@attrs.define
class Plain:
    x: int


PlainMessage = message("PLAIN")(Plain)


# The constructor

assert_type(User("a"), User)
assert_type(User("a", 5, tags=["b"]), User)
assert_type(User(user_id="a", age=5).age, int)
assert_type(GetUser("a").id, str)
assert_type(Ping(), Ping)
assert_type(FindUser(name="a"), FindUser)
assert_type(PlainMessage(1), Plain)

User()  # type: ignore[call-arg]
User(5)  # type: ignore[arg-type]
User("a", wrong=5)  # type: ignore[call-arg]
User("a", 5, ["b"])  # type: ignore[call-arg]
GetUser(id=5)  # type: ignore[arg-type]
Ping(1)  # type: ignore[call-arg]
User("a").user_id = "b"  # type: ignore[misc]
User("a").name  # type: ignore[attr-defined]  # noqa: B018
message("X", forbid_extra=1)  # type: ignore[arg-type]
message("X", rename="upper")  # type: ignore[arg-type]
message(5)  # type: ignore[arg-type]

assert_type(spec_of(User), MessageSpec)
assert_type(spec_of(User("a")), MessageSpec)


# A request gives its reply: what a client declares


class Client:
    async def request(self, request: Rpc[R], /) -> R:
        raise NotImplementedError


async def ask(client: Client) -> None:
    assert_type(await client.request(GetUser("a")), User)
    assert_type(await client.request(FindUser("a")), User)
    _: Other = await client.request(GetUser("a"))  # type: ignore[arg-type]
    await client.request(User("a"))  # type: ignore[arg-type]
    await client.request(GetUser)  # type: ignore[arg-type]


# A class of requests gives both: what a router declares


class Context(Generic[M_co]):
    @property
    def payload(self) -> M_co:
        raise NotImplementedError


class Router:
    def rpc(
        self, request: RpcType[Q, R], /
    ) -> Callable[[Callable[[Context[Q]], Awaitable[R] | R]], Callable[[Context[Q]], Awaitable[R] | R]]:
        raise NotImplementedError


def pair(request: RpcType[Q, R], /) -> tuple[type[Q], type[R]]:
    raise NotImplementedError


router = Router()

assert_type(pair(GetUser), tuple[type[GetUser], type[User]])
assert_type(pair(FindUser), tuple[type[FindUser], type[User]])


@router.rpc(GetUser)
async def answers(ctx: Context[GetUser]) -> User:
    assert_type(ctx.payload.id, str)
    return User(ctx.payload.id)


@router.rpc(GetUser)
def answers_at_once(ctx: Context[GetUser]) -> User:
    return User(ctx.payload.id)


@router.rpc(FindUser)
async def takes_any_context(ctx: Context[Any]) -> User:
    return User("a")


@router.rpc(GetUser)  # type: ignore[arg-type]
async def answers_wrongly(ctx: Context[GetUser]) -> Other:
    return Other(1)


@router.rpc(GetUser)  # type: ignore[arg-type]
def answers_wrongly_at_once(ctx: Context[GetUser]) -> Other:
    return Other(1)


@router.rpc(GetUser)  # type: ignore[arg-type]
async def answers_nothing(ctx: Context[GetUser]) -> None:
    pass


@router.rpc(GetUser)  # type: ignore[arg-type]
async def answers_another(ctx: Context[FindUser]) -> User:
    return User("a")


@router.rpc(GetUser)  # type: ignore[arg-type]
async def takes_too_much(ctx: Context[GetUser], more: int) -> User:
    return User("a")


@router.rpc(User)  # type: ignore[arg-type]
async def no_request(ctx: Context[User]) -> User:
    return User("a")
