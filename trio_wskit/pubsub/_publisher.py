"""A publish, from whoever asks for it, up to the hub: checked, authorised, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast, final

import attrs
import trio

from trio_wskit._core.envelope import RESERVED_META
from trio_wskit._core.publishing import (
    LOCAL_META,
    PublishEnvelope,
    PublishErrorCode,
    PublishResult,
    Written,
    message_of,
)
from trio_wskit._core.schema import spec_of
from trio_wskit.errors import PayloadInvalid, PubSubError
from trio_wskit.pubsub._desk import Desk
from trio_wskit.pubsub._fanout import Quorum, make_quorum
from trio_wskit.pubsub._history import POSITION_META
from trio_wskit.pubsub._hub import Hub

if TYPE_CHECKING:
    from trio_wskit._router import Hooks
    from trio_wskit._session import Session

__all__ = ["Publisher"]

_DELIVERIES_PER_PASS: Final = 64  # a consumer whose broker has always more still lets the others run this often


@final
class Publisher:
    """The way to publish, the same for `Context`, `Session` and `App`.

    Args:
        hub: local fan-out and the driver.
        desk: rules and policy.
        hooks: whose observers are told.
        wall_clock: gives seconds since 1970.
        is_open: False when the app is not open, or no more.
    """

    def __init__(
        self,
        hub: Hub,
        desk: Desk,
        hooks: Callable[[], Hooks],
        wall_clock: Callable[[], float],
        is_open: Callable[[], bool],
    ) -> None:
        self._hub = hub
        self._desk = desk
        self._hooks = hooks
        self._wall_clock = wall_clock
        self._is_open = is_open
        self._until_pass = _DELIVERIES_PER_PASS

    async def publish(
        self,
        topic: str,
        message: object,
        *,
        client: Session | None = None,
        exclude: str | None = None,
        partition_key: str | None = None,
        meta: Mapping[str, Any] | None = None,
        quorum: float | None = None,
        within: float | None = None,
    ) -> PublishResult:
        """Publish, and tell the observers what came of it; see `App.publish`. Never raises for a run-time condition.

        Args:
            topic: where to.
            message: an instance of a message class.
            client: in whose name; None for the app's own.
            exclude: the client id that shall not get it.
            partition_key: for the driver.
            meta: further meta.
            quorum: a share of the subscribers to wait for.
            within: seconds to wait for them.

        Raises:
            ConfigError: `message` is not an instance of a message class; `quorum` and `within` are not both good.

        Cancelled: nothing is delivered here, but for what `Hub.publish` says.
        """
        spec = spec_of(type(message))
        counter: Quorum | None = None
        if quorum is not None or within is not None:
            counter = make_quorum(quorum, within)
        full_meta: dict[str, Any] = {"timestamp": int(self._wall_clock() * 1000)}
        if meta:
            full_meta.update(meta)
            full_meta.pop(LOCAL_META, None)
        desk = self._desk
        result: PublishResult | None = None
        name = topic
        try:
            name = desk.normalise(topic)
        except Exception as cause:  # the application's; it may refuse a name, too
            result = _failure("VALIDATION", cause, topic=topic)
        if result is None:
            result = self._refused(name)
        if result is None and desk.policy.authorise_publish is not None:
            result = await self._forbidden(client, name, message)
        histories, keep = desk.histories, None
        if result is None and histories is not None:
            try:
                keep = histories.of(name)
            except Exception as cause:  # the application's
                result = _failure("ADAPTER_ERROR", cause, topic=topic)
            if keep is not None:
                for key in POSITION_META:
                    full_meta.pop(key, None)
        encoded = b""
        if result is None:
            try:
                encoded = spec.encode(message, full_meta)
            except PayloadInvalid as invalid:
                result = PublishResult.failure("VALIDATION", invalid, invalid.details)
            else:
                limit = desk.rules.max_message_bytes
                if len(encoded) > limit:
                    result = _failure("PAYLOAD_TOO_LARGE", None, observed=len(encoded), limit=limit)
        written = Written(encoded, spec.type, full_meta) if encoded else None
        envelope = PublishEnvelope(name, spec.type, written, full_meta, exclude, partition_key)
        if result is None:
            if keep is None or histories is None:
                result = await self._hub.publish(envelope, encoded, quorum=counter)
            else:
                result = await histories.publish(envelope, encoded, keep, counter)
        for observer in self._hooks().observers:
            observer.published(envelope, result)
        return result

    async def deliver(self, envelope: PublishEnvelope) -> None:
        """Give what another process published to the subscribers of this one: it was checked and authorised there.

        It is a cancellation point each time, but lets other tasks run only every 64th time. Cancelled: nothing is
        delivered.

        Raises:
            TypeError: the meta is not JSON.
        """
        self._until_pass -= 1
        if self._until_pass > 0:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._until_pass = _DELIVERIES_PER_PASS
            await trio.lowlevel.checkpoint()
        meta = dict(envelope.meta)
        exclude = meta.pop(LOCAL_META, None)
        if envelope.exclude is None and isinstance(exclude, str):
            envelope = attrs.evolve(envelope, exclude=exclude)
        for key in RESERVED_META:
            meta.pop(key, None)
        if "timestamp" not in meta:
            meta["timestamp"] = int(self._wall_clock() * 1000)
        histories = self._desk.histories
        keep = None if histories is None else histories.of(envelope.topic)
        if keep is None or histories is None:
            await self._hub.spread(envelope, message_of(envelope.type, meta, envelope.payload))
        else:
            await histories.arrived(envelope, meta, keep)

    def _refused(self, topic: str) -> PublishResult | None:
        if not self._is_open():
            return _failure("STATE", None, why="the app is not open")
        if isinstance(cast("object", topic), str) and "*" in topic:
            return _failure("UNSUPPORTED", None, why="nobody can publish to a pattern", topic=topic)
        try:
            self._desk.rules.check(topic)
        except PubSubError as invalid:
            return PublishResult.failure("VALIDATION", invalid, invalid.details)
        return None

    async def _forbidden(self, client: Session | None, topic: str, message: object) -> PublishResult | None:
        authorise = self._desk.policy.authorise_publish
        assert authorise is not None
        cause: Exception | None = None
        try:
            if await authorise(client, topic, message):
                return None
        except Exception as error:
            cause = error
        return _failure("ACL_PUBLISH", cause, topic=topic)


def _failure(code: PublishErrorCode, cause: Exception | None, **details: Any) -> PublishResult:
    return PublishResult.failure(code, cause, details)
