"""All files of a comparison, drawn from its ``runs.csv`` alone."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl

from experiments.base.files import write_whole
from experiments.publish.provenance import devices, git_state, versions, write_origin
from experiments.publish.style import RC
from experiments.studies.comparison.fresh import fresh_of
from experiments.studies.comparison.pictures import draw_profile, draw_speed_up
from experiments.studies.comparison.planning import FRESH
from experiments.studies.comparison.report import data, optimizers, table, warnings
from experiments.studies.comparison.rows import Row, read_rows
from experiments.studies.execute import Say

RUNS = "runs.csv"

FILES = ("profile.png", "speedup.png", "table.md", "data.csv", "provenance.json")


def draw(folder: Path, command: str, say: Say) -> None:
    """Write :data:`FILES` beside ``runs.csv``, and say which best settings lie on a border.

    Args:
        folder: where ``runs.csv`` is.
        command: the command that makes the comparison.
        say: prints one line.

    Raises:
        RecordError: ``runs.csv`` is missing, damaged or not of an equal search.
    """
    rows = read_rows(folder / RUNS)
    write_whole(folder / "table.md", table(rows))
    write_whole(folder / "data.csv", data(rows))
    with mpl.rc_context(RC):
        draw_profile(rows).savefig(folder / "profile.png", metadata={"Software": None})
        draw_speed_up(rows).savefig(folder / "speedup.png", metadata={"Software": None})
    write_origin(folder, _provenance(rows, command))
    for line in warnings(fresh_of(rows)):
        say(f"warning: best setting on the border of its search space: {line}")


def _provenance(rows: Sequence[Row], command: str) -> dict[str, Any]:
    """Return where the results come from; the runs themselves are in ``runs.csv``."""
    started = sorted(row.started for row in rows if row.started)
    first = {row.dataset: row for row in rows}
    return {
        "target": "protocol",
        "command": command,
        "drawn": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "versions": versions(),
        "platform": platform.platform(),
        "device": devices([{"device": row.device, "threads": row.threads} for row in rows]),
        "processor": " and ".join(sorted({row.processor for row in rows})),
        "seeds": sorted({row.seed for row in rows}),
        "fresh_seeds": sorted({row.seed for row in rows if row.role == FRESH}),
        "optimizers": optimizers(rows),
        "datasets": [
            {"dataset": name, "metric": row.metric, "target": row.target, "budget_s": row.budget}
            for name, row in first.items()
        ],
        "runs": {
            "file": RUNS,
            "number": len(rows),
            "jobs": sorted({row.jobs for row in rows}),
            "torch": sorted({str(row.torch) for row in rows}),
            "dirty": any(row.dirty for row in rows),
            "first_start": started[0] if started else None,
            "last_start": started[-1] if started else None,
            "training_s": round(sum(row.total_seconds for row in rows), 1),
            "commits": [
                {"commit": commit, "runs": number}
                for commit, number in Counter(str(row.commit) for row in rows).items()
            ],
        },
    }
