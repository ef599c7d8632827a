"""A study of stub runs, and a worker on it: python stub_study.py FOLDER JOBS [STORAGE]."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from experiments.run.records import Record
from experiments.studies.execute import PlannedRun
from experiments.studies.study import Point, Study

STUB = Path(__file__).with_name("stub_train.py")
SPACE = {"lr": {"log_uniform": [0.01, 1000.0]}}


class Stub:
    """Trials of one stub run each; trial ``k`` does ``orders[k]``, one entry an attempt.

    ``values`` are the accuracies of runs, ``r<k>=…``; 0.5 where none is given.
    """

    def __init__(self, folder: Path, orders: Sequence[Sequence[str]] = (), **values: float) -> None:
        self.folder = folder
        (folder / "orders").mkdir(parents=True, exist_ok=True)
        for number, do in enumerate(orders):
            value = values.get(f"r{number}", 0.5)
            order = {"do": list(do), "folder": str(self.record(number).folder), "value": value}
            (folder / "orders" / f"{number}.json").write_text(json.dumps(order))
        self.train = [sys.executable, str(STUB), str(folder / "orders"), "run"]
        self.numbers = range(len(list((folder / "orders").glob("*.json"))))
        self.plan = {
            str(k): Point(str(k), self._runs(k), SPACE, self.params(k)) for k in self.numbers
        }
        self.said: list[str] = []

    def params(self, number: int) -> dict[str, float]:
        return {"lr": round(0.1 * (number + 1), 1)}

    def record(self, number: int) -> Record:
        folder = self.folder / "out" / "image" / "digits" / "adam" / f"h{number}" / "seed-0"
        return Record(folder)

    def run(self, number: int) -> PlannedRun:
        folder = self.record(number).folder
        return PlannedRun(f"point {number}", "adam", 0, folder, (f"run={number}",), ())

    def _runs(self, number: int):
        return lambda params: [self.run(number)]

    def study(self, storage: str | None = None, **options: str) -> Study:
        return Study("stub", self.folder / "out", storage, **options)

    def work(self, study: Study | None = None, *, jobs: int = 1, **options) -> dict[str, str]:
        study = study or self.study()
        options = {"train": self.train, "log": True, **options}
        return study.work(self.plan, objective, jobs=jobs, say=self.said.append, **options)

    def states(self) -> list[str]:
        return [one.state for one in self.study().views()]

    def attempts(self) -> list[int]:
        return [self._count(number, "attempts") for number in self.numbers]

    def completed(self) -> list[int]:
        return [self._count(number, "completed") for number in self.numbers]

    def _count(self, number: int, what: str) -> int:
        path = self.folder / "orders" / f"{number}.{what}"
        return len(path.read_text()) if path.exists() else 0

    def by_hand(self, number: int) -> subprocess.Popen[bytes]:
        """Start a run outside the study and wait until it holds its lock and has begun."""
        process = subprocess.Popen([*self.train, f"run={number}"], stdout=subprocess.DEVNULL)
        self.await_start(number)
        return process

    def await_start(self, number: int) -> None:
        deadline = time.monotonic() + 60.0
        while not self.record(number).metrics_path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)


def objective(runs) -> float:
    return -max(row["val/accuracy"] for run in runs for row in run.metrics)


if __name__ == "__main__":
    stub = Stub(Path(sys.argv[1]))
    storage = sys.argv[3] if len(sys.argv) > 3 else None
    failures = stub.work(stub.study(storage), jobs=int(sys.argv[2]))
    sys.exit(2 if failures else 0)
