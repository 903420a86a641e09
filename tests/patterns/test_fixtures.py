"""The facts of the patterns' fixtures, played against a real session."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from trio.testing import MockClock

from tests.patterns.worlds import WORLDS, World
from tests.sessions import open_house, settle

FOLDER = Path(__file__).resolve().parent.parent / "data" / "patterns"
FIXTURES = sorted(FOLDER.glob("*/[0-9]*.json"))


def has(whole: Any, part: Any) -> bool:
    """True where `whole` says what `part` says, and maybe more."""
    if type(whole) is not type(part):
        return False
    if isinstance(part, dict):
        wanted = cast("dict[str, Any]", part)
        return all(key in whole and has(whole[key], value) for key, value in wanted.items())
    if isinstance(part, list):
        items: list[Any] = [*part]
        return len(whole) == len(items) and all(map(has, whole, items))
    return bool(whole == part)


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


async def play(world: World, step: dict[str, Any]) -> None:
    match step["actor"], step["action"]:
        case _, "assert":
            check(world, step["assertions"])
        case "client", "send":
            world.peer.send(step["msg"]["type"], step["msg"]["payload"] or None)
            await settle()
        case "server", "send":
            received = await world.peer.receive()
            assert has(received, step["msg"]), f"the server sent {received}, not {step['msg']}"
            world.take(received)
        case "server", "silent":
            assert await world.peer.heard() == []
        case _:
            await world.act(step)
            await settle()


def check(world: World, assertions: list[dict[str, Any]]) -> None:
    for assertion in assertions:
        ((name, value),) = assertion.items()
        assert world.fact(name) == value, f"{name} is {world.fact(name)!r}, not {value!r}"


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
async def test_a_fixture_is_as_it_says(autojump_clock: MockClock, path: Path) -> None:
    fixture = load(path)
    world = WORLDS[path.parent.name]()
    async with open_house(world.router) as house:
        await world.open(house)
        for step in fixture["steps"]:
            await play(world, step)
        check(world, fixture["assertions"])


@pytest.mark.parametrize("pattern", WORLDS)
def test_a_pattern_has_numbered_fixtures_of_its_contract(pattern: str) -> None:
    contract = load(FOLDER / pattern / "contract.json")
    assert contract["schemaVersion"] == "1.0.0"
    paths = [path for path in FIXTURES if path.parent.name == pattern]
    assert len(paths) >= 3
    for number, path in enumerate(paths, 1):
        assert path.name.startswith(f"{number:03d}-")
        fixture = load(path)
        assert fixture["schemaVersion"] == contract["schemaVersion"]
        assert fixture["fixtureVersion"] >= 1
        assert fixture["name"]
        assert fixture["description"]
        assert isinstance(fixture["steps"], list)
        assert isinstance(fixture["assertions"], list)
