"""Training the runs of a comparison: resumed where they stopped, and tried twice where they fail.

A comparison that is killed leaves its runs alive: they are in sessions of their own. The next start
waits for them; training beside them would disturb the clock, and they cannot be trained twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.errors import RecordError
from experiments.execute import PlannedRun, Say, execute, listed
from experiments.files import is_held
from experiments.records import Record
from experiments.summary import finished


def train_all(
    runs: Sequence[PlannedRun], jobs: int, say: Say, train: Sequence[str] | None = None
) -> None:
    """Train the runs that are not finished; a run that fails is tried once more.

    A run that diverged is finished.

    Args:
        runs: what to train, in this order.
        jobs: processes at a time.
        say: prints one line.
        train: the training command; see :func:`experiments.execute.execute`.

    Raises:
        RecordError: runs failed twice; all of them are named.
        KeyboardInterrupt: stopped; the same call goes on from there.
    """
    wait_for_others(runs, say)
    failures = execute(list(runs), jobs, say, train)
    if failures:
        say(f"{len(failures)} runs failed; once more:")
        again = [run for run in runs if not finished(run.folder)]
        wait_for_others(again, say)
        failures = execute(again, jobs, say, train)
    if failures:
        raise RecordError(f"{len(failures)} of {len(runs)} runs failed twice:{listed(failures)}")


def wait_for_others(
    runs: Sequence[PlannedRun], say: Say, pause: Callable[[float], None] = time.sleep
) -> None:
    """Wait while another process trains one of the runs."""
    told = False
    while busy := [run for run in runs if held(run.folder)]:
        if not told:
            say(f"waiting for another process that trains {busy[0].name}")
            told = True
        pause(0.5)


def held(folder: Path) -> bool:
    """Return whether a living process trains the run in a folder."""
    return is_held(Record(folder).lock_path)
