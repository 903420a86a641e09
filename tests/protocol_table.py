"""The protocol as a table: what a client sends, in which state, what it is answered, what becomes of its connection.

`docs/reference/protocol.md` shows it, and `tests/test_protocol_table.py` plays every row of it.
After a change: ``python -m tests.protocol_table``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import attrs

from tests.sessions import raw

__all__ = ["PAGE", "ROWS", "Row", "table"]

PAGE: Final = Path(__file__).parent.parent / "docs" / "reference" / "protocol.md"
BEGIN: Final = "<!-- tests/protocol_table.py writes from here -->"
END: Final = "<!-- to here -->"


@attrs.frozen(kw_only=True)
class Row:
    """One line of the table, and how to play it.

    Attributes:
        input: what comes, in words.
        state: what was before, in words; empty where it does not matter.
        before: messages that bring the state about.
        drains: the app begins to drain then.
        send: what comes.
        wait: seconds until everything is answered.
        answers: ``TYPE`` or ``TYPE CODE``, each with the correlation id in brackets where it has one.
        closed: the close code; None where the connection lives.
        limits: other limits than the default ones.
        cut: the client is gone after sending.
    """

    input: str
    state: str = ""
    before: tuple[str, ...] = ()
    drains: bool = False
    send: tuple[str, ...]
    wait: float = 0.0
    answers: tuple[str, ...] = ()
    closed: int | None = None
    limits: dict[str, Any] = attrs.field(factory=dict)
    cut: bool = False


def _call(kind: str, payload: object = None, call: str = "1", **meta: object) -> str:
    return raw(kind, payload, call_id=call, **meta)


_RUNS: Final = (_call("ADD", {"n": 5}),)
_ABORT: Final = raw("$ws:abort", correlationId="1")
_KEY: Final = {"idempotencyKey": "k"}

ROWS: Final = (
    # what is no message
    Row(input="no JSON", send=("{",), answers=("ERROR INVALID_ARGUMENT",)),
    Row(input="JSON that is no object", send=("[1]",), answers=("ERROR INVALID_ARGUMENT",)),
    Row(input="an object without a type", send=('{"meta":{}}',), answers=("ERROR INVALID_ARGUMENT",)),
    Row(
        input="an object without a type, with a correlation id",
        send=('{"meta":{"correlationId":"1"}}',),
        answers=("RPC_ERROR INVALID_ARGUMENT [1]",),
    ),
    Row(input="a reserved type", send=(raw("__x"),), answers=("ERROR INVALID_ARGUMENT",)),
    Row(
        input="a meta key of the wrong type",
        send=(_call("ADD", timeoutMs="5"),),
        answers=("RPC_ERROR INVALID_ARGUMENT [1]",),
    ),
    Row(
        input="one malformed message more than `max_protocol_errors` allows",
        limits={"max_protocol_errors": 2},
        send=("{", "{", "{"),
        answers=("ERROR INVALID_ARGUMENT", "ERROR INVALID_ARGUMENT"),
        closed=1008,
    ),
    # what is too much
    Row(
        input="a message above `max_payload_bytes`",
        state="`on_exceeded` is `send`",
        limits={"max_payload_bytes": 100},
        send=(raw("SAY", {"text": "x" * 100}),),
        answers=("ERROR RESOURCE_EXHAUSTED",),
    ),
    Row(
        input="a message above `max_payload_bytes`",
        state="`on_exceeded` is `close`",
        limits={"max_payload_bytes": 100, "on_exceeded": "close"},
        send=(raw("SAY", {"text": "x" * 100}),),
        closed=1009,
    ),
    Row(
        input="a message above `max_payload_bytes`",
        state="`on_exceeded` is `custom`",
        limits={"max_payload_bytes": 100, "on_exceeded": "custom"},
        send=(raw("SAY", {"text": "x" * 100}),),
    ),
    Row(
        input="a message over the rate",
        state="`on_exceeded` is `send`",
        limits={"message_rate": (1, 1)},
        send=(raw("SAY", {"text": "a"}), _call("ADD", {"n": 0})),
        answers=("RPC_ERROR RESOURCE_EXHAUSTED [1]", "SAID"),
    ),
    Row(
        input="a message over the rate",
        state="`on_exceeded` is `close`",
        limits={"message_rate": (1, 1), "on_exceeded": "close"},
        before=(raw("SAY", {"text": "a"}),),
        send=(raw("SAY", {"text": "b"}),),
        answers=("SAID",),
        closed=1013,
    ),
    # events
    Row(input="an event", send=(raw("SAY", {"text": "a"}),), answers=("SAID",)),
    Row(input="an event of unknown type", send=(raw("WHAT"),), answers=("ERROR UNIMPLEMENTED",)),
    Row(
        input="a message of unknown type with a correlation id",
        send=(_call("WHAT"),),
        answers=("RPC_ERROR UNIMPLEMENTED [1]",),
    ),
    Row(
        input="an event that does not fit its schema",
        send=(raw("SAY", {"text": 5}),),
        answers=("ERROR INVALID_ARGUMENT",),
    ),
    Row(
        input="an event whose handler raises an error with a code", send=(raw("REFUSED"),), answers=("ERROR NOT_FOUND",)
    ),
    Row(
        input="an event whose handler raises a registered exception",
        send=(raw("MAPPED"),),
        answers=("ERROR FAILED_PRECONDITION",),
    ),
    Row(input="an event whose handler raises anything else", send=(raw("BROKEN"),), answers=("ERROR INTERNAL",)),
    Row(
        input="an event whose handler takes longer than its `timeout`",
        send=(raw("LATE"),),
        wait=10,
        answers=("ERROR DEADLINE_EXCEEDED",),
    ),
    # calls
    Row(input="a call", send=(_call("ADD", {"n": 1}),), wait=2, answers=("TOTAL [1]",)),
    Row(input="a call without a correlation id", send=(raw("ADD", {"n": 1}),), wait=2, answers=("TOTAL",)),
    Row(
        input="a call with progress",
        send=(_call("STEPS"),),
        answers=("$ws:rpc-progress [1]", "$ws:rpc-progress [1]", "TOTAL [1]"),
    ),
    Row(
        input="a call that does not fit its schema",
        send=(_call("ADD", {"n": "x"}),),
        answers=("RPC_ERROR INVALID_ARGUMENT [1]",),
    ),
    Row(
        input="a call whose handler raises an error with a code",
        send=(_call("REFUSED_CALL"),),
        answers=("RPC_ERROR NOT_FOUND [1]",),
    ),
    Row(
        input="a call whose handler raises anything else",
        send=(_call("BROKEN_CALL"),),
        answers=("RPC_ERROR INTERNAL [1]",),
    ),
    Row(
        input="a call whose handler returns no reply, or a wrong one",
        send=(_call("EMPTY"),),
        answers=("RPC_ERROR INTERNAL [1]",),
    ),
    Row(input="a call whose handler answers twice", send=(_call("TWICE"),), answers=("TOTAL [1]",)),
    Row(
        input="a call with the correlation id of one that runs",
        state="call 1 runs",
        before=_RUNS,
        send=_RUNS,
        wait=6,
        answers=("ERROR ALREADY_EXISTS", "TOTAL [1]"),
    ),
    Row(
        input="a call that cannot be served with the correlation id of one that runs",
        state="call 1 runs",
        before=_RUNS,
        send=(_call("WHAT"), _call("ADD", timeoutMs="5")),
        wait=10,
        answers=("ERROR ALREADY_EXISTS", "ERROR ALREADY_EXISTS", "TOTAL [1]"),
    ),
    Row(
        input="a call",
        state="`max_in_flight` calls run",
        limits={"max_in_flight": 1},
        before=_RUNS,
        send=(_call("ADD", call="2"),),
        wait=6,
        answers=("RPC_ERROR RESOURCE_EXHAUSTED [2]", "TOTAL [1]"),
    ),
    Row(
        input="a call that takes longer than its `timeoutMs`",
        send=(_call("ADD", {"n": 5}, timeoutMs=1000),),
        wait=2,
        answers=("RPC_ERROR DEADLINE_EXCEEDED [1]",),
    ),
    Row(
        input="a call that takes longer than `call_timeout`",
        send=(_call("ADD", {"n": 99}),),
        wait=31,
        answers=("RPC_ERROR DEADLINE_EXCEEDED [1]",),
    ),
    Row(
        input="a call with the idempotency key of one that was answered",
        before=(_call("ADD", {"n": 0}, **_KEY),),
        state="call 1 was answered",
        send=(_call("ADD", {"n": 0}, call="2", **_KEY),),
        answers=("TOTAL [1]", "TOTAL [2]"),
    ),
    Row(
        input="a call with the idempotency key of one that runs",
        before=(_call("ADD", {"n": 5}, **_KEY),),
        state="call 1 runs",
        send=(_call("ADD", {"n": 5}, call="2", **_KEY),),
        wait=6,
        answers=("TOTAL [1]", "TOTAL [2]"),
    ),
    Row(
        input="another call with the same idempotency key",
        before=(_call("ADD", {"n": 0}, **_KEY),),
        state="call 1 was answered",
        send=(_call("ADD", {"n": 1}, call="2", **_KEY),),
        answers=("TOTAL [1]", "RPC_ERROR ALREADY_EXISTS [2]"),
    ),
    # control
    Row(input="`__heartbeat`", send=(raw("__heartbeat"),), answers=("__heartbeat_ack",)),
    Row(input="`$ws:abort`", state="call 1 runs", before=_RUNS, send=(_ABORT,), answers=("RPC_ERROR CANCELLED [1]",)),
    Row(
        input="`$ws:abort`",
        state="call 1 waits behind an event",
        before=(raw("SLOW"), *_RUNS),
        send=(_ABORT,),
        wait=6,
        answers=("RPC_ERROR CANCELLED [1]",),
    ),
    Row(input="`$ws:abort`", state="no such call", send=(_ABORT,)),
    Row(input="`$ws:abort` without a correlation id", send=(raw("$ws:abort"),)),
    # ends
    Row(input="the client leaves", state="call 1 runs: it is cancelled", before=_RUNS, send=(), cut=True, closed=1000),
    Row(
        input="a message",
        state="the app drains, call 1 runs",
        before=_RUNS,
        drains=True,
        send=(raw("SAY", {"text": "a"}), _call("ADD", call="2")),
        wait=6,
        answers=("ERROR UNAVAILABLE", "RPC_ERROR UNAVAILABLE [2]", "TOTAL [1]"),
        closed=1012,
    ),
    Row(
        input="(nothing)",
        state="the app drains, call 1 runs longer than that",
        before=(_call("ADD", {"n": 20}),),
        drains=True,
        send=(),
        wait=12,
        answers=("RPC_ERROR CANCELLED [1]",),
        closed=1012,
    ),
)


def table() -> str:
    """The rows as a table of the page."""
    lines = ["| input | state | answer | connection |", "|---|---|---|---|"]
    for row in ROWS:
        answer = ", ".join(f"`{one}`" for one in row.answers) or "none"
        lines.append(f"| {row.input} | {row.state} | {answer} | {'open' if row.closed is None else row.closed} |")
    return "\n".join(lines)


def written(page: str) -> str:
    """The page with the table in its place."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
