"""Who works on a sweep and on its runs: tickets, locks and processes that are known again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stub_sweep import attempts, make_sweep, train

from experiments.base.errors import RecordError
from experiments.base.files import is_held
from experiments.studies.sweeps import job
from experiments.studies.sweeps.drive import drive
from experiments.studies.sweeps.launch import Launcher
from experiments.studies.sweeps.notes import Note, read_note, write_note
from experiments.studies.sweeps.plan import Sweep
from experiments.studies.sweeps.session import LOCK, Ticket, opened
from experiments.studies.sweeps.state import views

BASIC = Launcher("basic", 1)


def states(sweep: Sweep) -> list[str]:
    return [one.state for one in views(sweep)]


def test_a_job_without_a_living_master_starts_nothing(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [["done"]])
    with opened(sweep.folder) as session:
        old = Ticket(sweep.folder, session.token, local=True)
        far = Ticket(sweep.folder, session.token, local=False)
        assert old.valid()
        assert is_held(sweep.folder / LOCK)
    # The process is gone: a job on this machine stops, one on a cluster goes on.
    assert not old.valid()
    assert far.valid()
    job.work(sweep, 0, old, [], train(sweep))
    assert attempts(sweep) == [0]
    with opened(sweep.folder):  # a new process took over: it will start the jobs itself
        assert not far.valid()
        job.work(sweep, 0, far, [], train(sweep))
    assert attempts(sweep) == [0]


def test_a_second_process_on_the_same_sweep_refuses(tmp_path: Path, monkeypatch) -> None:
    sweep = make_sweep(tmp_path, [["done"]])
    monkeypatch.setattr("experiments.studies.sweeps.session._PATIENCE_S", 0.1)
    with (
        opened(sweep.folder),
        pytest.raises(RecordError, match=f"is being run by process {os.getpid()}; wait"),
    ):
        drive(sweep, BASIC, [], train=train(sweep))


def test_a_number_that_went_to_another_process_is_not_the_run(tmp_path: Path) -> None:
    note = Note(pid=os.getpid(), host=socket.gethostname(), arguments=["another", "command"])
    assert not note.alive()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        arguments = [sys.executable, "-c", "input()"]
        time.sleep(0.2)
        note = Note(pid=process.pid, host=socket.gethostname(), arguments=arguments)
        assert note.alive()
        assert not Note(pid=process.pid, host="elsewhere", arguments=arguments).alive()
        # A run that still loads its packages holds no lock yet: it is at work all the same.
        sweep = make_sweep(tmp_path, [["done"]])
        write_note(sweep.folder, 0, note)
        assert states(sweep) == ["running"]
        process.kill()
        process.wait()
        assert not note.alive()
    assert states(sweep) == ["waiting"]
    assert read_note(tmp_path, 3) == Note()
