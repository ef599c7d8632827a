"""A sweep of stub runs, and a launcher that does its jobs in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.studies.sweeps.job import work
from experiments.studies.sweeps.launch import Launcher
from experiments.studies.sweeps.plan import Sweep, SweepRun
from experiments.studies.sweeps.session import Session, Ticket

STUB = Path(__file__).with_name("stub_train.py")


def make_sweep(folder: Path, orders: Sequence[Sequence[str]], **values: float) -> Sweep:
    """Return a written sweep whose run k does ``orders[k]``, one entry an attempt.

    ``values`` are the accuracies of runs, ``r<k>=…``; 0.5 where none is given.
    """
    runs = []
    (folder / "orders").mkdir(parents=True)
    for number, do in enumerate(orders):
        record = folder / "out" / "image" / "digits" / "adam" / f"h{number}" / "seed-0"
        order = {"do": list(do), "folder": str(record), "value": values.get(f"r{number}", 0.5)}
        (folder / "orders" / f"{number}.json").write_text(json.dumps(order))
        runs.append(
            SweepRun(number, 0, {"lr": round(0.1 * (number + 1), 1)}, record, (f"run={number}",))
        )
    asked: dict[str, Any] = {"search": "adam", "trials": len(runs), "seeds": [0]}
    space = {"lr": {"log_uniform": [0.1, 1.0]}}
    sweep = Sweep(folder / "sweep", folder / "out", "adam on digits", asked, space, tuple(runs))
    sweep.write()
    return sweep


def train(sweep: Sweep) -> list[str]:
    """Return the training command of a stub sweep."""
    return [sys.executable, str(STUB), str(sweep.folder.parent / "orders")]


def attempts(sweep: Sweep) -> list[int]:
    """Return how often each run was started."""
    files = [sweep.folder.parent / "orders" / f"{k}.attempts" for k in range(len(sweep.runs))]
    return [len(path.read_text().split()) if path.exists() else 0 for path in files]


class Inline:
    """A launcher's process that has done all its jobs when it is started."""

    passes: list[list[int]]

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.passes = []
        self.returncode = 0

    def start(
        self,
        session: Session,
        numbers: Sequence[int],
        launcher: Launcher,
        places: Sequence[str],
        command: Sequence[str] | None,
    ) -> Inline:
        self.passes.append(list(numbers))
        for number in numbers:
            work(self.sweep, number, Ticket(session.folder, session.token, True), places, command)
        return self

    def wait(self, timeout: float) -> int:
        return self.returncode
