"""Interactive curves of a ``data.csv`` whose rows are steps of runs.

A column that is a place on an axis (steps, seconds, evaluations) makes a table one of curves. Its
other numbers are what can be shown, its words and its seed say which run a row belongs to; the
column ``dataset`` chooses the panel.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.base.errors import RecordError
from experiments.publish.style import LOOKS

AXES = {
    "time_s": "Wall-clock training time (s)",
    "step": "Training steps",
    "nfe": "Evaluations of the vector field",
}
"""Columns that are places on an axis, in the order in which they are offered."""

LABELS = {
    "train_loss": "Training loss",
    "val_loss": "Validation loss",
    "val_metric": "Validation metric (accuracy or NLL)",
    "val_accuracy": "Validation accuracy",
    "t1": "Integration time t1",
}

COLORS = ("#1F78B4", "#E09F2B", "#8C1C4A", "#3B7D4F", "#6F4FA0", "#8A6D3B", "#4C4C4C", "#B5485F")

POINTS = 220
"""Rows that the page keeps of a run."""


def chart(path: Path, points: int = POINTS) -> dict[str, Any] | None:
    """Return the curves of a table ready for JSON, or None where it holds none.

    Args:
        path: a ``data.csv``.
        points: rows to keep of a run.

    Returns:
        ``axes`` and ``values``: name and label of what can be shown; ``panels``: for each data set
        its runs, each with ``name``, ``group``, ``color`` and one list of numbers a column.

    Raises:
        RecordError: the table is damaged.
    """
    header, rows = read(path)
    axes = [name for name in AXES if name in header]
    if not axes or not rows:
        return None
    words = [name for name in header if not _numeric(name, header, rows) and name not in axes]
    own = [name for name in words if name != "dataset"]
    parts = [name for name in (*words, "seed") if name in header]
    numbers = [name for name in header if name not in (*words, *axes, "seed")]
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    places = {name: place for place, name in enumerate(header)}
    for row in rows:
        groups.setdefault(tuple(row[places[name]] for name in parts), []).append(row)
    names = list(dict.fromkeys(_group(dict(zip(parts, key, strict=True)), own) for key in groups))
    panels: dict[str, list[dict[str, Any]]] = {}
    for key, found in groups.items():
        which = dict(zip(parts, key, strict=True))
        group = _group(which, own)
        run: dict[str, Any] = {
            "name": group + (f", seed {which['seed']}" if "seed" in which else ""),
            "group": group,
            "color": _color(which, names.index(group)),
        }
        kept = _kept(found, [places[name] for name in numbers], points)
        for name in (*axes, *numbers):
            run[name] = [_number(row[places[name]]) for row in kept]
        panels.setdefault(which.get("dataset", ""), []).append(run)
    return {
        "axes": [[name, AXES[name]] for name in axes if _measured(panels, name)],
        "values": [
            [name, LABELS.get(name, name.replace("_", " "))]
            for name in numbers
            if _measured(panels, name)
        ],
        "panels": panels,
    }


def read(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table.

    Raises:
        RecordError: it is no table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is damaged: {error}") from None
    for place, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise RecordError(f"{path} is damaged: row {place} has {len(row)} cells")
    return header, rows


def _numeric(name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    place = header.index(name)
    return all(_is_number(row[place]) for row in rows)


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True


def _number(cell: str) -> float | None:
    """Return a number of four digits; None, which breaks a line, where it is none or not finite."""
    value = float(cell) if _is_number(cell) and cell else math.nan
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _group(which: Mapping[str, str], own: Sequence[str]) -> str:
    """Return what tells a run from others of its data set, its seed aside."""
    looks = {name: look.label for name, look in LOOKS.items()}
    return ", ".join(looks.get(which[name], which[name]) for name in own) or "run"


def _color(which: Mapping[str, str], place: int) -> str:
    look = LOOKS.get(which.get("optimizer", ""))
    return look.color if look else COLORS[place % len(COLORS)]


def _kept(rows: list[list[str]], places: Sequence[int], points: int) -> list[list[str]]:
    """Thin a run, column by column: of each measured column about ``points`` rows stay."""
    if len(rows) <= points:
        return rows
    wanted: set[int] = set()
    for place in places:
        measured = [i for i, row in enumerate(rows) if row[place]]
        if measured:
            step = max(1.0, (len(measured) - 1) / (points - 1))
            chosen = (round(i * step) for i in range(points))
            wanted |= {measured[i] for i in chosen if i < len(measured)} | {measured[-1]}
    return [rows[i] for i in sorted(wanted)]


def _measured(panels: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> bool:
    return any(value is not None for runs in panels.values() for run in runs for value in run[name])
