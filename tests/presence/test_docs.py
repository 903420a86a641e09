"""The first example of the page is a program that works, and it is short."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.patterns.worlds import client_of
from trio_wskit import open_app
from trio_wskit.presence import PresenceDiff, PresenceView

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "howto" / "presence.md"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20
    module = ModuleType("presence_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # annotations are resolved in a class' module
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    return module


async def test_who_enters_sees_the_others_come_and_go(autojump_clock: MockClock, example: Any) -> None:
    enter = example.Enter
    async with (
        open_app(example.app) as app,
        trio.open_nursery() as nursery,
        client_of(app, nursery) as ann,
        ann.messages(PresenceDiff) as changes,
    ):
        view = PresenceView(await ann.request(enter("room", "Ann")))
        async with client_of(app, nursery) as bob:
            await bob.request(enter("room", "Bob"))
            assert view.apply(await changes.receive())
            assert sorted(one["name"] for one in view.members.values()) == ["Ann", "Bob"]
        assert view.apply(await changes.receive())
        assert [one["name"] for one in view.members.values()] == ["Ann"]
