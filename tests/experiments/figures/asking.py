"""Requests for figures, and the records that their runs would have written."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from experiments.figures.request import Request
from experiments.studies.execute import PlannedRun

SPEED = {"adam": 0.05, "sgd": 0.045, "snopt": 0.06}
RATE = {"adam": 0.02, "sgd": 0.012, "snopt": 0.035}


def write_record(
    output: Path,
    dataset: str,
    optimizer: str,
    seed: int,
    *,
    state: str = "done",
    rows: list[dict[str, Any]] | None = None,
    task: str = "image",
    digest: str = "abc123",
    error: str | None = None,
) -> Path:
    folder = output / task / dataset / optimizer / digest / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    status = {
        "state": state,
        "error": error,
        "git_commit": "0" * 40,
        "device": "cpu",
        "threads": 2,
        "peak_memory_mb": 300.0,
        "seconds": {"train": 1.0, "evaluation": 0.2, "logging": 0.1},
        "train_cpu_s": 0.8,
        "wall_s": 1.3,
    }
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "config.yaml").write_text(f"seed: {seed}\n")
    lines = rows if rows is not None else training_rows(optimizer, seed)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


def training_rows(optimizer: str, seed: int, steps: int = 400, every: int = 20) -> list[dict]:
    """A noisy exponential decay, evaluated at step 0 and every ``every`` steps."""
    noise = np.random.default_rng((seed, len(optimizer)))
    rate, speed = RATE[optimizer], SPEED[optimizer] * (1 + 0.02 * seed)
    rows: list[dict] = [
        {"step": 0, "epoch": 0, "time/train_s": 0.0, "val/loss": 2.3, "val/accuracy": 0.1}
    ]
    for step in range(1, steps + 1):
        level = 2.3 * math.exp(-rate * step) + 0.002
        row = {
            "step": step,
            "epoch": step // 10,
            "time/train_s": step * speed,
            "time/train_cpu_s": 0.8 * step * speed,
            "train/loss": level * float(noise.lognormal(0, 0.4)),
            "nfe/forward": 14,
        }
        if step % every == 0:
            row["val/loss"] = level * 1.2
            row["val/accuracy"] = 0.98 - 0.4 * level + 0.005 * float(noise.normal())
        rows.append(row)
    last = {"step": steps, "epoch": steps // 10, "time/train_s": steps * speed}
    rows.append({**last, "test/loss": 0.1, "test/accuracy": 0.97})
    return rows


UNTRAINED = [sys.executable, "-c", "raise SystemExit(9)"]
"""A training command that trains nothing."""


def asked(base: Path, target: str, **changes: Any) -> Request:
    """A request whose folders lie below ``base``; whatever would have to be trained fails."""
    folders = {f"{name}_dir": base / name for name in ("data", "output", "results")}
    return Request(target, **{"train": UNTRAINED, **folders, **changes})


def quiet(line: str) -> None:
    """Say nothing."""


def write_planned(run: PlannedRun, rows: list[dict[str, Any]], **options: Any) -> Path:
    """Write the record that training a planned run would have written."""
    task, dataset, optimizer, digest, _ = run.folder.parts[-5:]
    options = {"task": task, "digest": digest, "rows": rows, **options}
    folder = write_record(run.folder.parents[4], dataset, optimizer, run.seed, **options)
    assert folder == run.folder
    return folder


class FakeTraining:
    """Stands in for the processes of runs: each run has ended, with its record, when it starts.

    ``outcomes`` says by command how a run ends, crash included; the others end in ``state``.
    """

    def __init__(self) -> None:
        self.trained: list[PlannedRun] = []
        self.outcomes: dict[str, str] = {}
        self.state = "done"
        self.rows: Callable[[PlannedRun], list[dict]] = lambda run: training_rows(
            run.folder.parts[-3], run.seed, steps=40
        )

    def launch(self, run: PlannedRun) -> SimpleNamespace:
        """Take the place of ``Training.launch``."""
        self.trained.append(run)
        state = self.outcomes.get(run.command, self.state)
        if state != "crash":
            error = "no memory" if state == "failed" else None
            write_planned(run, self.rows(run), state=state, error=error)
        code = 0 if state == "done" else 1
        return SimpleNamespace(poll=lambda: code, returncode=code)
