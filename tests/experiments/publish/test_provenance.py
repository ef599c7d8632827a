"""Provenance names the code, the machine and every run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from experiments.publish.provenance import git_state, machine, processor, provenance
from experiments.run.records import summarise
from tests.experiments.figures.synthetic import write_record


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


def test_dirty_leaves_out_what_drawing_itself_writes(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("a\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "start")
    assert git_state(tmp_path)["dirty"] is False
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "figure.png").write_text("picture")
    assert git_state(tmp_path)["dirty"] is False
    (tmp_path / "code.py").write_text("b\n")
    assert git_state(tmp_path)["dirty"] is True


def test_outside_a_checkout_nothing_is_claimed(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"commit": None, "dirty": None}


def test_every_run_has_hash_seed_seconds_and_command(tmp_path: Path) -> None:
    runs = [summarise(write_record(tmp_path, "digits", "adam", seed)) for seed in (0, 1)]
    origin = provenance("figure-1", "make reproduce-figure-1", runs, ["first", "second"])
    json.dumps(origin)
    assert origin["target"] == "figure-1"
    assert origin["command"] == "make reproduce-figure-1"
    assert origin["versions"]["torch"].startswith("2.")
    assert "matplotlib" in origin["versions"]
    assert origin["processor"] == processor() != ""
    assert [run["seed"] for run in origin["runs"]] == [0, 1]
    assert {run["hash"] for run in origin["runs"]} == {"abc123"}
    assert origin["runs"][1]["command"] == "second"
    assert origin["runs"][1]["seconds"] == {"training": 1.0, "evaluation": 0.2, "logging": 0.1}
    # No path of this machine: a record is found by its hash.
    assert str(tmp_path) not in json.dumps(origin)


def test_different_machines_are_all_named(tmp_path: Path) -> None:
    one = summarise(write_record(tmp_path, "digits", "adam", 0))
    folder = write_record(tmp_path, "digits", "adam", 1)
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "device": "cuda:0", "threads": 1}))
    assert machine([one]) == "CPU, 2 threads"
    assert machine([one, summarise(folder)]) == "CPU, 2 threads and cuda:0, 1 thread"
