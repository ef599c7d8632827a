"""Jobs and passes on stub runs: states, retries, orphans, stops; nothing is trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from stub_sweep import Inline, attempts, make_sweep, train

from experiments.base.errors import RecordError
from experiments.run.records import Record
from experiments.studies.sweeps import drive as driving
from experiments.studies.sweeps import job
from experiments.studies.sweeps.board import Board
from experiments.studies.sweeps.drive import drive
from experiments.studies.sweeps.launch import Launcher
from experiments.studies.sweeps.notes import Note, log_path, read_note, write_note
from experiments.studies.sweeps.outcome import failures, report, write_results
from experiments.studies.sweeps.plan import Sweep
from experiments.studies.sweeps.session import Ticket, opened
from experiments.studies.sweeps.state import views

BASIC = Launcher("basic", 1)


def states(sweep: Sweep) -> list[str]:
    return [one.state for one in views(sweep)]


def driven(sweep: Sweep, monkeypatch: pytest.MonkeyPatch, launcher: Launcher = BASIC) -> Inline:
    inline = Inline(sweep)
    monkeypatch.setattr(driving, "start", inline.start)
    drive(sweep, launcher, [], train=train(sweep), poll_s=0.02)
    return inline


def trained_by_hand(sweep: Sweep, number: int) -> subprocess.Popen[bytes]:
    """Start a run outside the sweep and wait until it holds its lock."""
    command = [*train(sweep), *sweep.runs[number].overrides]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (sweep.runs[number].folder / "started").exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_every_state_is_told_from_records_and_notes(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [["slow"], *[["done"]] * 7])
    for number, state in ((2, "done"), (3, "diverged"), (4, "interrupted"), (5, "failed")):
        record = Record(sweep.runs[number].folder)
        record.folder.mkdir(parents=True)
        record.write_status(state, error="a\nb" if state == "failed" else None, wall_s=3.0)
    Record(sweep.runs[6].folder).folder.mkdir(parents=True)
    Record(sweep.runs[6].folder).write_status("running")  # its process is gone: kill -9
    write_note(sweep.folder, 7, Note(attempts=1, error="ended by SIGSEGV"))
    process = trained_by_hand(sweep, 0)
    try:
        found = views(sweep)
        assert [one.state for one in found] == [
            *("running", "waiting", "done", "diverged"),
            *("interrupted", "failed", "interrupted", "failed"),
        ]
        assert failures(found) == [
            "point 5 (lr=0.6), seed 0: a",
            "point 7 (lr=0.8), seed 0: ended by SIGSEGV",
        ]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    assert states(sweep)[0] == "interrupted"
    (sweep.runs[2].folder / "status.json").write_text("{}")
    damaged = views(sweep)[2]
    assert (damaged.state, "holds no state" in str(damaged.error)) == ("failed", True)


def test_all_is_done_then_nothing_is_started_again(tmp_path: Path, monkeypatch) -> None:
    sweep = make_sweep(tmp_path, [["done"], ["diverged"], ["done"]])
    assert driven(sweep, monkeypatch).passes == [[0, 1, 2]]
    assert states(sweep) == ["done", "diverged", "done"]
    assert driven(sweep, monkeypatch).passes == []
    assert attempts(sweep) == [1, 1, 1]


def test_what_failed_is_tried_once_more_after_all_others(tmp_path: Path, monkeypatch) -> None:
    orders = [["failed"], ["failed", "done"], ["crash"], ["kill", "diverged"], ["refuse"], ["done"]]
    sweep = make_sweep(tmp_path, orders)
    assert driven(sweep, monkeypatch).passes == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4]]
    assert states(sweep) == ["failed", "done", "failed", "diverged", "failed", "done"]
    assert attempts(sweep) == [2, 2, 2, 2, 2, 1]
    errors = [one.error for one in views(sweep) if one.state == "failed"]
    assert errors == [
        "OSError: disk full",
        "exit status 1: RuntimeError: a bug",
        "no data there",
    ]
    # A rerun is the one more try of what failed before, and a repair is noticed.
    (tmp_path / "orders" / "0.json").write_text(
        json.dumps({"do": ["done"], "folder": str(sweep.runs[0].folder)})
    )
    assert driven(sweep, monkeypatch).passes == [[0, 2, 4]]
    assert states(sweep) == ["done", "done", "failed", "diverged", "failed", "done"]


def test_a_run_that_was_killed_says_how(tmp_path: Path, monkeypatch) -> None:
    sweep = make_sweep(tmp_path, [["kill"]])
    driven(sweep, monkeypatch)
    (one,) = views(sweep)
    assert (one.state, one.error) == ("failed", "ended by SIGKILL (out of memory?)")
    note = read_note(sweep.folder, 0)
    assert (note.attempts, note.pid) == (2, None)
    assert one.seconds == note.seconds > 0.0
    assert log_path(sweep.folder, 0).read_text().count("attempt") == 2


def test_an_orphan_is_waited_for_and_not_trained_a_second_time(tmp_path: Path, monkeypatch) -> None:
    """A killed process leaves a run behind that still trains; it ends on its own, done."""
    sweep = make_sweep(tmp_path, [["slow", "crash"], ["done"]])
    orphan = trained_by_hand(sweep, 0)
    said: list[list[str]] = []

    class Watching(Board):
        def show(self, found) -> None:
            said.append([one.state for one in found])
            if len(said) == 5:  # by now it was waited for; it ends well
                record = Record(sweep.runs[0].folder)
                row = {"step": 1, "time/train_s": 1.0, "val/accuracy": 0.7, "val/loss": 1.0}
                record.metrics_path.write_text(json.dumps(row) + "\n")
                orphan.kill()
                orphan.wait()
                record.write_status("done")

    inline = Inline(sweep)
    monkeypatch.setattr(driving, "start", inline.start)
    board = Watching(sweep, 1)
    drive(sweep, BASIC, [], board=board, train=train(sweep), poll_s=0.02)
    assert said[:5] == [["running", "waiting"]] * 5
    assert inline.passes == [[1]]
    assert attempts(sweep) == [1, 1]
    assert states(sweep) == ["done", "done"]


def test_an_orphan_that_dies_is_taken_over(tmp_path: Path, monkeypatch) -> None:
    sweep = make_sweep(tmp_path, [["slow", "done"]])
    orphan = trained_by_hand(sweep, 0)
    threading.Timer(0.5, orphan.kill).start()
    inline = driven(sweep, monkeypatch)
    orphan.wait()
    assert inline.passes == [[0]]
    assert (attempts(sweep), states(sweep)) == ([2], ["done"])


def test_on_a_cluster_other_runs_go_on_meanwhile(tmp_path: Path, monkeypatch) -> None:
    sweep = make_sweep(tmp_path, [["slow", "done"], ["done"]])
    orphan = trained_by_hand(sweep, 0)
    threading.Timer(1.5, orphan.kill).start()
    inline = driven(sweep, monkeypatch, Launcher("submitit_slurm", 4))
    orphan.wait()
    assert inline.passes == [[1], [0]]
    assert states(sweep) == ["done", "done"]


def test_who_comes_second_to_a_run_waits_and_reports_no_failure(tmp_path: Path) -> None:
    """The lock is taken between the look and the start: the refusal is not the run's failure."""
    sweep = make_sweep(tmp_path, [["slow", "done", "done"]])
    first = trained_by_hand(sweep, 0)
    with opened(sweep.folder) as session:
        ticket = Ticket(sweep.folder, session.token, True)
        looks = iter([None])  # the first look sees nobody
        real = job.holder
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(job, "holder", lambda folder: next(looks, real(folder)))
            threading.Timer(1.5, first.kill).start()
            job.work(sweep, 0, ticket, [], train(sweep))
    first.wait()
    assert attempts(sweep) == [3]  # by hand, refused, done
    assert "is being trained by process" in log_path(sweep.folder, 0).read_text()
    assert states(sweep) == ["done"]


def test_a_stop_interrupts_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [["slow", "done"], ["done"]])
    with opened(sweep.folder) as session:
        ticket = Ticket(sweep.folder, session.token, True)
        worker = threading.Thread(target=job.work, args=(sweep, 0, ticket, [], train(sweep)))
        worker.start()
        while not (sweep.runs[0].folder / "started").exists():
            time.sleep(0.02)
        assert states(sweep) == ["running", "waiting"]
        session.stop()
        worker.join(timeout=30)
        job.work(sweep, 1, ticket, [], train(sweep))
    assert states(sweep) == ["interrupted", "waiting"]
    assert attempts(sweep) == [1, 0]
    assert views(sweep)[0].error is None


def test_a_clusters_warning_does_not_end_a_run(tmp_path: Path) -> None:
    """SIGUSR2 goes to every process of a job; submitit acts on it, the run must live on."""
    sweep = make_sweep(tmp_path, [["slow"]])
    with opened(sweep.folder) as session:
        ticket = Ticket(sweep.folder, session.token, True)
        worker = threading.Thread(target=job.work, args=(sweep, 0, ticket, [], train(sweep)))
        worker.start()
        while not (sweep.runs[0].folder / "started").exists():
            time.sleep(0.02)
        pid = read_note(sweep.folder, 0).pid
        assert pid is not None
        os.kill(pid, signal.SIGUSR2)
        time.sleep(0.3)
        assert states(sweep) == ["running"]
        session.stop()
        worker.join(timeout=30)
    assert states(sweep) == ["interrupted"]


def test_a_signal_stops_the_whole_and_the_same_call_goes_on(tmp_path: Path, monkeypatch) -> None:
    """With Hydra's basic launcher, in processes of their own."""
    sweep = make_sweep(tmp_path, [["slow", "done"], ["done"]])
    me = os.getpid()

    def interrupt() -> None:
        while not (sweep.runs[0].folder / "started").exists():
            time.sleep(0.02)
        os.kill(me, signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        drive(sweep, BASIC, ["data_dir='a, b'"], train=train(sweep), poll_s=0.1)
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert states(sweep) == ["interrupted", "waiting"]
    # What is quoted for Hydra here reaches the run as it was: Hydra reads it there.
    assert read_note(sweep.folder, 0).arguments[-2:] == ["run=0", "data_dir='a, b'"]
    assert driven(sweep, monkeypatch).passes == [[0, 1]]
    assert states(sweep) == ["done", "done"]


def test_a_launcher_that_breaks_is_named(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [["done"]])
    launcher = Launcher("basic", 1, ("hydra.launcher.partition=gpu",))
    with pytest.raises(RecordError, match=r"the launcher ended with exit status 1: .*launcher.log"):
        drive(sweep, launcher, [], train=train(sweep), poll_s=0.1)
    assert states(sweep) == ["waiting"]


def test_the_report_names_the_best_points(tmp_path: Path, monkeypatch) -> None:
    orders = [["done"], ["diverged"], ["done"], ["refuse"]]
    sweep = make_sweep(tmp_path, orders, r0=0.7, r2=0.9)
    driven(sweep, monkeypatch)
    lines = report(sweep, views(sweep))
    assert not (sweep.folder / "results.csv").exists()
    write_results(sweep, views(sweep))
    assert lines == [
        "best points (runs, by the best validation value):",
        "  point 2: accuracy 90.00 %: lr=0.3",
        "  point 0: accuracy 70.00 %: lr=0.1",
        "1 of 3 points diverged and count as infinitely bad",
    ]
    rows = (sweep.folder / "results.csv").read_text().splitlines()
    assert rows[0] == "point,seed,lr,state,score,metric,value,record"
    assert rows[1] == "0,0,0.1,done,-0.7,accuracy,0.7,image/digits/adam/h0/seed-0"
    assert rows[2].startswith("1,0,0.2,diverged,inf,accuracy,0.5,")
    assert rows[4].startswith("3,0,0.4,failed,,,,")
