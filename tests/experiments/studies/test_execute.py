"""Starting training processes: retries, orphans, signals, and what failures say."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from experiments.base.errors import ConfigError, RecordError
from experiments.studies import execute as module
from experiments.studies.execute import execute, held
from tests.experiments.studies.stub_study import Stub


def run_all(stub: Stub, jobs: int = 1) -> None:
    runs = [stub.run(number) for number in stub.numbers]
    execute(runs, jobs, stub.said.append, stub.train, consequence="no figure")


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


def test_a_run_whose_other_process_dies_is_taken_over(tmp_path: Path) -> None:
    stub = Stub(tmp_path, [["slow", "done"]])
    other = stub.by_hand(0)
    assert held(stub.record(0).folder)
    threading.Timer(0.5, other.kill).start()
    run_all(stub)
    other.wait()
    assert stub.said[1] == "waiting for another process that trains point 0 · adam · seed 0"
    assert stub.attempts() == [2]
    assert not held(stub.record(0).folder)


def test_who_comes_second_to_a_run_waits_and_reports_no_failure(tmp_path, monkeypatch) -> None:
    """The lock is taken between the look and the start: the refusal is not the run's failure."""
    stub = Stub(tmp_path, [["slow", "done", "done"]])
    first = stub.by_hand(0)
    looks = [False]  # the first look sees nobody
    monkeypatch.setattr(module, "held", lambda path: looks.pop() if looks else held(path))
    threading.Timer(2.0, first.kill).start()
    run_all(stub)
    first.wait()
    assert stub.attempts() == [3]  # by hand, refused, done


@pytest.mark.parametrize("warning", [None, signal.SIGUSR2], ids=["stop", "cluster"])
def test_a_signal_stops_all_runs_with_a_checkpoint(tmp_path: Path, warning) -> None:
    """A cluster's warning to all processes is the launcher's affair: the run lives on."""
    stub = Stub(tmp_path, [["slow"], ["slow"]])
    alive: list[bool] = []

    def interrupt() -> None:
        stub.await_start(0)
        stub.await_start(1)
        if warning:
            os.kill(int(stub.record(0).lock_path.read_text().split()[1]), warning)
            time.sleep(0.3)
        alive.append(held(stub.record(0).folder))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_all(stub, jobs=2)
    thread.join()
    assert alive == [True]
    assert [stub.record(number).state for number in (0, 1)] == ["interrupted"] * 2
    assert stub.said[-1] == "stopping after the current step; Ctrl-C again ends it at once"
