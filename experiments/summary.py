"""What one run record says, in one object: read-only, and without starting torch.

Figures, tables and the search read records through :func:`summarise`; the folder's name tells task,
data set, optimizer, hash and seed, ``experiments/records.py`` reads the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.errors import RecordError
from experiments.records import FINAL_STATES, Record

LAYOUT = "<task>/<dataset>/<optimizer>/<hash>/seed-<k>"


@dataclass(frozen=True)
class Summary:
    """One run, as its folder tells it.

    Attributes:
        folder: where the record lies.
        task: task name, from the path.
        dataset: data set name, from the path.
        optimizer: optimizer name, from the path.
        digest: hash of the resolved configuration, from the path.
        seed: seed of the run, from the path.
        status: contents of ``status.json``.
        metrics: lines of ``metrics.jsonl`` in the order of writing.
    """

    folder: Path
    task: str
    dataset: str
    optimizer: str
    digest: str
    seed: int
    status: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]

    @property
    def state(self) -> str:
        """State of the run: running, done, diverged, failed or interrupted."""
        return str(self.status["state"])

    @property
    def name(self) -> str:
        """What messages call the run: data set, optimizer and seed."""
        return f"{self.dataset} · {self.optimizer} · seed {self.seed}"


def state_of(folder: Path) -> str:
    """Return the state of a run, ``"missing"`` where it was never started.

    Raises:
        RecordError: the record is damaged.
    """
    return Record(folder).state or "missing"


def finished(folder: Path) -> bool:
    """Return whether running the same configuration again would change nothing.

    Raises:
        RecordError: the record is damaged.
    """
    return state_of(folder) in FINAL_STATES


def summarise(folder: Path) -> Summary:
    """Read one run record.

    Raises:
        RecordError: the folder is not a record, or one of its files is damaged.
    """
    parts = folder.absolute().parts[-5:]
    seed = parts[-1].removeprefix("seed-")
    if len(parts) < 5 or not parts[-1].startswith("seed-") or not seed.isdigit():
        raise RecordError(f"{folder} is not {LAYOUT}")
    record = Record(folder)
    status = record.status()
    if status is None:
        raise RecordError(f"there is no run record in {folder}")
    task, dataset, optimizer, digest, _ = parts
    rows = tuple(record.rows())
    return Summary(folder, task, dataset, optimizer, digest, int(seed), status, rows)
