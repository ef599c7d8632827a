"""One job of a sweep: trains one run in a process of its own and notes what became of it.

This is what Hydra's launchers execute, on this machine or on another one.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.base.environment import REPOSITORY
from experiments.base.errors import RecordError
from experiments.run.records import FAILED, FINAL_STATES, INTERRUPTED, Record
from experiments.studies.sweeps.notes import Note, log_path, read_note, write_note
from experiments.studies.sweeps.plan import Sweep
from experiments.studies.sweeps.session import Ticket
from experiments.studies.sweeps.state import holder

POLL_S = 0.2

GRACE_S = 300.0

BUSY = "is being trained by"
"""Part of the message with which ``scripts/train.py`` leaves a run to another process."""


def train_command() -> list[str]:
    """Return the command that trains one run, to which its overrides are appended."""
    return [sys.executable, str(REPOSITORY / "scripts" / "train.py")]


def work(
    sweep: Sweep,
    number: int,
    ticket: Ticket,
    places: Sequence[str],
    train: Sequence[str] | None = None,
) -> None:
    """Train a run, or go on with it, until its record is complete or the attempt has failed.

    Where another process trains the run already, that one's end is awaited. A failure is noted and
    never raised: the other jobs of the launcher go on.

    Args:
        sweep: the sweep.
        number: place of the run in it.
        ticket: by whose leave.
        places: arguments that say where data and records lie.
        train: the training command; None: :func:`train_command`.
    """
    run = sweep.runs[number]
    while ticket.valid() and not _complete(run.folder):
        if holder(run.folder) or read_note(sweep.folder, number).alive():
            time.sleep(POLL_S)
            continue
        arguments = [*(train or train_command()), *run.overrides, *places]
        code = _train(sweep.folder, number, arguments, ticket)
        if _complete(run.folder) or ticket.stopping():
            return
        output = _output(log_path(sweep.folder, number))
        if any(BUSY in line for line in output[-3:]):
            continue  # the other process was faster; it is waited for
        error = _error(run.folder, code, output)
        if error is not None:
            write_note(sweep.folder, number, replace(read_note(sweep.folder, number), error=error))
        return


def _train(folder: Path, number: int, arguments: Sequence[str], ticket: Ticket) -> int:
    """Run the command; return its exit status, negative where a signal ended it."""
    before = read_note(folder, number)
    path = log_path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        log.write(b"--- " + time.strftime("%Y-%m-%d %H:%M:%S").encode() + b"\n")
        log.flush()
        began = time.time()
        # A session of its own: signals reach it through us alone, exactly once.
        # Clusters announce the end of a job by these to all of its processes: to this one they are
        # submitit's affair, the run would die of them. Blocked here, they are blocked there.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
        try:
            process = subprocess.Popen(
                list(arguments),
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    note = Note(
        attempts=before.attempts + 1,
        seconds=before.seconds,
        pid=process.pid,
        host=socket.gethostname(),
        arguments=list(arguments),
        started=began,
    )
    try:
        write_note(folder, number, note)
        while process.poll() is None:
            if ticket.stopping():
                _stop(process)
            time.sleep(POLL_S)
    except BaseException:  # the launcher, or the cluster, ends us: its checkpoint comes first
        _stop(process)
        raise
    finally:
        ended = replace(note, pid=None, seconds=before.seconds + time.time() - began)
        write_note(folder, number, ended)
    return process.returncode


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a run and wait for its checkpoint."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _complete(folder: Path) -> bool:
    try:
        return Record(folder).state in FINAL_STATES
    except RecordError:
        return False  # training says what is wrong with it


def _output(path: Path) -> list[str]:
    """Return the lines of the last attempt."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        text = file.read().decode("utf-8", errors="replace")
    return [line for line in text.rpartition("\n--- ")[2].splitlines() if line.strip()]


def _error(folder: Path, code: int, output: Sequence[str]) -> str | None:
    """Return why an attempt failed; None where it was only interrupted, by whomever."""
    try:
        status = Record(folder).status() or {}
    except RecordError as error:
        return str(error).partition("\n")[0]
    if status.get("state") == INTERRUPTED:
        return None
    if status.get("state") == FAILED and status.get("error"):
        return str(status["error"])
    if code < 0:
        return f"ended by {signal.Signals(-code).name}" + (
            " (out of memory?)" if -code == signal.SIGKILL else ""
        )
    refusals = [line for line in output if line.startswith("error: ")]
    if refusals:
        return refusals[-1].removeprefix("error: ")
    last = output[-1] if output else "it said nothing"
    return f"exit status {code}: {last}"


def environment(jobs: int) -> dict[str, str]:
    """Return the environment of jobs that share this machine: its cores, shared out."""
    found = dict(os.environ)
    if jobs > 1:
        found["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    return found
