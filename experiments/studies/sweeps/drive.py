"""Working off a sweep: passes over what is not complete, until everything is, or was tried enough.

Every pass reads where the runs stand, so nothing depends on what an earlier process knew. A run
that failed is tried once more, after all others had their turn; one that had failed before this
process came has had its first try.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from experiments.base.errors import RecordError
from experiments.run.records import FAILED, RUNNING
from experiments.studies.sweeps.board import Board
from experiments.studies.sweeps.launch import LOG, Launcher, start
from experiments.studies.sweeps.plan import Sweep
from experiments.studies.sweeps.session import Session, opened
from experiments.studies.sweeps.state import View, views

POLL_S = 1.0

ATTEMPTS = 2


def drive(
    sweep: Sweep,
    launcher: Launcher,
    places: Sequence[str],
    *,
    board: Board | None = None,
    train: Sequence[str] | None = None,
    poll_s: float = POLL_S,
) -> list[View]:
    """Work off a sweep; return where its runs stand at the end.

    Args:
        sweep: what to run.
        launcher: how.
        places: arguments of every run that say where data and records lie.
        board: where to show it; None: standard output.
        train: the training command; see :func:`experiments.studies.sweeps.launch.start`.
        poll_s: seconds between two looks.

    Raises:
        RecordError: another process drives the sweep, or the launcher failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; every run has stopped, or is about to.
    """
    with (
        opened(sweep.folder) as session,
        board or Board(sweep, launcher.jobs) as shown,
        _stopping(session, shown),
    ):
        found = views(sweep)
        if done := sum(one.final for one in found):
            shown.say(f"{done} of {len(found)} runs are complete already")
        left = {one.number: ATTEMPTS - (one.state == FAILED) for one in found}
        while not session.stopped:
            shown.show(found)
            free = [one for one in found if not one.final and one.state != RUNNING]
            pending = [one.number for one in free if left[one.number]]
            taken = any(one.state == RUNNING for one in found)
            # On this machine others' runs come first: more at a time was not asked for.
            if taken and (launcher.local or not pending):
                time.sleep(poll_s)
            elif pending:
                process = start(session, pending, launcher, places, train)
                found = _watch(process, sweep, found, shown, poll_s)
                if process.returncode and not session.stopped:
                    raise RecordError(_broken(session.folder, process.returncode))
                for number in pending:
                    left[number] -= 1
            else:
                return found
            found = views(sweep, found)
        raise KeyboardInterrupt


def _watch(
    process: subprocess.Popen[bytes],
    sweep: Sweep,
    found: list[View],
    board: Board,
    poll_s: float,
) -> list[View]:
    """Show the sweep until the launcher has ended."""
    while True:
        try:
            process.wait(timeout=poll_s)
            return found
        except subprocess.TimeoutExpired:
            found = views(sweep, found)
            board.show(found)


def _broken(folder: Path, code: int) -> str:
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"the launcher ended with exit status {code}: {last} (all of it: {folder / LOG})"


@contextmanager
def _stopping(session: Session, board: Board) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a wish that all jobs see; the second ends the wait."""

    def handle(signum: int, frame: FrameType | None) -> None:
        if session.stopped:
            raise KeyboardInterrupt
        session.stop()
        board.say("stopping: every run writes a checkpoint; Ctrl-C again does not wait for them")

    caught = (signal.SIGINT, signal.SIGTERM)
    before = {signum: signal.signal(signum, handle) for signum in caught}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
