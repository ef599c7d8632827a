"""Going on from a record that is damaged, incomplete or was begun elsewhere; refusing in time."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from inspect_runs import assert_same_run, checkpoint, status, stopped_at
from stand_ins import make_config

from experiments.base.errors import CheckpointError, ConfigError, RecordError
from experiments.run import run as run_module
from experiments.run.checkpoint import save_checkpoint
from experiments.run.records import Record, summarise
from experiments.run.run import run


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("model", {"extra": torch.zeros(1)}, r'model: .*Unexpected key.*"extra"'),
        ("model", {"encode.bias": torch.zeros(9)}, "model: .*size mismatch for encode.bias"),
        ("optimizer", {"param_groups": 3}, "optimizer: "),
        ("optimizer", {"extra": 3}, "optimizer: it has unknown 'extra'"),
        ("scheduler", {"extra": 3}, "scheduler: it has unknown 'extra'"),
        ("meter", {"nfe": {}}, "meter: KeyError: 'forward'"),
        ("meter", {"steps": "many"}, "meter: .*'many'"),
        ("clock", {"train": -1.0}, "clock: train is -1.0 seconds"),
        ("rng", {"torch": torch.zeros(3)}, "rng: "),
        ("rng", {"python": 3}, "rng: "),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, monkeypatch, part, change, message):
    config = make_config(tmp_path, "adam")
    folder = stopped_at(config, 7, monkeypatch)
    state = checkpoint(config)
    save_checkpoint(folder / "checkpoint.pt", {**state, part: {**state[part], **change}})
    with pytest.raises(CheckpointError, match=f"does not fit this run: {message}.*; remove it"):
        run(config)


def test_a_checkpoint_with_a_flipped_byte_is_refused(config, unbroken, monkeypatch):
    path = stopped_at(config, 7, monkeypatch) / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        run(config)
    path.unlink()
    run(config)
    assert_same_run(config, unbroken)


@pytest.mark.parametrize("state", ["done", "interrupted"])
def test_a_line_that_is_missing_in_the_middle_is_noticed(config, monkeypatch, state):
    folder = run(config).folder if state == "done" else stopped_at(config, 7, monkeypatch)
    path = folder / "metrics.jsonl"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[2:]))
    found = {"done": r"7 lines, the run wrote 8", "interrupted": r"3 lines .* goes on from 4"}
    reads = [run] if state == "interrupted" else [run, lambda _: summarise(folder)]
    for read in reads:
        with pytest.raises(RecordError, match=rf"{found[state]}; put the file back, or add train"):
            read(config)
    path.write_text(whole)
    assert run(config).state == "done"


def test_a_lost_checkpoint_is_told(config, unbroken, monkeypatch, capsys):
    (stopped_at(config, 7, monkeypatch) / "checkpoint.pt").unlink()
    run(config)
    told = "there is no checkpoint.pt: from the beginning; the 4 lines of metrics.jsonl are written"
    assert told in capsys.readouterr().out
    assert_same_run(config, unbroken)


def test_a_checkpoint_without_its_metrics_is_refused(config, monkeypatch):
    metrics = stopped_at(config, 7, monkeypatch) / "metrics.jsonl"
    metrics.unlink()
    with pytest.raises(RecordError, match=r"they end with step 6, it has none.*trainer.restart"):
        run(config)
    assert not metrics.exists()
    config["trainer"]["restart"] = True
    assert run(config).state == "done"


def test_a_done_run_without_its_metrics_is_not_skipped(config):
    (run(config).folder / "metrics.jsonl").unlink()
    with pytest.raises(
        RecordError, match=r"is done, but its metrics.jsonl is gone; add trainer.re"
    ):
        run(config)
    config["trainer"]["restart"] = True
    assert run(config).results


@pytest.fixture
def data(config, tmp_path):
    config["dataset"]["file"] = str(tmp_path / "points.csv")
    (tmp_path / "points.csv").write_text("old")
    return tmp_path / "points.csv"


@pytest.mark.parametrize("state", ["done", "interrupted"])
def test_a_record_of_other_data_is_refused(config, data, monkeypatch, state):
    folder = run(config).folder if state == "done" else stopped_at(config, 7, monkeypatch)
    noted = status(config)["data"]
    assert noted == {"points.csv": hashlib.sha256(b"old").hexdigest()}
    data.write_text("other")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RecordError) as caught:
        run(config)
    assert f"was trained on other data (points.csv had SHA-256 {noted['points.csv'][:8]}…, now" in (
        str(caught.value)
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    data.write_text("old")  # the three ways that the message names: back, elsewhere, anew
    done = run(config)
    assert done.state == "done"
    data.write_text("other")
    elsewhere = run({**config, "output_dir": config["output_dir"] + "/elsewhere"})
    assert elsewhere.results != done.results
    config["trainer"]["restart"] = True
    assert run(config).results == elsewhere.results
    assert status(config)["data"] != noted


def test_data_that_is_gone_or_was_not_noted_is_not_held_against_a_record(config, data):
    done = replace(run(config), trained=False)
    data.unlink()
    assert run(config) == done
    data.write_text("other")
    record = Record(done.folder)
    older = {key: value for key, value in record.status().items() if key != "data"}
    record.status_path.write_text(json.dumps(older))
    assert run(config) == done


def test_restart_repairs_a_damaged_status(config):
    (run(config).folder / "status.json").write_text("{")
    with pytest.raises(RecordError, match=r"trainer\.restart=true"):
        run(config)
    config["trainer"]["restart"] = True
    assert run(config).state == "done"


def test_a_run_that_another_process_finishes_meanwhile_is_left_alone(config, monkeypatch):
    build, calls = run_module.build, []

    def slow_build(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            run(config)  # the other process, after our first look at the state
        return build(*arguments)

    monkeypatch.setattr(run_module, "build", slow_build)
    result = run(config)
    assert result.state == "done"
    assert len(calls) == 2
    assert status(config)["starts"] == 1


@pytest.mark.parametrize("group", ["optimizer", "model", "solver", "dataset"])
def test_what_cannot_be_built_leaves_nothing_behind(tmp_path, capsys, group):
    config = make_config(tmp_path)
    config[group]["no_such_argument"] = 1
    with pytest.raises(ConfigError, match="no_such_argument"):
        run(config)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_every_start_is_kept_and_a_change_is_told(config, monkeypatch, capsys):
    commits = [{"commit": name * 40, "dirty": True} for name in "ab"]
    monkeypatch.setattr(run_module, "git_state", lambda: commits[0])
    stopped_at(config, 3, monkeypatch)
    stopped_at(config, 2, monkeypatch)
    assert "warning" not in capsys.readouterr().out
    monkeypatch.setattr(run_module, "git_state", lambda: commits[1])
    run(config)
    warning = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert [line.partition("warning: ")[2] for line in warning] == [
        "since the last start commit aaaaaaaa → bbbbbbbb"
    ]
    found = status(config)
    assert found["git_commit"] == "b" * 40
    assert [start["git_commit"][0] for start in found["history"]] == ["a", "a", "b"]
    assert {"started_at", "versions", "device", "threads", "git_dirty"} <= set(found["history"][0])
    assert (found["starts"], found["history"][0]["started_at"]) == (3, found["started_at"])
