"""The house stays a house: no long chains of imports inside the two packages."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> set[str]:
    """Return what a module imports, without what it imports for its annotations alone."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        else:
            found |= imports(node)
    return found


@pytest.mark.parametrize(("package", "longest"), [("snopt", 7), ("experiments", 10)])
def test_the_longest_chain_of_imports(package: str, longest: int) -> None:
    modules = {name_of(path): path for path in (ROOT / package).rglob("*.py")}
    edges = {
        name: imports(ast.parse(path.read_text())) & (modules.keys() - {name})
        for name, path in modules.items()
    }

    @cache
    def chain(name: str) -> tuple[str, ...]:
        return (name, *max(map(chain, edges[name]), key=len, default=()))

    found = max(map(chain, modules), key=len)
    assert len(found) <= longest, " → ".join(found)
