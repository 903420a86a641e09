"""Conversations as files: a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, Any, Final, cast, final

import attrs
import trio

from trio_wskit._core.envelope import ABSENT
from trio_wskit.errors import ConfigError

__all__ = ["OPERATIONS", "Entry", "Recorder", "read_record"]

OPERATIONS: Final = frozenset({"send", "call", "sub", "unsub"})


@final
@attrs.frozen
class Entry:
    """Something that was asked of us.

    Attributes:
        at: seconds after the begin.
        operation: ``send``, ``call``, ``sub`` or ``unsub``.
        name: a message type, or a topic.
        payload: JSON, or ABSENT.
    """

    at: float
    operation: str
    name: str
    payload: Any = ABSENT

    def as_json(self) -> dict[str, Any]:
        """As it stands in a record."""
        found = {"op": self.operation, "type": self.name}
        return found if self.payload is ABSENT else {**found, "payload": self.payload}


def read_record(lines: Sequence[str]) -> list[Entry]:
    """Take from a record what was asked of us.

    Raises:
        ConfigError: a line is none of a record's; the text tells which.
    """
    return [entry for number, line in enumerate(lines, 1) if (entry := _read(number, line)) is not None]


def _read(number: int, line: str) -> Entry | None:
    try:
        found: Any = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"line {number} of the record is no JSON object")
    fields = cast("dict[str, Any]", found)
    if "op" not in fields:
        return None
    at, operation, name = fields.get("at"), fields["op"], fields.get("type")
    if not isinstance(at, (int, float)) or at < 0 or operation not in OPERATIONS or not isinstance(name, str):
        raise ConfigError(f'line {number} of the record has no good "at", "op" and "type"')
    return Entry(at, operation, name, fields.get("payload", ABSENT))


@final
class Recorder:
    """Writes a record.

    Args:
        file: where to; None for nowhere.
    """

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file
        self._began = trio.current_time()

    @property
    def now(self) -> float:
        """Seconds since the begin."""
        return trio.current_time() - self._began

    def write(self, **fields: object) -> None:
        """Write an entry, with its time."""
        if self._file is not None:
            self._file.write(json.dumps({"at": round(self.now, 3), **fields}, ensure_ascii=False) + "\n")
            self._file.flush()
