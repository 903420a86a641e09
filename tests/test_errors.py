"""The codes: what each means to a client, on the wire and in the documents, however a handler says it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from trio.testing import MockClock

from tests.sessions import NOW, Add, Say, Total, open_house
from trio_wskit import Context, Router, WsKitError
from trio_wskit.errors import CODES, ErrorCode

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "protocol.md"
# As ws-kit has them: whether it may be tried again, and after how many milliseconds if nobody says.
TABLE: dict[str, tuple[bool | None, int | None]] = {
    "UNAUTHENTICATED": (False, None),
    "PERMISSION_DENIED": (False, None),
    "INVALID_ARGUMENT": (False, None),
    "FAILED_PRECONDITION": (False, None),
    "NOT_FOUND": (False, None),
    "ALREADY_EXISTS": (False, None),
    "UNIMPLEMENTED": (False, None),
    "CANCELLED": (False, None),
    "DEADLINE_EXCEEDED": (True, 50),
    "RESOURCE_EXHAUSTED": (True, 100),
    "UNAVAILABLE": (True, 100),
    "ABORTED": (True, 50),
    "INTERNAL": (None, 200),
}


def test_there_are_thirteen_codes_each_with_its_rule() -> None:
    assert set(TABLE) == set(CODES) == set(get_args(ErrorCode))
    for code, (retryable, wait) in TABLE.items():
        rule = CODES[code]
        assert (rule.retryable, rule.retry_after) == (retryable, None if wait is None else wait / 1000)


def test_the_page_has_the_same_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown: dict[str, tuple[bool | None, int | None]] = {}
    for codes, retryable, wait in re.findall(r"^\| (`[A-Z_`, ]+`) \| (\w[\w ]*) \| (\w+) \|$", text, re.MULTILINE):
        for code in re.findall(r"`(\w+)`", codes):
            may = {"no": False, "yes": True, "the application knows": None}[retryable]
            shown[code] = (may, None if wait == "none" else int(wait))
    assert shown == TABLE


async def told(raiser: Any, *, call: bool) -> dict[str, Any]:
    """What the client gets of a handler that raises so."""
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        raiser(ctx)

    @router.rpc(Add)
    async def add(ctx: Context[Add]) -> Total:
        raiser(ctx)
        raise AssertionError

    async with open_house(router) as house:
        client = await house.connect()
        if call:
            client.send("ADD", {}, call_id="1")
        else:
            client.say("")
        (frame,) = await client.heard()
    return frame


@pytest.mark.parametrize("call", [False, True], ids=["event", "call"])
@pytest.mark.parametrize("code", TABLE)
async def test_a_code_alone_has_its_own_text_and_wait_and_no_word_about_retrying(
    autojump_clock: MockClock, code: str, call: bool
) -> None:
    def raises(ctx: Context[Any]) -> None:
        raise WsKitError(code)

    frame = await told(raises, call=call)
    wait = TABLE[code][1]
    assert frame == {
        "type": "RPC_ERROR" if call else "ERROR",
        "meta": {"timestamp": NOW, "correlationId": "1"} if call else {"timestamp": NOW},
        "payload": {"code": code, "message": CODES[code].message} | ({} if wait is None else {"retryAfterMs": wait}),
    }


@pytest.mark.parametrize("call", [False, True], ids=["event", "call"])
@pytest.mark.parametrize(
    "said",
    [
        ("NOT_FOUND",),
        ("NOT_FOUND", "no such room"),
        ("ABORTED", "again", {"version": 3}),
        ("SOLD_OUT", "too late", {"left": 0}),  # an application's own
    ],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"retryable": True}, {"retryable": False}, {"retry_after": 1.5}, {"retryable": True, "retry_after": 0.0}],
)
async def test_to_raise_and_to_call_error_mean_the_same(
    autojump_clock: MockClock, said: tuple[Any, ...], options: dict[str, Any], call: bool
) -> None:
    def raises(ctx: Context[Any]) -> None:
        raise WsKitError(*said, **options)

    def calls(ctx: Context[Any]) -> None:
        ctx.error(*said, **options)

    frame = await told(raises, call=call)
    assert await told(calls, call=call) == frame
    payload = frame["payload"]
    assert payload["code"] == said[0]
    assert payload.get("retryable") == options.get("retryable")
    assert payload.get("details") == (said[2] if len(said) > 2 else None)
    if "retry_after" in options:
        assert payload["retryAfterMs"] == options["retry_after"] * 1000
    if options.get("retryable") is False:
        assert "retryAfterMs" not in payload


async def test_a_code_of_one_s_own_says_its_name_and_nothing_about_when_to_come_back(
    autojump_clock: MockClock,
) -> None:
    def raises(ctx: Context[Any]) -> None:
        raise WsKitError("SOLD_OUT")

    assert (await told(raises, call=True))["payload"] == {"code": "SOLD_OUT", "message": "SOLD_OUT"}


async def test_details_that_look_secret_never_leave(autojump_clock: MockClock) -> None:
    def raises(ctx: Context[Any]) -> None:
        raise WsKitError("NOT_FOUND", None, {"room": "a", "password": "x", "deep": {"token": "y", "kept": [1]}})

    assert (await told(raises, call=False))["payload"]["details"] == {"room": "a", "deep": {"kept": [1]}}
