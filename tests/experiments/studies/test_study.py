"""Studies of stub runs: states, retries, orphans, stops, several workers; nothing is trained."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest

from experiments.base.errors import ConfigError, RecordError
from experiments.run.records import Record
from experiments.studies.study import (
    Point,
    Study,
    Workplace,
    open_storage,
    study_names,
    train_points,
)
from tests.experiments.studies import stub_study
from tests.experiments.studies.stub_study import SPACE, Stub, objective


def start_worker(folder: Path, jobs: int, *storage: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, stub_study.__file__, str(folder), str(jobs), *storage]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def test_all_is_done_then_nothing_is_started_again(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["done"], ["diverged"], ["done"]], r2=0.9)
    assert stub.work() == {}
    assert stub.states() == ["done", "diverged", "done"]
    views = stub.study().views()
    assert [one.value for one in views] == [-0.5, math.inf, -0.9]
    assert [one.params for one in views] == [{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}]
    assert [one.folders for one in views] == [(stub.record(k).folder,) for k in range(3)]
    stub.work()
    assert stub.said[-1] == "3 of 3 trials are done already"
    assert stub.attempts() == [1, 1, 1]


def test_what_failed_is_tried_once_more_after_all_others(tmp_path: Path) -> None:
    orders = [["failed"], ["failed", "done"], ["crash"], ["kill", "diverged"], ["refuse"], ["done"]]
    stub = Stub(tmp_path, orders)
    assert stub.work() == {
        "point 0 · adam · seed 0": "OSError: disk full",
        "point 2 · adam · seed 0": "exit status 1: RuntimeError: a bug",
        "point 4 · adam · seed 0": "no data there",
    }
    assert stub.states() == ["failed", "done", "failed", "diverged", "failed", "done"]
    assert stub.attempts() == [2, 2, 2, 2, 2, 1]
    begun = [int(line.partition("point ")[2][0]) for line in stub.said if line.startswith("[")]
    assert begun == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]
    assert "    failed: ended by SIGKILL (out of memory?)" in stub.said
    # A rerun is the one more try of what failed before, and a repair is noticed.
    repaired = json.dumps({"do": ["done"], "folder": str(stub.record(0).folder), "value": 0.5})
    (tmp_path / "orders" / "0.json").write_text(repaired)
    assert len(stub.work()) == 2
    assert stub.attempts() == [3, 2, 3, 2, 3, 1]
    assert stub.states() == ["done", "done", "failed", "diverged", "failed", "done"]


def test_every_state_is_told_without_starting_anything(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["slow"], ["slow"], ["done"]])
    worker = start_worker(tmp_path, 2)
    stub.await_start(0)
    stub.await_start(1)
    assert stub.states() == ["running", "running", "waiting"]
    worker.kill()
    worker.wait()
    assert stub.states() == ["running", "running", "waiting"]  # orphans are at work
    for number in (0, 1):
        owner = stub.record(number).lock_path.read_text().split()[1]
        os.kill(int(owner), signal.SIGKILL if number else signal.SIGINT)
    deadline = time.monotonic() + 30.0
    while stub.states() != ["interrupted", "interrupted", "waiting"]:
        assert time.monotonic() < deadline, stub.states()
        time.sleep(0.05)
    assert stub.attempts() == [1, 1, 0]


def test_an_orphan_is_waited_for_and_takes_up_its_place(tmp_path: Path) -> None:
    """A killed worker leaves a run behind that still trains; it ends on its own, done."""
    stub = Stub(tmp_path, [["3.0"], ["done"]])
    worker = start_worker(tmp_path, 1)
    stub.await_start(0)
    worker.kill()
    worker.wait()
    assert stub.work() == {}
    assert (stub.attempts(), stub.completed()) == ([1, 1], [1, 1])
    waited = "waiting for another process that trains point 0 · adam · seed 0"
    assert stub.said == ["[1] point 0 · adam · seed 0", waited, "[2] point 1 · adam · seed 0"]


def test_a_signal_stops_the_whole_and_the_same_call_goes_on(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["slow", "done"], ["done"]])

    def interrupt() -> None:
        stub.await_start(0)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        stub.work()
    thread.join()
    assert stub.states() == ["interrupted", "waiting"]
    assert stub.record(0).state == "interrupted"
    assert stub.work() == {}
    assert (stub.attempts(), stub.states()) == ([2, 1], ["done", "done"])


def test_a_worker_that_is_told_so_begins_nothing_more(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["done"], ["done"]])
    stub.work(going=lambda: not stub.record(0).status_path.exists())
    assert stub.states() == ["done", "waiting"]


def test_a_record_that_was_lost_is_made_again(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["done"], ["done"]])
    stub.work()
    shutil.rmtree(stub.record(1).folder)
    stub.work()
    assert stub.completed() == [1, 2]


def test_records_that_are_there_are_not_trained(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["done"], ["done"]])
    stub.by_hand(0).wait()
    stub.work()
    assert stub.completed() == [1, 1]
    assert stub.states() == ["done", "done"]


def test_a_fixed_list_is_a_study_and_its_failures_are_named(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["done"], ["failed"]])
    points = list(stub.plan.values())
    place = Workplace(output_dir=tmp_path / "out", train=stub.train)
    with pytest.raises(RecordError) as caught:
        train_points("list", points, objective, place, stub.said.append, consequence="no table")
    assert str(caught.value) == (
        "no table, 1 of 2 runs failed:\n  point 1 · adam · seed 0: OSError: disk full"
    )
    [name] = study_names(tmp_path / "out")
    assert name.startswith("list-")


def test_any_database_serves_and_a_study_keeps_to_its_records(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["done"]] * 2)
    url = f"sqlite:///{tmp_path}/studies.db"
    assert stub.work(stub.study(url)) == {}
    assert study_names(tmp_path / "out", url) == ["stub"]
    assert not (tmp_path / "out" / "studies" / "journal.log").exists()
    with pytest.raises(ConfigError, match="has its records elsewhere, not in"):
        Study("stub", tmp_path / "other", url)
    with pytest.raises(ConfigError, match="cannot use the storage nosuch://x"):
        stub.study("nosuch://x")


def test_a_line_that_was_cut_off_does_not_spoil_the_journal(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["done"]])
    stub.work()
    with (tmp_path / "out" / "studies" / "journal.log").open("a") as file:
        file.write('{"op_code":8,"wor')
    stub = Stub(tmp_path, [["done"], ["done"]])
    stub.work()
    assert stub.states() == ["done", "done"]
    with (tmp_path / "out" / "studies" / "journal.log").open("a") as file:
        file.write("damaged\nmore\n")
    with pytest.raises(RecordError, match="the journal of the studies is damaged"):
        stub.study()


def test_the_sampler_chooses_what_the_plan_leaves_open(tmp_path: Path) -> None:
    """The same settings whoever comes to a trial; what failed is tried with the same ones."""
    seen: list[list[float]] = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        stub = Stub(folder, [["done"], ["failed", "done"], ["diverged"], ["done"]])
        own: list[float] = []

        def runs(number, stub=stub, own=own):
            return lambda params: (own.append(params["lr"]), [stub.run(number)])[1]

        stub.plan = {str(k): Point(str(k), runs(k), SPACE) for k in stub.numbers}
        if folder.name == "a":
            stub.work(going=lambda own=own: len(own) < 2)
        stub.work(stub.study())
        assert stub.states() == ["done", "done", "diverged", "done"]
        seen.append(own)
        assert all(0.01 <= lr <= 1000.0 for lr in own)
        assert [one.params["lr"] for one in stub.study().views()] == [*own[:1], own[-1], *own[2:4]]
    assert seen[0] == seen[1]
    assert seen[0][1] == seen[0][4]


def test_a_pruner_ends_runs_that_are_behind(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["1.0"], ["1.0"], ["1.0"], ["1.0"], ["1.0"], ["slow"]], r5=0.1)
    study = stub.study(pruner="median")

    def progress(folder: Path) -> list[float]:
        return [-row["val/accuracy"] for row in Record(folder).rows()]

    assert stub.work(study, progress=progress) == {}
    assert stub.states() == ["done"] * 5 + ["pruned"]
    assert stub.record(5).state == "interrupted"
    assert stub.work(study, progress=progress) == {}
    assert stub.attempts()[5] == 1


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_thirty_runs_survive_three_kills_none_lost_none_done_twice(tmp_path: Path, storage) -> None:
    stub = Stub(tmp_path, [["0.2"]] * 30)
    url = [f"sqlite:///{tmp_path}/studies.db"] if storage == "sqlite" else []
    chance = random.Random()  # noqa: S311 (the point is to be hit anywhere)
    for goal in (5, 12, 20):
        worker = start_worker(tmp_path, 2, *url)
        while sum(stub.completed()) < goal:
            assert worker.poll() is None
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 1.0))
        worker.kill()
        assert worker.wait() == -signal.SIGKILL  # it was at work
    assert start_worker(tmp_path, 2, *url).wait() == 0
    check_thirty(stub, *url)


@pytest.mark.slow
def test_of_two_workers_on_one_study_one_may_be_killed(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["0.2"]] * 30)
    workers = [start_worker(tmp_path, 1) for _ in range(2)]
    while sum(stub.completed()) < 8:
        time.sleep(0.02)
    workers[0].kill()
    workers[0].wait()
    assert workers[1].wait() == 0
    check_thirty(stub)


def check_thirty(stub: Stub, *url: str) -> None:
    assert stub.completed() == [1] * 30
    views = stub.study(*url).views()
    assert [one.state for one in views] == ["done"] * 30
    study = optuna.load_study(study_name="stub", storage=open_storage(stub.folder / "out", *url))
    assert len(study.trials) == 30  # no point stood in the queue twice
    assert len(list((stub.folder / "out").rglob("status.json"))) == 30
