"""A whole comparison: what is trained, what a second call adds, what is drawn from one file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic_protocol import FakeTraining, tiny
from synthetic_runs import whole_comparison

from experiments.base.environment import REPOSITORY
from experiments.base.errors import ConfigError, RecordError
from experiments.run.records import Record
from experiments.studies import execute
from experiments.studies.comparison import session, targets
from experiments.studies.comparison.drawing import FILES, draw
from experiments.studies.comparison.rows import csv_of, read_rows
from experiments.studies.comparison.session import Request, compare, set_targets
from experiments.studies.execute import PlannedRun
from tests.experiments.figures.synthetic import write_record

SCRIPT = [sys.executable, str(REPOSITORY / "scripts" / "protocol.py")]
FAKE = REPOSITORY / "tests" / "experiments" / "figures" / "fake_train.py"


def quiet(line: str) -> None:
    pass


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    fake = FakeTraining()
    monkeypatch.setattr(targets, "train_all", fake)
    monkeypatch.setattr(session, "train_all", fake)
    return fake


def tiny_request(tmp_path: Path) -> Request:
    return Request(
        data_dir=tmp_path,
        output_dir=tmp_path / "outputs",
        results_dir=tmp_path / "results",
        configs=tiny(tmp_path / "configs"),
    )


def test_a_comparison_is_trained_once_and_summarised(tmp_path, training):
    request = tiny_request(tmp_path)
    set_targets(request, quiet)
    assert len(training.trained) == 4
    rows = compare(request, quiet)
    assert len(training.trained) == 4 + 4 + 4  # two optimizers: two trials, two fresh seeds
    assert [(r.optimizer, r.role, r.study, r.trial, r.seed) for r in rows[:4]] == [
        ("adam", "search", 0, 0, 300),
        ("adam", "search", 0, 1, 300),
        ("sgd", "search", 0, 0, 300),
        ("sgd", "search", 0, 1, 300),
    ]
    for name in ("adam", "sgd"):
        own = [r for r in rows if r.optimizer == name]
        best = min(own[:2], key=lambda r: (r.seconds, r.last))
        again = [r for r in own if r.role == "fresh"]
        assert [r.seed for r in again] == [400, 401]
        assert all(r.settings == best.settings for r in again)
    path = request.folder / "runs.csv"
    assert len(read_rows(path)) == 8
    before = path.read_bytes()
    # a record that was lost is made again, nothing else is
    lost = next(request.output_dir.glob("*/*/sgd/*/seed-400"))
    shutil.rmtree(lost)
    compare(request, quiet)
    assert len(training.trained) == 13
    assert path.read_bytes() == before


def test_data_sets_can_be_chosen_and_wrong_requests_are_named(tmp_path, training):
    request = tiny_request(tmp_path)
    with pytest.raises(ConfigError, match="first set the targets"):
        compare(request, quiet)
    with pytest.raises(ConfigError, match="--jobs must be at least 1"):
        Request(jobs=0)
    assert training.trained == []
    assert Request().folder == Path("results/protocol")
    assert Request(budget="full").folder == Path("results/protocol-full")


def planned(tmp_path: Path, outcomes: list[str]) -> tuple[list[PlannedRun], list[str]]:
    """Runs for the stand-in of the training script, and its command."""
    runs, table = [], {}
    for number, outcome in enumerate(outcomes):
        folder = tmp_path / "outputs" / "image" / "digits" / "adam" / f"h{number}" / "seed-0"
        runs.append(PlannedRun("digits", f"adam {number}", 0, folder, (f"n={number}",), ()))
        table[f"n={number}"] = {"folder": str(folder), "do": outcome}
    (tmp_path / "fake.json").write_text(json.dumps(table))
    return runs, [sys.executable, str(FAKE), str(tmp_path / "fake.json")]


def test_a_run_that_fails_is_tried_twice_and_then_named(tmp_path):
    runs, train = planned(tmp_path, ["done", "failed", "diverged"])
    said: list[str] = []
    with pytest.raises(RecordError) as caught:
        execute.train_all(runs, 1, said.append, train)
    assert str(caught.value) == (
        "1 of 3 runs failed twice:\n  digits · adam 1 · seed 0: out of memory"
    )
    assert (tmp_path / "fake.log").read_text().split() == ["n=0", "n=1", "n=2", "n=1"]
    assert "1 runs failed; once more:" in said


def test_a_run_that_another_process_trains_is_waited_for(tmp_path):
    runs, train = planned(tmp_path, ["done"])
    assert not execute.held(runs[0].folder)
    record = Record(runs[0].folder)
    said: list[str] = []
    with record.locked():
        assert execute.held(runs[0].folder)
        pauses = []

        def finish(seconds: float) -> None:
            pauses.append(seconds)
            record.lock_path.unlink()

        execute.wait_for_others(runs, said.append, finish)
        record.lock_path.touch()
    assert said == ["waiting for another process that trains digits · adam 0 · seed 0"]
    assert len(pauses) == 1
    execute.train_all(runs, 1, said.append, train)
    assert (tmp_path / "fake.log").read_text().split() == ["n=0"]


def test_everything_is_drawn_from_one_file(tmp_path):
    rows = whole_comparison(["snopt", "adam", "sgd", "kfac"], ["digits", "circle"])
    folders = [tmp_path / name for name in ("first", "second")]
    said: list[str] = []
    for folder in folders:
        folder.mkdir()
        (folder / "runs.csv").write_text(csv_of(rows))
        draw(folder, "a command", said.append)
        assert {path.name for path in folder.iterdir()} == {*FILES, "runs.csv"}
    for name in FILES:
        first, second = ((folder / name).read_bytes() for folder in folders)
        if name == "provenance.json":
            kept = [json.loads(text) for text in (first, second)]
            for one in kept:
                one.pop("drawn")
            assert kept[0] == kept[1]
            assert kept[0]["runs"]["number"] == len(rows)
            assert kept[0]["seeds"] == [300, 301, 302, 400, 401, 402]
            assert kept[0]["fresh_seeds"] == [400, 401, 402]
            assert kept[0]["runs"]["commits"] == [{"commit": "0" * 40, "runs": len(rows)}]
        else:
            assert first == second, name
    assert said[0] == (
        "warning: best setting on the border of its search space:"
        " Circle · SGD: lr at its upper end (0.03)"
    )
    table = (folders[0] / "table.md").read_text()
    assert "(!) On the border of its space: SGD: lr at its upper end (0.03)." in table
    assert "| SGD | missed | 0 of 3 |" in table
    assert "CPU, 1 thread, 2 runs at a time; 3 studies of 3 trials each." in table
    pictures = [(folders[0] / name).stat().st_size for name in ("profile.png", "speedup.png")]
    assert min(pictures) > 20_000


def test_a_comparison_that_all_missed_can_be_drawn(tmp_path):
    rows = whole_comparison(["sgd"], ["digits"])
    (tmp_path / "runs.csv").write_text(csv_of(rows))
    draw(tmp_path, "a command", quiet)
    table = (tmp_path / "table.md").read_text()
    assert "| SGD | 0.00 | 0.00 | 0.00 | 0.00 | 1.00 (1.00 to 1.00) | – |" in table
    assert "1 of 1 | 3 of 3 |" in table


def test_the_committed_results_come_from_the_committed_file(tmp_path):
    folder = REPOSITORY / "results" / "protocol"
    if not (folder / "runs.csv").is_file():
        pytest.skip("results/protocol is not there")
    shutil.copy(folder / "runs.csv", tmp_path)
    draw(tmp_path, "a command", quiet)
    for name in ("table.md", "data.csv"):
        assert (tmp_path / name).read_text() == (folder / name).read_text(), name


def run_script(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SCRIPT, *arguments], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_a_killed_comparison_goes_on_where_it_was(tmp_path):
    """The script itself on a tiny Circle: kill -9 in the middle, then the same command again."""
    configs, outputs = tiny(tmp_path / "configs"), tmp_path / "outputs"
    places = ["--configs", configs, "--output-dir", outputs, "--results-dir", tmp_path / "results"]
    arguments = [str(place) for place in places]
    refused = run_script(["run", *arguments])
    assert refused.returncode == 2
    assert "first set the targets" in refused.stderr
    done = run_script(["targets", *arguments])
    assert done.returncode == 0, done.stderr
    with subprocess.Popen([*SCRIPT, "run", *arguments], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(list(outputs.glob("*/*/*/*/seed-300/metrics.jsonl"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    done = run_script(["run", *arguments])
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "results" / "protocol" / "runs.csv")
    assert len(rows) == 8
    assert all(row.state == "done" and row.total_steps > 0 for row in rows)
    for status in outputs.glob("*/*/*/*/*/status.json"):
        assert json.loads(status.read_text())["starts"] == 1  # orphans were waited for
    assert set(FILES) <= {path.name for path in (tmp_path / "results" / "protocol").iterdir()}
    again = run_script(["run", *arguments])
    assert "4 of 4 runs are done already" in again.stdout
    assert again.returncode == 0


def test_a_failed_run_is_not_summarised(tmp_path, training, monkeypatch):
    request = tiny_request(tmp_path)
    set_targets(request, quiet)
    compare(request, quiet)
    folder = next(request.output_dir.glob("*/*/sgd/*/seed-401"))
    task, dataset, optimizer, digest, _ = folder.parts[-5:]
    shutil.rmtree(folder)
    write_record(
        request.output_dir, dataset, optimizer, 401, task=task, digest=digest, state="failed"
    )
    monkeypatch.setattr(session, "train_all", lambda *_: None)
    with pytest.raises(RecordError, match="sgd, best setting · seed 401 is failed"):
        compare(request, quiet)
