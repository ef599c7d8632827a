"""docs/extending.md, done as it says in a copy of the repository."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
SECTIONS = {
    title: BLOCK.findall(text)
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Return a copy of the source with every file that the page shows."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("snopt", "experiments", "scripts", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for language, text in (block for blocks in SECTIONS.values() for block in blocks):
        if language != "console":
            path = folder / text.partition("\n")[0].removeprefix("# ")
            assert not path.exists(), f"{path} is there already: the page adds nothing"
            path.write_text(text.partition("\n")[2], encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_does_what_it_says(copy, title):
    commands = [text for language, text in SECTIONS[title] if language == "console"]
    assert commands
    for line in "".join(commands).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "python"
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_the_python_files_of_the_page_pass_the_linter(copy):
    files = [
        text.partition("\n")[0].removeprefix("# ")
        for blocks in SECTIONS.values()
        for language, text in blocks
        if language == "python"
    ]
    ruff = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*ruff, *files], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
