"""The README's example is the first code that anybody runs: it works, and it is short."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from trio_wskit import App, Request, open_app
from trio_wskit.transports.memory import memory_link

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) < 25
    module = ModuleType("readme_example")
    monkeypatch.setitem(sys.modules, "readme_example", module)  # annotations are resolved in a class' module
    exec(compile(code, str(README), "exec"), module.__dict__)
    return module


async def test_the_example_joins_a_room_and_hears_what_is_said(example: ModuleType) -> None:
    async with open_app(App(example.router)) as app, trio.open_nursery() as nursery:
        transport, peer = memory_link()
        nursery.start_soon(app.serve_session, transport, Request())

        async def ask(**envelope: Any) -> dict[str, Any]:
            await peer.send(json.dumps(envelope))
            answer: dict[str, Any] = json.loads(await peer.receive())
            return answer

        joined = await ask(type="JOIN", meta={"correlationId": "1"}, payload={"room": "a"})
        assert (joined["type"], joined["payload"], joined["meta"]["correlationId"]) == ("JOINED", {"room": "a"}, "1")
        said = await ask(type="SAY", payload={"room": "a", "text": "hello"})
        assert (said["type"], said["payload"]) == ("SAY", {"room": "a", "text": "hello"})
        wrong = await ask(type="SAY", payload={"room": "a", "text": 5})
        assert wrong["payload"]["code"] == "INVALID_ARGUMENT"
        assert [issue["path"] for issue in wrong["payload"]["details"]["issues"]] == ["text"]
        peer.close()


def test_every_piece_of_the_tutorial_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    tutorial = README.parent / "docs" / "tutorial" / "index.md"
    pieces = re.findall(r"```python\n(.*?)```", tutorial.read_text(encoding="utf-8"), re.DOTALL)
    assert len(pieces) == 3
    modules = [ModuleType(f"tutorial_{number}") for number in range(3)]
    for module, code in zip(modules, pieces, strict=True):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, f"{tutorial}, {module.__name__}", "exec"), module.__dict__)
    trio.run(modules[-1].test_an_unknown_type_is_refused)
