"""Starting training processes: retries, orphans, signals, and what failures say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from experiments.base.errors import ConfigError, RecordError
from experiments.base.interrupts import stopping
from experiments.base.say import resumable
from experiments.run.build import load_data
from experiments.run.records import Record
from experiments.studies.execute import Training, estimate, execute, held
from tests.experiments.studies.stub_study import Stub


def run_all(stub: Stub, jobs: int = 1) -> None:
    runs = [stub.run(number) for number in stub.numbers]
    execute(runs, jobs, stub.said.append, stub.train, consequence="no figure")


def run_until_waiting(stub: Stub, other: subprocess.Popen[bytes]) -> None:
    """Run all; kill another process of a run when we say that we wait for it."""

    def say(line: str) -> None:
        stub.said.append(line)
        if line.startswith("waiting"):
            other.kill()
            other.wait()

    runs = [stub.run(number) for number in stub.numbers]
    execute(runs, 1, say, stub.train, consequence="no figure")


def test_a_run_that_fails_is_tried_twice_and_then_named(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["done"], ["failed"], ["diverged"], ["crash", "done"], ["kill"]])
    with pytest.raises(RecordError) as caught:
        run_all(stub)
    assert str(caught.value) == (
        "no figure, 2 of 5 runs failed:\n  point 1 · adam · seed 0: OSError: disk full\n"
        "  point 4 · adam · seed 0: ended by SIGKILL (out of memory?)"
    )
    assert stub.attempts() == [1, 2, 1, 2, 2]
    begun = [int(line.partition("point ")[2][0]) for line in stub.said if line.startswith("[")]
    assert begun == [0, 1, 2, 3, 4, 1, 3, 4]
    assert "    failed: OSError: disk full (it is tried once more)" in stub.said
    stub.said.clear()
    with pytest.raises(RecordError, match="2 of 5 runs failed"):
        run_all(stub)
    assert stub.said[0] == "3 of 5 runs are done already"


def test_how_long_runs_take_is_told_before_they_start(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["done"], ["done"], ["done"]])
    run_all(stub)
    assert stub.said[0] == "3 runs to train: how long they take is known after the first"
    assert re.fullmatch(r"\[1/3\] point 0 .* \(0 s so far\)", stub.said[1])
    assert re.fullmatch(r"\[3/3\] point 2 .* \(\d s so far, \d s left\)", stub.said[3])
    runs = [replace(stub.run(number), folder=tmp_path / "new", limit=60.0) for number in range(3)]
    assert estimate(runs, 1) == "about 3 min"
    assert estimate(runs, 2) == "about 2 min"
    assert estimate(runs[:1], 2) == "about 60 s"
    for seed, seconds in ((1, 3000.0), (2, 4200.0)):  # what other seeds took goes before the limit
        record = Record(tmp_path / f"seed-{seed}")
        record.folder.mkdir()
        record.write_status("done", wall_s=seconds)
    assert estimate(runs, 1) == "about 3 h 0 min"


@pytest.mark.parametrize("jobs", [0, -1, 1.5])
def test_a_number_of_jobs_that_starts_nothing_is_refused(tmp_path: Path, jobs) -> None:
    stub = Stub(tmp_path, [["done"]])
    with pytest.raises(ConfigError, match="jobs must be a whole number of at least 1, got"):
        run_all(stub, jobs)
    assert stub.attempts() == [0]


def test_without_a_word_in_its_record_a_failure_names_the_command(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["refuse"]])
    with pytest.raises(RecordError) as caught:
        run_all(stub)
    assert str(caught.value).endswith(
        "\n  point 0 · adam · seed 0: it ended with exit status 2; its own message is above. "
        "Command: python scripts/train.py run=0"
    )


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["done"]])
    stub.record(0).folder.mkdir(parents=True)
    stub.record(0).status_path.write_text("{}")
    with pytest.raises(RecordError, match="holds no state"):
        run_all(stub)


def test_a_finished_run_of_other_data_is_no_finished_run(tmp_path: Path) -> None:
    stub, data = Stub(tmp_path, [["done"]]), tmp_path / "points.csv"
    data.write_text("old")
    loads = {"_target_": "tests.experiments.stand_ins.load", "file": str(data)}
    run = replace(stub.run(0), data=loads)
    call = partial(execute, [run], 1, stub.said.append, stub.train, consequence="no figure")
    call()
    stub.record(0).write_status("done", data=load_data(loads)[1])
    call()
    data.write_text("other")
    with pytest.raises(RecordError, match=r"was trained on other data \(points.csv"):
        call()
    assert stub.attempts() == [1]


def test_a_run_whose_other_process_dies_is_taken_over(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["slow", "done"]])
    other = stub.by_hand(0)
    assert held(stub.record(0).folder)
    run_until_waiting(stub, other)
    assert "waiting for another process that trains point 0 · adam · seed 0" in stub.said
    assert stub.attempts() == [2]
    assert not held(stub.record(0).folder)


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_is_held_from_its_start_whoever_started_it_is_killed(tmp_path, begun) -> None:
    """Also before its own process has come as far as the record."""
    stub = Stub(tmp_path, [["slow"]])
    training = Training(1, stub.said.append, stub.train)
    process = training.start(stub.run(0)).process
    assert process is not None
    if begun:
        stub.await_start(0)
    assert held(stub.record(0).folder)
    assert training.launch(stub.run(0)) is None
    process.kill()
    process.wait()
    assert not held(stub.record(0).folder)


def test_nothing_is_trained_beside_what_a_killed_command_left_alive(tmp_path) -> None:
    """Not even a run that comes before it in the plan."""
    stub = Stub(tmp_path, [["done"], ["slow", "done"]])
    orphan = stub.by_hand(1)
    run_until_waiting(stub, orphan)
    told = [line.partition("(")[0] for line in stub.said if line.startswith(("[", "waiting"))]
    assert told == [
        "[1/2] point 1 · adam · seed 0 ",
        "waiting for another process that trains point 1 · adam · seed 0",
        "[2/2] point 0 · adam · seed 0 ",
    ]
    assert stub.attempts() == [1, 2]


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "XCPU"])
def test_a_signal_stops_all_runs_with_a_checkpoint(tmp_path: Path, capsys, name) -> None:
    """Runs are asked as the command was: only after Ctrl-C they may take their time.

    A cluster's warning to all processes is the command's affair: the runs live on until then.
    """
    stub, signum = Stub(tmp_path, [["slow"], ["slow"]]), getattr(signal, f"SIG{name}")
    before = {one: signal.getsignal(one) for one in stopping()}
    alive: list[bool] = []

    def interrupt() -> None:
        for number in stub.numbers:
            stub.await_start(number)
            if name.startswith("USR"):
                os.kill(int(stub.record(number).lock_path.read_text().split()[1]), signum)
        alive.extend(held(stub.record(number).folder) for number in stub.numbers)
        for _ in range(1 if name == "INT" else 2):  # the second one changes nothing
            os.kill(os.getpid(), signum)

    def work() -> str:
        run_all(stub, jobs=2)
        return "done"

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert resumable(work) == 128 + signum
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    thread.join()
    assert alive == [True, True]
    asked = "SIGINT" if name == "INT" else "SIGTERM"
    statuses = [stub.record(number).status() for number in stub.numbers]
    assert statuses == [{"state": "interrupted", "error": asked}] * 2
    assert stub.said[-1] == "stopping after the current step; Ctrl-C again ends it at once"
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"
