"""From options to a client that lives."""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from trio_wskit._core.options import Limits
from trio_wskit._flusher import Flusher
from trio_wskit.client._asking import Asker
from trio_wskit.client._auth import TokenAuth, plain_handshake
from trio_wskit.client._client import Client
from trio_wskit.client._connect import Connector, Dialer, Target
from trio_wskit.client._lifecycle import Lifecycle
from trio_wskit.client._listening import Listening
from trio_wskit.client._queue import OfflineQueue, QueueOptions
from trio_wskit.client._receive import Receiver
from trio_wskit.client._reconnect import Reconnect
from trio_wskit.client._requests import Requests
from trio_wskit.client._retry import Retry
from trio_wskit.client._sending import Sender
from trio_wskit.client._streams import Bell
from trio_wskit.client._subscriptions import Subscriptions
from trio_wskit.client._turns import Turns
from trio_wskit.errors import ConfigError, TrioWskitError

__all__ = ["open_client"]

_LAST_WORDS: Final = 1.0  # seconds for a goodbye when the block failed or was cancelled
_DEFAULT_RECONNECT: Final = Reconnect()


@asynccontextmanager
async def open_client(
    url: str,
    *,
    auth: TokenAuth | None = None,
    subprotocols: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    reconnect: Reconnect | None = _DEFAULT_RECONNECT,
    queue: QueueOptions | None = None,
    retry: Retry | None = None,
    limits: Limits | None = None,
    max_pending: int = 1000,
    handler_capacity: int = 1000,
    send_deadlines: bool | None = None,
    ssl_context: ssl.SSLContext | None = None,
    proxy: str | None = None,
    proxy_ssl_context: ssl.SSLContext | None = None,
    deflate: bool = False,
    wait: bool = True,
    connect: Connector | None = None,
    wall_clock: Callable[[], float] = time.time,
    randomness: Callable[[], float] = random.random,
) -> AsyncGenerator[Client]:
    """Be a client of a ws-kit or trio-wskit server, for the time of an ``async with`` block.

    Leaving the block sends what the outbox holds and closes with 1000, within ``Limits.close_timeout`` seconds; when
    the block raised or was cancelled, within one. What the block raises comes out as it is.

    Args:
        url: ``ws://host:port/path?query``, or wss.
        auth: who we are.
        subprotocols: those we speak, the best first.
        headers: further fields of the handshake.
        reconnect: when to connect again; None for never.
        queue: what happens to what is sent while there is no connection.
        retry: which requests are sent again, unless a request says otherwise; None for none.
        limits: the bounds. Of these a client uses ``max_payload_bytes``, ``max_depth``, ``max_waiting_batches``,
            ``outbox_*``, ``ping_*``, ``write_timeout`` and ``close_timeout``; ``handshake_timeout`` for one attempt to
            connect, from the token to the answer; and ``call_timeout`` for a request.
        max_pending: requests that may wait for their answers.
        handler_capacity: messages that may wait for the handlers of `Client.on`; then nothing is read.
        send_deadlines: send ``timeoutMs`` with requests; by default to a server that says that it takes it, for
            ws-kit's own server drops such a request.
        ssl_context: for wss; by default the system's roots, and the host's name is checked.
        proxy: ``http://user:password@host:port`` (or https), which is asked for a tunnel.
        proxy_ssl_context: for a proxy of https; by default as for `ssl_context`.
        deflate: offer permessage-deflate.
        wait: begin the block when there is a connection; attempts that fail are repeated as `reconnect` says. With
            False the block begins at once, and what it sends is queued.
        connect: opens links, instead of TCP and TLS: for tests, and for ways that are not thought of here.
        wall_clock: gives seconds since 1970, for timestamps on the wire.
        randomness: gives numbers from 0 to 1, for delays.

    Raises:
        ConfigError: an argument is wrong.
        ConnectionClosed: with `wait`: there will be no connection; a `ConnectFailed` where there was none.

    Cancelled: the connection is closed with 1000, within a second.
    """
    options: list[tuple[str, object, type]] = [
        ("auth", auth, TokenAuth),
        ("headers", headers, Mapping),
        ("reconnect", reconnect, Reconnect),
        ("queue", queue, QueueOptions),
        ("retry", retry, Retry),
        ("limits", limits, Limits),
    ]
    for name, value, cls in options:
        if value is not None and not isinstance(value, cls):  # said now, and not when it is first needed
            raise ConfigError(f"{name} takes a {cls.__name__}, not {type(value).__name__}")
    limits = limits or Limits()
    queue = queue or QueueOptions()
    if max_pending < 1:
        raise ConfigError(f"max_pending takes a whole number above 0, not {max_pending!r}")
    target = Target.parse(url)
    if connect is None:
        connect = Dialer(
            target,
            ssl_context=ssl_context,
            proxy=proxy,
            proxy_ssl_context=proxy_ssl_context,
            deflate=deflate,
            max_message_bytes=limits.max_frame_bytes,
        )
    flusher = Flusher()
    bell = Bell()
    requests = Requests(max_pending, bell.ring)
    receiver = Receiver(requests, bell, handler_capacity)
    waiting = OfflineQueue(queue, receiver.failed)
    life = Lifecycle(
        label=target.label,
        connect=connect,
        handshake=plain_handshake(target.request_target, subprotocols, headers or {}),
        auth=auth,
        reconnect=reconnect,
        limits=limits,
        flusher=flusher,
        receiver=receiver,
        bell=bell,
        randomness=randomness,
    )
    sender = Sender(life, waiting, requests, wall_clock)
    asker = Asker(
        life=life,
        sender=sender,
        requests=requests,
        retry=retry,
        call_timeout=limits.call_timeout,
        send_deadlines=send_deadlines,
        randomness=randomness,
    )
    subscriptions = Subscriptions(sender, receiver.gate)
    turns = Turns(
        life=life,
        requests=requests,
        receiver=receiver,
        sender=sender,
        queue=waiting,
        subscriptions=subscriptions,
        bell=bell,
    )
    client = Client(
        life=life,
        turns=turns,
        receiver=receiver,
        sender=sender,
        asker=asker,
        listening=Listening(life, receiver, subscriptions, bell),
    )
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flusher.run)
            nursery.start_soon(receiver.run_handlers)
            nursery.start_soon(waiting.run)
            nursery.start_soon(life.run, turns)
            try:
                try:
                    if wait:
                        await client.wait_open()
                    yield client
                except BaseException as error:  # it leaves below, without the group that the nursery would make of it
                    failure = error
                patience = limits.close_timeout if failure is None else _LAST_WORDS
                with trio.CancelScope(shield=failure is not None, deadline=trio.current_time() + patience):
                    await client.close()
            finally:
                flusher.stop()  # it is shielded: after a second Ctrl-C, nothing else would end it
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        _, others = group.split(trio.Cancelled)
        if others is None:
            if failure is None:
                raise  # all of it was cancelled from outside
        elif others.subgroup(Exception):
            # No task of a client raises, whatever the server and the application do: this is a bug, and it is ours.
            raise TrioWskitError("the client failed; the cause is below") from group
        else:
            raise  # Ctrl-C
    if failure is not None:
        raise failure
