"""The documentation says what is so: its API page has every public name, and its Python is Python that works."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import trio

from tests.serving import serving
from tools import api_page
from trio_wskit import App

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = {name for module in api_page.public_modules() for name in api_page.public_names(module)}


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


WITH_CODE = [page for page in PAGES if blocks(page)]


def test_the_api_page_has_every_public_name_with_a_line() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", api_page.PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert sorted(rows) == sorted(NAMES), "python tools/api_page.py"
    assert [name for name, line in rows.items() if not line] == []


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_in_a_page_is_python_and_imports_what_exists(page: Path) -> None:
    for block in blocks(page):
        # A part of a program may await, and stand in a function that is not shown.
        tree = compile(block, str(page), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        assert isinstance(tree, ast.Module)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trio_wskit"):
                module = ModuleType("imports")
                exec(compile(ast.Module([node], []), str(page), "exec"), module.__dict__)


@pytest.fixture
def first_program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Runs the first block of a page, as a module that is not `__main__`."""

    def run(page: str) -> ModuleType:
        module = ModuleType(f"page_{len(page)}")
        monkeypatch.setitem(sys.modules, module.__name__, module)  # annotations are resolved in a class' module
        exec(compile(blocks(ROOT / page)[0], page, "exec"), module.__dict__)
        return module

    return run


async def test_the_client_of_its_page_talks_to_the_server_of_the_readme(
    first_program: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    router = first_program("README.md").router
    client = first_program("docs/howto/client.md")
    async with serving(App(router)) as server:
        with trio.fail_after(20):
            await client.main(server.urls[0])
    assert capsys.readouterr().out == "hello\n"
