"""Where every run of a sweep stands, read from records and notes alone."""

from __future__ import annotations

import re
import socket
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.base.errors import RecordError
from experiments.base.files import is_held
from experiments.run.records import (
    DIVERGED,
    DONE,
    FAILED,
    FINAL_STATES,
    INTERRUPTED,
    RUNNING,
    Record,
)
from experiments.studies.sweeps.notes import read_note
from experiments.studies.sweeps.plan import Sweep, SweepRun

WAITING = "waiting"

STATES = (WAITING, RUNNING, DONE, DIVERGED, INTERRUPTED, FAILED)
"""In the order of tables. A run whose process is gone without a word counts as interrupted."""


@dataclass(frozen=True)
class View:
    """One run as it stands.

    Attributes:
        number: place in the sweep.
        run: the run.
        state: one of :data:`STATES`.
        error: first line of what went wrong; None where nothing did.
        seconds: what it took so far, process starts included; 0 where that is not known.
        elapsed: seconds of the attempt under way, 0 where none is.
    """

    number: int
    run: SweepRun
    state: str
    error: str | None = None
    seconds: float = 0.0
    elapsed: float = 0.0

    @property
    def final(self) -> bool:
        """Whether running it again would change nothing."""
        return self.state in FINAL_STATES


def holder(folder: Path) -> str | None:
    """Return who trains the run in ``folder``, such as ``process 12 on host``; None: nobody.

    A lock file whose process is gone counts for nothing; the lock itself is looked at only where
    its owner lives, because looking means taking it for an instant.
    """
    path = Record(folder).lock_path
    try:
        owner = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    found = re.fullmatch(r"process (\d+) on (.+)", owner)
    if found and found[2] == socket.gethostname() and not Path(f"/proc/{found[1]}").exists():
        return None
    return (owner or "another process") if is_held(path) else None


def view(sweep: Sweep, number: int, now: float | None = None) -> View:
    """Return where one run stands.

    Args:
        sweep: the sweep.
        number: place of the run in it.
        now: seconds since 1970; None: now.
    """
    run, note = sweep.runs[number], read_note(sweep.folder, number)
    try:
        status = Record(run.folder).status() or {}
    except RecordError as error:
        return View(number, run, FAILED, _line(str(error)), note.seconds)
    state, seconds = status.get("state"), note.seconds or float(status.get("wall_s") or 0.0)
    if state in FINAL_STATES:
        return View(number, run, str(state), status.get("error"), seconds)
    if holder(run.folder) or note.alive():
        moment = time.time() if now is None else now
        elapsed = max(0.0, moment - note.started) if note.pid else 0.0
        return View(number, run, RUNNING, None, note.seconds, elapsed)
    if note.error:
        return View(number, run, FAILED, note.error, seconds)
    if state == FAILED:
        return View(number, run, FAILED, _line(str(status.get("error"))), seconds)
    return View(number, run, INTERRUPTED if status else WAITING, None, seconds)


def views(sweep: Sweep, before: Sequence[View] = ()) -> list[View]:
    """Return where all runs stand.

    Args:
        sweep: the sweep.
        before: an earlier answer; what was final then is not read again.
    """
    known: Mapping[int, View] = {one.number: one for one in before if one.final}
    return [known.get(number) or view(sweep, number) for number in range(len(sweep.runs))]


def counts(found: Sequence[View]) -> dict[str, int]:
    """Return how many runs are in each state, in the order of :data:`STATES`."""
    counter = Counter(one.state for one in found)
    return {state: counter[state] for state in STATES}


def time_left(found: Sequence[View], jobs: int) -> float | None:
    """Return the seconds that the rest will take, from the mean of the finished runs.

    Args:
        found: all runs.
        jobs: runs at a time.

    Returns:
        None where no run has finished yet; 0 where none is left.
    """
    left = [one for one in found if one.state in (WAITING, RUNNING, INTERRUPTED)]
    if not left:
        return 0.0
    durations = [one.seconds for one in found if one.final and one.seconds > 0.0]
    if not durations:
        return None
    mean = statistics.fmean(durations)
    work = sum(max(0.0, mean - one.seconds - one.elapsed) for one in left)
    return work / max(1, min(jobs, len(left)))


def _line(text: str) -> str:
    return text.strip().partition("\n")[0]
