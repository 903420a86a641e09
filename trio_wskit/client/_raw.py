"""Messages that have no class: what a tool sends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, final

import attrs

from trio_wskit._core.envelope import ABSENT, is_reserved
from trio_wskit._core.json_text import dumps, is_json
from trio_wskit._core.schema import MessageSpec, spec_of
from trio_wskit.errors import ConfigError, PayloadInvalid

__all__ = ["RawMessage", "compiled", "spec_of_instance"]


@final
@attrs.frozen
class RawMessage:
    """A message that has no class."""

    type: str
    payload: Any

    def __attrs_post_init__(self) -> None:
        if not self.type or is_reserved(self.type):
            raise ConfigError(f'a message type is not empty, and does not start with "__" or "$": {self.type!r}')

    def encode(self, meta: dict[str, Any]) -> bytes:
        """See `MessageSpec.encode`."""
        envelope: dict[str, Any] = {"type": self.type, "meta": meta}
        if self.payload is not ABSENT:
            envelope["payload"] = self.payload
        if not is_json(envelope):
            raise PayloadInvalid(self.type, [{"path": "", "message": "expected JSON"}])
        return dumps(envelope)


def spec_of_instance(message: object) -> MessageSpec:
    """The spec of a message's class.

    Raises:
        ConfigError: it is no message; in particular, it is the class itself.
    """
    if isinstance(message, type):
        raise ConfigError(f"takes a message, not its class: {message.__qualname__}(…)")
    return spec_of(type(message))


def compiled(message: object) -> tuple[Callable[[dict[str, Any]], bytes], MessageSpec | None]:
    """How a request is written, and what answers it; None for anything."""
    if isinstance(message, RawMessage):
        return message.encode, None
    spec = spec_of_instance(message)
    if spec.reply is None:
        raise ConfigError(f"{spec.cls.__qualname__} is no request: give it a reply: class …(Rpc[Reply])")
    return partial(spec.encode, message), spec.reply
