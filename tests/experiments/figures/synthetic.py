"""Run records written by hand, in the format that the trainer writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

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
    folder.mkdir(parents=True)
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
