"""Write docs/reference/api.md: each public name with the first line of its docstring. A test misses none.

python tools/api_page.py
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "reference" / "api.md"
HEAD: Final = """# API

<!-- Written by `python tools/api_page.py` from the docstrings. Change those, not this. -->

Every public name, with the first line of what its docstring says; `help(name)` shows the rest: arguments with their
units and bounds, what is raised, and what cancelling does. A name stands in the first module that has it.
"""
_LONGEST: Final = 100
NOT_FOR_USERS: Final = frozenset({"trio_wskit.cli", "trio_wskit.demo"})  # programs


def public_modules() -> Iterator[ModuleType]:
    """The package and its modules, the less deep first."""
    package = importlib.import_module("trio_wskit")
    names = [found.name for found in pkgutil.walk_packages(package.__path__, "trio_wskit.")]
    yield package
    for name in sorted(names, key=lambda name: (name.count("."), name)):
        is_private = any(part.startswith("_") for part in name.split("."))
        if not is_private and not any(name == one or name.startswith(f"{one}.") for one in NOT_FOR_USERS):
            yield importlib.import_module(name)


def public_names(module: ModuleType) -> list[str]:
    """What a module exports: what `__all__` names, or what it imports as itself."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=_place)
    names = {
        alias.asname
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is not None and alias.asname == alias.name and not alias.asname.startswith("_")
    }
    return sorted(names, key=_place)


def _place(name: str) -> tuple[str, str]:
    return name.lower(), name


def first_line(module: ModuleType, name: str) -> str:
    """What a name is, in a line."""
    thing = getattr(module, name)
    if isinstance(thing, ModuleType) or inspect.isclass(thing) or inspect.isroutine(thing):
        lines = (inspect.getdoc(thing) or "").strip().splitlines()
        if lines:
            return lines[0]
    return _of_assignment(module, name)


def _of_assignment(module: ModuleType, name: str) -> str:
    """The text below an alias or a constant, or else what stands behind its `=`."""
    tree = ast.parse(inspect.getsource(module))
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.ImportFrom):
            if node.module and any((alias.asname or alias.name) == name for alias in node.names):
                return _of_assignment(importlib.import_module(node.module), name)
            continue
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if not any(isinstance(target, ast.Name) and target.id == name for target in targets):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            return after.value.value.strip().splitlines()[0]
        text = ast.unparse(node.value)
        return f"`{text}`" if len(text) <= _LONGEST else f"`{text[:_LONGEST]} …`"
    return ""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    seen: set[str] = set()
    for module in public_modules():
        names = [name for name in public_names(module) if name not in seen]
        if names:
            seen.update(names)
            about = (inspect.getdoc(module) or "").strip().splitlines()[0]
            rows = [f"| `{name}` | {first_line(module, name).replace('|', chr(92) + '|')} |" for name in names]
            parts.append("\n".join([f"## `{module.__name__}`\n\n{about}\n\n| name | |\n|---|---|", *rows]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page(), encoding="utf-8")
