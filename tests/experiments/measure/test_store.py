"""Result files: layout, merging, damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.base.errors import RecordError
from experiments.measure import store
from experiments.measure.origin import in_words, origin
from tests.experiments.measure.synthetic import ORIGIN, engine_entry


def test_every_workload_says_where_it_comes_from(tmp_path: Path) -> None:
    entry = {**engine_entry(), "origin": origin(torch.device("cpu"), 9)}
    store.save(tmp_path / "new", "engine", "conv", entry)
    results = json.loads((tmp_path / "new" / "engine.json").read_text())
    assert (results["benchmark"], results["schema"]) == ("engine", store.SCHEMA)
    for found in (results["origin"], results["workloads"]["conv"]["origin"]):
        assert found["device"] == "cpu"
        assert found["processor"]
        assert found["threads"] == torch.get_num_threads()
        assert found["repeats"] == 9
        assert {"torch", "torchdiffeq", "python"} <= set(found["versions"])
        assert set(found["git"]) == {"commit", "dirty"}
        assert found["date"][:2] == "20"


def test_a_new_workload_leaves_the_others(tmp_path: Path) -> None:
    store.save(tmp_path, "engine", "conv", engine_entry("a"))
    store.save(tmp_path, "engine", "linear", engine_entry("b"))
    store.save(tmp_path, "engine", "conv", engine_entry("c"))
    titles = {n: e["title"] for n, e in store.load(tmp_path, "engine")["workloads"].items()}
    assert titles == {"conv": "c", "linear": "b"}
    assert [path.name for path in tmp_path.iterdir()] == ["engine.json"]  # nothing left over


def test_nothing_that_is_no_number_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(tmp_path, "engine", "conv", {**engine_entry(), "bad": float("nan")})
    assert not (tmp_path / "engine.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "benchmark 'engine'"),
        ('{"benchmark": "memory", "schema": 1, "workloads": {}}', "benchmark 'engine'"),
        ('{"benchmark": "engine", "schema": 0, "workloads": {}}', "layout 0"),
        ('{"benchmark": "engine", "schema": 1}', "no table"),
        (
            '{"benchmark": "engine", "schema": 1, "workloads": {"conv": {"origin": {}}}}',
            "'conv' does not say its device, processor",
        ),
    ],
)
def test_a_damaged_file_is_named_and_kept(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "engine.json").write_text(text)
    with pytest.raises(RecordError, match=message):
        store.save(tmp_path, "engine", "conv", engine_entry())
    assert (tmp_path / "engine.json").read_text() == text


def test_machines_in_words() -> None:
    assert in_words(ORIGIN) == "CPU (A Processor), 2 threads"
    assert in_words({**ORIGIN, "threads": 1}) == "CPU (A Processor), 1 thread"
    assert in_words({**ORIGIN, "device": "cuda (NVIDIA H200)"}) == "cuda (NVIDIA H200)"
