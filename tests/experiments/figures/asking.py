"""Requests for figures, and the records that their runs would have written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.figures.request import Request
from experiments.studies.execute import PlannedRun
from tests.experiments.figures.synthetic import write_record

UNTRAINED = [sys.executable, "-c", "raise SystemExit(9)"]
"""A training command that trains nothing."""


def asked(base: Path, target: str, **changes: Any) -> Request:
    """A request whose folders lie below ``base``; whatever would have to be trained fails."""
    folders = {f"{name}_dir": base / name for name in ("data", "output", "results")}
    return Request(target, **{"train": UNTRAINED, **folders, **changes})


def quiet(line: str) -> None:
    """Say nothing."""


def check_redraw(folder: Path, redraw: Callable[[Path], None]) -> None:
    """Check that the same picture is drawn from the other files of a folder."""
    picture = folder / "figure.png"
    first = picture.read_bytes()
    picture.unlink()
    redraw(folder)
    assert picture.read_bytes() == first


def write_planned(run: PlannedRun, rows: list[dict[str, Any]], **options: Any) -> Path:
    """Write the record that training a planned run would have written."""
    task, dataset, optimizer, digest, _ = run.folder.parts[-5:]
    options = {"task": task, "digest": digest, "rows": rows, **options}
    folder = write_record(run.folder.parents[4], dataset, optimizer, run.seed, **options)
    assert folder == run.folder
    return folder
