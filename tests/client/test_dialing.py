"""The client on real sockets: TCP, TLS, a proxy's tunnel, and servers that refuse."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, final

import pytest
import trio

from tests.serving import serving
from tests.transports.peers import client_tls, server_tls
from trio_wskit import App, Context, Reject, Request, Router, Rpc, TokenAuth, message, open_client
from trio_wskit.client._connect import Target
from trio_wskit.errors import ConnectFailed, RpcError


@message("DONE")
class Done:
    seconds: float


@message("WORK")
class Work(Rpc[Done]):
    seconds: float


@message("SAY")
class Say:
    text: str


def app(**options: object) -> App:
    router = Router()

    @router.rpc(Work)
    async def work(ctx: Context[Work]) -> Done:
        ctx.progress({"begun": True})
        await trio.sleep(ctx.payload.seconds)
        return Done(ctx.payload.seconds)

    @router.on(Say)
    async def hear(ctx: Context[Say]) -> None:
        pass

    return App(router, **options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_our_client_and_our_server_on_tcp() -> None:
    async with serving(app()) as server, open_client(server.urls[0], deflate=True) as client:
        assert await client.request(Work(0.01)) == Done(0.01)
        async with client.call(Work(0)) as call:
            assert [step async for step in call.progress] == [{"begun": True}]
            assert await call.reply == Done(0)
        with trio.move_on_after(0.2) as patience:
            await client.request(Work(20))
        assert patience.cancelled_caught
        with trio.fail_after(5):
            while not client.stats.late:  # noqa: ASYNC110 - the server says that the work was cancelled, to nobody
                await trio.sleep(0.01)
        assert client.client_id is not None


async def test_tls_is_checked() -> None:
    async with serving(app(), ssl_context=server_tls()) as server:
        url = f"wss://localhost:{server.port}/"
        async with open_client(url, ssl_context=client_tls()) as client:
            assert await client.request(Work(0)) == Done(0)
        with pytest.raises(ConnectFailed, match="certificate"):
            async with open_client(url, reconnect=None):
                pytest.fail("not reached")


@asynccontextmanager
async def proxy(
    answer: bytes = b"HTTP/1.1 200 go\r\nX: y\r\n\r\n", tls: ssl.SSLContext | None = None
) -> AsyncGenerator[tuple[int, list[str]]]:
    """A proxy that writes down what it was asked, and makes tunnels if that is what it answers."""
    asked: list[str] = []

    async def pump(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some():
                await sink.send_all(data)
            await sink.aclose()

    async def serve(stream: trio.abc.Stream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            more = await stream.receive_some()
            if not more:
                return
            head += more
        asked.append(head.decode())
        await stream.send_all(answer)
        if answer.startswith(b"HTTP/1.1 20"):
            host, _, port = head.split()[1].decode().rpartition(":")
            async with await trio.open_tcp_stream(host, int(port)) as server, trio.open_nursery() as nursery:
                nursery.start_soon(pump, stream, server)
                await pump(server, stream)

    async def serve_tls(stream: trio.SocketStream) -> None:
        assert tls is not None
        with suppress(trio.BrokenResourceError):
            await serve(trio.SSLStream(stream, tls, server_side=True, https_compatible=True))

    async with trio.open_nursery() as nursery:
        handler = serve if tls is None else serve_tls
        (listener,) = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1], asked
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("status", [200, 201, 204])
async def test_a_proxy_makes_a_tunnel(status: int) -> None:
    async with serving(app()) as server, proxy(b"HTTP/1.1 %d go\r\nX: y\r\n\r\n" % status) as (port, asked):
        async with open_client(server.urls[0], proxy=f"http://me:pass%20word@127.0.0.1:{port}") as client:
            assert await client.request(Work(0)) == Done(0)
        assert asked[0].split("\r\n") == [
            f"CONNECT 127.0.0.1:{server.port} HTTP/1.1",
            f"Host: 127.0.0.1:{server.port}",
            "Proxy-Authorization: Basic bWU6cGFzcyB3b3Jk",
            "",
            "",
        ]


@pytest.mark.parametrize("secure_proxy", [False, True])
@pytest.mark.parametrize("secure", [False, True])
async def test_tls_to_the_proxy_and_through_it(secure_proxy: bool, secure: bool) -> None:
    async with (
        serving(app(), ssl_context=server_tls() if secure else None) as server,
        proxy(tls=server_tls() if secure_proxy else None) as (port, asked),
        open_client(
            f"{'wss' if secure else 'ws'}://localhost:{server.port}/",
            ssl_context=client_tls(),
            proxy=f"{'https' if secure_proxy else 'http'}://localhost:{port}",
            proxy_ssl_context=client_tls(),
        ) as client,
    ):
        assert await client.request(Work(0)) == Done(0)
        await client.send(Say("x" * 300_000))  # no whole record of either TLS
        assert await client.request(Work(0)) == Done(0)
        assert [one.partition(" HTTP")[0] for one in asked] == [f"CONNECT localhost:{server.port}"]
        if secure_proxy:
            with pytest.raises(ConnectFailed, match=r"no connection to the proxy https://localhost:.*certificate"):
                async with open_client(  # the server's context is not the proxy's
                    "ws://h.test/", proxy=f"https://localhost:{port}", ssl_context=client_tls(), reconnect=None
                ):
                    pytest.fail("not reached")


async def test_a_proxy_that_never_ends_its_answer_is_left() -> None:
    async def talk(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"HTTP/1.1 200 go\r\n")
            while True:
                await stream.send_all(b"X: y\r\n" * 100)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, talk, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with pytest.raises(ConnectFailed, match="gave no answer"):
            async with open_client("ws://h.test/", proxy=f"http://127.0.0.1:{port}", reconnect=None):
                pytest.fail("not reached")
        nursery.cancel_scope.cancel()


async def test_what_is_beneath_a_handshake_that_fails_is_closed() -> None:
    hung_up = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 403 no\r\n\r\n")
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        hung_up.set()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with pytest.raises(ConnectFailed, match="refused with 403"):
            async with open_client("ws://h.test/", proxy=f"http://127.0.0.1:{port}", reconnect=None):
                pytest.fail("not reached")
        with trio.fail_after(5):
            await hung_up.wait()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "says", "status"),
    [
        (b"HTTP/1.1 407 no\r\n\r\n", "refused with 407", 407),
        (b"SSH-2.0\r\n\r\n", "does not speak HTTP", None),
        (b"", "gave no answer", None),
    ],
)
async def test_a_proxy_that_refuses_is_named_without_its_password(answer: bytes, says: str, status: int | None) -> None:
    async with proxy(answer) as (port, _):
        with pytest.raises(ConnectFailed, match=says) as caught:
            async with open_client("ws://h.test/", proxy=f"http://me:secret@127.0.0.1:{port}", reconnect=None):
                pytest.fail("not reached")
    assert "secret" not in str(caught.value)
    assert caught.value.status == status


async def test_a_server_that_refuses_gives_its_status_and_never_the_token() -> None:
    async def authenticate(request: Request) -> dict[str, str]:
        raise Reject(429, "no", {"Retry-After": "7"})

    async with serving(app(authenticate=authenticate)) as server:
        with pytest.raises(ConnectFailed) as caught:
            async with open_client(f"{server.urls[0]}/a?b=secret", auth=TokenAuth("secret"), reconnect=None):
                pytest.fail("not reached")
    assert (caught.value.status, caught.value.retry_after, caught.value.retryable) == (429, 7.0, True)
    assert str(caught.value) == f"ws://127.0.0.1:{server.port}/a refused the handshake with 429"


async def test_nobody_there_is_an_attempt_that_failed() -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectFailed, match="no connection to ws"):
            async with open_client(f"ws://127.0.0.1:{bound.getsockname()[1]}/", reconnect=None):
                pytest.fail("not reached")


async def test_a_proxy_that_is_not_there_is_named_and_not_the_server() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        proxy_url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ConnectFailed, match=rf"no connection to the proxy {proxy_url}: .*refused"):
            async with open_client("ws://h.test/", proxy=proxy_url.replace("//", "//me:pw@"), reconnect=None):
                pytest.fail("not reached")


async def test_a_server_that_speaks_something_else_is_an_attempt_that_failed() -> None:
    async def babble(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 mail.test ESMTP\r\n\r\n")

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, babble, 0, host="127.0.0.1"))
        with pytest.raises(ConnectFailed, match="not an HTTP"):
            async with open_client(f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/", reconnect=None):
                pytest.fail("not reached")
        nursery.cancel_scope.cancel()


async def test_an_error_of_our_server_is_typed() -> None:
    async with serving(app()) as server, open_client(server.urls[0]) as client:
        with pytest.raises(RpcError, match="INVALID_ARGUMENT"):
            await client.request(Work(0), correlation_id="x" * 10, meta={"traceparent": 5})


@pytest.mark.parametrize(
    ("url", "host_field", "authority", "label"),
    [
        ("ws://h", "h", "h:80", "ws://h"),
        ("wss://H:443/p?q", "h", "h:443", "wss://h:443/p"),
        ("ws://[::1]:81/", "[::1]:81", "[::1]:81", "ws://[::1]:81/"),
        ("wss://me:pw@h:1/", "h:1", "h:1", "wss://h:1/"),
        ("ws://h:443/", "h:443", "h:443", "ws://h:443/"),  # the other scheme's port
        ("wss://h:80/", "h:80", "h:80", "wss://h:80/"),
        ("ws://bücher.test/", "xn--bcher-kva.test", "xn--bcher-kva.test:80", "ws://xn--bcher-kva.test/"),
    ],
)
def test_a_url_is_taken_apart(url: str, host_field: str, authority: str, label: str) -> None:
    target = Target.parse(url)
    assert (target.host_field, target.authority, target.label) == (host_field, authority, label)
    assert "pw" not in repr(target)


def test_a_path_is_quoted_as_a_browser_does() -> None:
    assert Target.parse("ws://h/grüß dich/%20?a=b c&d=[1]").request_target == "/gr%C3%BC%C3%9F%20dich/%20?a=b%20c&d=[1]"


@final
class _Everywhere(trio.abc.HostnameResolver):
    """Every name is this machine's."""

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        family: int = 0,
        type: int = 0,  # noqa: A002 - the interface's word
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        return await trio.to_thread.run_sync(socket.getaddrinfo, "127.0.0.1", port, family, type, proto, flags)

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


async def test_a_certificate_for_another_name_is_refused() -> None:
    trio.socket.set_custom_hostname_resolver(_Everywhere())
    async with serving(app(), ssl_context=server_tls()) as server:
        async with open_client(f"wss://localhost:{server.port}/", ssl_context=client_tls()) as client:
            assert await client.request(Work(0)) == Done(0)
        url = f"wss://bank.test:{server.port}/"
        with pytest.raises(ConnectFailed, match="certificate"):
            async with open_client(url, ssl_context=client_tls(), reconnect=None):
                pytest.fail("not reached")
