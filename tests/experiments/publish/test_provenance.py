"""Provenance names the code, the machine and every run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from experiments.base.errors import RecordError
from experiments.figures.request import Made, facts_of
from experiments.publish.provenance import devices, git_state, processor, publish, read_provenance
from experiments.run.records import summarise
from tests.experiments.figures.synthetic import write_record


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


def test_dirty_leaves_out_what_drawing_itself_writes(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
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
