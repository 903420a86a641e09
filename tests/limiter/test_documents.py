"""The pages about the limiter tell the truth: the guide's pieces, in their order, are one program, and it runs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
from hypothesis import settings
from trio.testing import MockClock

from tests.sessions import error_of, open_house
from tests.valkey import COREDIS_RUBBISH, Server
from trio_wskit import Reject, Request
from trio_wskit.limiter import MemoryRateLimiter, Policy

pytestmark = [pytest.mark.filterwarnings(COREDIS_RUBBISH), pytest.mark.usefixtures("coredis_rubbish")]

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "howto" / "rate-limiting.md"
REFERENCE = ROOT / "docs" / "reference" / "limiter.md"
PIECES = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def guide() -> Generator[Any]:
    module = ModuleType("rate_limiting_guide")
    sys.modules[module.__name__] = module  # annotations are resolved in a class' module
    for number, code in enumerate(PIECES):
        exec(compile(code, f"{GUIDE}, piece {number}", "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]


async def test_the_guide_s_limits_hold(
    guide: Any, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_house(guide.router) as house:
        client = await house.connect()
        client.send("SAY", {"text": "hello"})
        for number in range(3):
            client.send("MAKE_REPORT", {"rows": 400}, call_id=str(number))
        client.send("MAKE_REPORT", {"rows": 1001}, call_id="too many")
        said, first, second, third, impossible = await client.heard()
        assert (said["type"], first["type"], second["type"]) == ("SAY", "REPORT", "REPORT")
        assert error_of(third) == "RESOURCE_EXHAUSTED"
        assert third["payload"]["retryAfterMs"] == 4000
        assert error_of(impossible) == "FAILED_PRECONDITION"
        assert guide.metrics()["messages_passed"] == 5
        for _ in range(10):
            client.send("SAY", {"text": "hello"})
        *answers, refused = await client.heard()
        assert [one["type"] for one in answers] == ["SAY"] * 9
        assert error_of(refused) == "RESOURCE_EXHAUSTED"
        for _ in range(10):
            client.send("SAY", {"text": "hello"})
        # The twenty-first that was asked for, as the guide shows it.
        (shown,) = re.findall(r"```json\n(.*?)\n```", GUIDE.read_text(encoding="utf-8"))
        assert (await client.heard())[-1]["payload"] == json.loads(shown)["payload"]
    assert f"client {client.client_id} wanted 1200 tokens, and there are 1000" in capsys.readouterr().out


async def test_the_guide_s_handshakes_are_limited(guide: Any, autojump_clock: MockClock) -> None:
    async with open_house(guide.router, authenticate=guide.handshakes) as house:
        clients = [await house.connect(Request(remote="203.0.113.7")) for _ in range(11)]
        assert [client.refused is None for client in clients] == [True] * 10 + [False]
        last = clients[-1].refused
        assert isinstance(last, Reject)
        assert (last.status, last.headers) == (429, {"Retry-After": "2"})
    assert guide.metrics()["handshakes_refused"] == 1


async def test_the_guide_s_other_uses_work(guide: Any, autojump_clock: MockClock) -> None:
    for _ in range(4):
        await guide.send_mail("ada@example.org")
    assert trio.current_time() == 10
    assert await guide.ask_model("ada", "x" * 30) == 30
    assert guide.reports.consume_nowait("ada", 0).remaining == 970
    assert guide.may_click("ada")


async def test_the_guide_s_processes_share_a_server(guide: Any, store: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `main`, but for the address and the port."""
    opened = guide.open_redis_limiter
    served: list[Any] = []

    def open_here(url: str, *args: Any, **options: Any) -> Any:
        assert url == "redis://localhost:6379/0"
        return opened(store.url, *args, **options)

    async def serve(app: Any, host: str, port: int) -> None:
        served.append(app)

    monkeypatch.setattr(guide, "serve", serve)
    monkeypatch.setattr(guide, "open_redis_limiter", open_here)
    await guide.main()
    (app,) = served
    assert {route.spec.type for route in app.router.routes} == {"SAY", "MAKE_REPORT"}


@asynccontextmanager
async def open_my_limiter(policy: Policy, clock: Callable[[], float] | None) -> AsyncGenerator[MemoryRateLimiter]:
    yield MemoryRateLimiter(policy, clock=clock)


async def test_the_proof_that_the_reference_shows_proves(autojump_clock: MockClock) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", REFERENCE.read_text(encoding="utf-8"), re.DOTALL)
    proof: dict[str, Any] = {"__name__": "proof", "open_my_limiter": open_my_limiter}
    exec(compile(code, str(REFERENCE), "exec"), proof)
    await proof["test_my_limiter_keeps_every_promise"]()
    proof["TestMyLimiter"].settings = settings(max_examples=3, stateful_step_count=10, deadline=None)
    await trio.to_thread.run_sync(proof["TestMyLimiter"]().runTest)  # it has a run of its own


def test_the_figures_are_those_that_were_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "limiter.json").read_text(encoding="utf-8"))
    tables = [measured[f"{what}, decisions a second"] for what in ("allowed", "refused")]
    tables += [measured["bytes a key"], measured["redis"]]
    shown = re.findall(
        r"^\| (\*\*trio-wskit\*\*|[\w-]+), (.+?) \| (.+) \|$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(shown) == len(measured["allowed, decisions a second"]) + len(measured["redis"])
    for name, kind, cells in shown:
        figures = [f"{table[key]:,.0f}" for table in tables if (key := f"{name.strip('*')}, {kind}") in table]
        # Trio's clock has the same buckets as the other, and is not weighed again.
        assert [one for one in cells.split(" | ") if one != "–"][: len(figures)] == figures, name
