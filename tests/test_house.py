"""The house stays a house: no long chains of imports inside the two packages."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel, and with that of an editable install."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("snopt", "experiments", "scripts"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "out").mkdir()
    build = "from setuptools import build_meta as b; b.build_wheel('out'); b.build_editable('out')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    return copy / "out"


def test_the_wheel_holds_the_library_alone(built):
    [wheel] = [path for path in built.iterdir() if "editable" not in path.name]
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"snopt", "snopt-0.1.0.dist-info"}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "snopt").rglob("*.py")}
    assert {"snopt/py.typed", *modules} == {name for name in names if name.startswith("snopt/")}


def test_an_editable_install_has_the_experiments_too(built):
    [path] = [path for path in built.iterdir() if "editable" in path.name]
    wheel = zipfile.ZipFile(path)
    [pth] = [name for name in wheel.namelist() if name.endswith(".pth")]
    assert Path(wheel.read(pth).decode().strip()) == built.parent


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
