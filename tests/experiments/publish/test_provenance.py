"""Provenance names the code, the machine and every run."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from experiments.base.environment import git_state
from experiments.base.errors import RecordError
from experiments.figures.request import Made, facts_of
from experiments.publish.provenance import devices, processor, publish, read_provenance
from experiments.run.records import summarise
from tests.experiments.figures.asking import write_record


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean working tree."""
    root = tmp_path / "checkout"
    for name in ("snopt/a.py", "configs/a.yaml", "results/README.md", "tests/a.py", "Makefile"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("a\n")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "start")
    return root


@pytest.mark.parametrize(
    ("name", "dirty"),
    [
        ("snopt/a.py", True),
        ("experiments/data/new.py", True),  # not tracked, and yet it can be run
        ("configs/a.yaml", True),
        ("results/README.md", False),
        ("results/figure.png", False),
        ("tests/a.py", False),
        ("Makefile", False),
        ("snopt/notes.txt", False),
    ],
)
def test_dirty_is_what_can_change_a_result(checkout: Path, name: str, dirty: bool) -> None:
    commit = (checkout / ".git" / "refs" / "heads" / "main").read_text().strip()
    assert git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).write_text("b\n")
    assert git_state(checkout) == {"commit": commit, "dirty": dirty}


def test_a_commit_is_that_of_the_checkout_itself(checkout: Path, monkeypatch) -> None:
    unpacked = checkout / "tarball"  # inside another repository
    unpacked.mkdir()
    assert git_state(unpacked) == {"commit": None, "dirty": None}
    own = git_state(checkout)
    git(checkout, "worktree", "add", "-q", str(unpacked / "tree"), "-b", "other")
    assert git_state(unpacked / "tree") == own
    monkeypatch.setenv("GIT_DIR", str(unpacked / "nowhere"))  # as hooks of git have it
    assert git_state(checkout) == own


def test_a_checkout_of_another_owner_has_its_commit(checkout: Path) -> None:
    own = git_state(checkout)
    try:
        for path in (checkout, *checkout.rglob("*")):
            os.chown(path, 12345, 12345)
    except PermissionError:
        pytest.skip("giving files away needs root")
    assert git_state(checkout) == own


def test_a_checkout_without_git_or_commit_is_told(tmp_path: Path, monkeypatch) -> None:
    git(tmp_path, "init", "-q")
    with pytest.warns(UserWarning, match="no commit is recorded: git says: fatal"):
        assert git_state(tmp_path) == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", "")
    with pytest.warns(UserWarning, match="no commit is recorded: git says: .*No such file.*'git'"):
        git_state(tmp_path)


def test_a_folder_has_numbers_and_where_they_come_from(tmp_path: Path) -> None:
    runs = [summarise(write_record(tmp_path, "digits", "adam", seed)) for seed in (0, 1)]
    facts = facts_of([Made(None, run, f"make {run.seed}") for run in runs])
    folder = tmp_path / "new" / "figure-1"
    publish(folder, "a\n1\n", target="figure-1", command="make it", caption="What.", **facts)
    assert (folder / "data.csv").read_text() == "a\n1\n"
    origin = read_provenance(folder)
    assert (origin["target"], origin["command"]) == ("figure-1", "make it")
    assert (origin["caption"], origin["device"]) == ("What.", "CPU, 2 threads")
    assert set(origin["git"]) == {"commit", "dirty"}
    assert origin["versions"]["torch"].startswith("2.")
    assert "matplotlib" in origin["versions"]
    assert origin["processor"] == processor() != ""
    assert origin["seeds"] == [run["seed"] for run in origin["runs"]] == [0, 1]
    assert {run["hash"] for run in origin["runs"]} == {"abc123"}
    assert origin["runs"][1]["command"] == "make 1"
    assert origin["runs"][1]["seconds"] == {"train": 1.0, "evaluation": 0.2, "logging": 0.1}
    assert origin["runs"][1]["wall_per_cpu"] == 1.25
    # No path of this machine: a record is found by its hash.
    assert str(tmp_path) not in json.dumps(origin)


def test_a_missing_provenance_is_an_empty_caption_and_a_damaged_one_named(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) == {"caption": ""}
    for text in ("{", "[]"):
        (tmp_path / "provenance.json").write_text(text)
        with pytest.raises(RecordError, match=r"provenance\.json is damaged"):
            read_provenance(tmp_path)


def test_different_machines_are_all_named() -> None:
    one, other = {"device": "cpu", "threads": 2}, {"device": "cuda:0", "threads": 1}
    assert devices([one]) == "CPU, 2 threads"
    assert devices([one, other, one]) == "CPU, 2 threads and cuda:0, 1 thread"
    assert devices([{"device": "cpu"}, {}]) == "CPU and unknown device"
