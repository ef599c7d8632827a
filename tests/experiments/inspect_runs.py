"""Reading what a run left behind, and comparing two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.base.interrupts import Interrupted
from experiments.run.checkpoint import load_checkpoint
from experiments.run.config import run_folder, run_name
from experiments.run.records import Record
from experiments.run.run import run

TIMES = ("time/train_s", "time/train_cpu_s")


def checkpoint(config: dict[str, Any]) -> dict[str, Any]:
    folder = run_folder(config)
    state = load_checkpoint(folder / "checkpoint.pt", run_name(folder))
    assert state is not None
    return state


def series(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows without times."""
    rows = Record(run_folder(config)).rows()
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def assert_same(left: Any, right: Any, where: str = "checkpoint") -> None:
    """Compare nested containers bit for bit."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert left == right, where


def assert_same_run(config: dict[str, Any], other: dict[str, Any]) -> None:
    """Compare final weights, optimizer, generators and the logged series."""
    assert series(config) == series(other)
    left, right = checkpoint(config), checkpoint(other)
    for key in ("model", "optimizer", "scheduler", "rng", "step", "meter"):
        assert_same(left[key], right[key], key)


def status(config: dict[str, Any]) -> dict[str, Any]:
    found = Record(run_folder(config)).status()
    assert found is not None
    return found


def stopped_at(config: dict[str, Any], step: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Interrupt a run after ``step`` steps and return its folder."""
    monkeypatch.setenv("FAULT_INT_AT", str(step))
    with pytest.raises(Interrupted):
        run(config)
    monkeypatch.delenv("FAULT_INT_AT")
    return run_folder(config)
