"""What must check, and what must not, of clients; nothing here is run. See `schema.py`."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, assert_type

import trio

from trio_wskit import ConnectionClosed, QueueOptions, Reconnect, Retry, Rpc, TokenAuth, message, open_client
from trio_wskit._core.envelope import Envelope
from trio_wskit.client import Client, ClientCall, ClientStats, Gap, Handshake, Opened, State, StateChange, Stream


@message("USER")
class User:
    name: str


@message("GET_USER")
class GetUser(Rpc[User]):
    id: str


@message("STEP")
class Step:
    done: int


@message("NEWS")
class News:
    text: str


# Options.


async def connect(handshake: Handshake) -> Opened:
    raise NotImplementedError


async def token() -> str | None: ...


async def options() -> None:
    async with open_client("ws://h") as client:
        assert_type(client, Client)
    open_client("ws://h", auth=TokenAuth(token, attach="header"), connect=connect, headers={"X": "1"})
    open_client("ws://h", auth=TokenAuth(lambda: None), reconnect=None, queue=QueueOptions(policy="off"))
    open_client("ws://h", reconnect=Reconnect(give_up_on=lambda closed: closed.code > 4000), retry=Retry())
    open_client()  # type: ignore[call-arg]
    open_client("ws://h", TokenAuth("t"))  # type: ignore[call-arg]
    open_client("ws://h", auth="token")  # type: ignore[arg-type]
    open_client("ws://h", connect=lambda handshake: None)  # type: ignore[arg-type, return-value]
    open_client("ws://h", subprotocols=5)  # type: ignore[arg-type]
    TokenAuth(lambda: 5)  # type: ignore[arg-type, return-value]
    TokenAuth("t", attach="cookie")  # type: ignore[arg-type]
    TokenAuth("t", "query")  # type: ignore[call-arg]
    QueueOptions(policy="drop")  # type: ignore[arg-type]
    Reconnect(jitter="half")  # type: ignore[arg-type]


# The state.


async def states(client: Client) -> None:
    assert_type(client.state, State)
    assert_type(client.latency, float | None)
    assert_type(client.stats, ClientStats)
    assert_type(await client.wait_closed(), ConnectionClosed)
    with client.states() as changes:
        assert_type(changes, Stream[StateChange])
        async for change in changes:
            assert_type(change.reason, ConnectionClosed | None)
            assert_type(change.delay, float | None)
    client.state = "open"  # type: ignore[misc]
    await client.close(4000, "bye")
    await client.close("bye")  # type: ignore[arg-type]


# Requests: the reply is what the request names.


def read_news(news: News) -> None: ...


async def requests(client: Client) -> None:
    await client.send(News("a"), meta={"tenant": "x"}, correlation_id="1")
    reply = await client.request(GetUser("1"))
    assert_type(reply, User)
    assert_type(await client.request(GetUser("1"), retry=Retry(), idempotency_key="k"), User)
    reply.id  # type: ignore[attr-defined]  # noqa: B018
    read_news(await client.request(GetUser("1")))  # type: ignore[arg-type]
    await client.request(News("a"))  # type: ignore[arg-type]
    await client.request(GetUser)  # type: ignore[arg-type]
    await client.request(GetUser("1"), {})  # type: ignore[call-arg]
    await client.request(GetUser("1"), timeout=5)  # type: ignore[call-arg]
    assert_type(await client.request_json("GET_USER", {"id": "1"}), Envelope)


async def calls(client: Client) -> None:
    async with client.call(GetUser("1")) as call:
        assert_type(call, ClientCall[User, Any])
        assert_type(await call.reply, User)
        assert_type(call.correlation_id, str)
    async with client.call(GetUser("1"), progress=Step) as stepwise:
        assert_type(stepwise, ClientCall[User, Step])
        async for step in stepwise.progress:
            assert_type(step, Step)
            step.text  # type: ignore[attr-defined]  # noqa: B018
        assert_type(await stepwise.reply, User)
        assert_type(stepwise.progress.dropped, int)
    async with client.call_json("EXPORT", {"rows": 5}) as untyped:
        assert_type(await untyped.reply, Envelope)
    client.call(News("a"))  # type: ignore[call-overload]
    client.call(GetUser("1"), progress=Step(1))  # type: ignore[call-overload]


# Handlers: they take the class that they are registered with, and come back as they were.


def handlers(client: Client) -> None:
    @client.on(News)
    async def read(news: News) -> None:
        assert_type(news.text, str)

    assert_type(read, Callable[[News], Awaitable[None]])

    assert_type(client.on(News, read), Callable[[], None])
    assert_type(client.on_unhandled(lambda envelope: envelope.type), Callable[[], None])
    assert_type(client.on_error(lambda error, envelope: (error, envelope)), Callable[[], None])

    @client.on(News)  # type: ignore[arg-type]
    async def of_another_message(user: User) -> None: ...

    async def another(user: User) -> None: ...

    client.on(News, another)  # type: ignore[arg-type]

    @client.on(News)
    def at_once(news: News) -> None: ...

    @client.on(News)  # type: ignore[arg-type]
    def gives_something(news: News) -> int:
        return 5

    client.on("NEWS")  # type: ignore[call-overload]
    client.on_error(lambda error: None)  # type: ignore[arg-type, misc]


# Streams.


def read_all(channel: trio.abc.ReceiveChannel[News]) -> None: ...


async def streams(client: Client) -> None:
    async with client.messages(News, where=lambda news: news.text > "a", overflow="drop_newest") as stream:
        assert_type(stream, Stream[News])
        assert_type(await stream.receive(), News)
        async for news in stream:
            assert_type(news, News)
        assert_type(stream.dropped, int)
        read_all(stream)
    async with client.subscribed("room:1", News) as room:
        async for item in room:
            assert_type(item, News | Gap)
            item.text  # type: ignore[union-attr]  # noqa: B018
            if isinstance(item, Gap):
                assert_type(item.lost, int | None)
            else:
                assert_type(item, News)
    client.messages(News, where=lambda news: news.name == "a")  # type: ignore[attr-defined]
    client.messages(News, overflow="drop")  # type: ignore[arg-type]
    client.messages(News("a"))  # type: ignore[arg-type]
    client.subscribed("room:1")  # type: ignore[call-arg]
    client.subscribed(News, "room:1")  # type: ignore[arg-type]
