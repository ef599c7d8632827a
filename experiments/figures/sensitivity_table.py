"""Figure 8's numbers: ``data.csv``, and the table that says how wide the good range is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from experiments.base.errors import RecordError
from experiments.figures.sensitivity_runs import CUT, Entry, medians, within
from experiments.publish.tables import Cells, Table, read_csv, to_csv
from experiments.run.records import DIVERGED

COLUMNS = tuple(field.name for field in fields(Entry))
LABELS = {"adam": "Adam", "sgd": "SGD", "snopt": "SNOpt", "kfac": "KFAC"}
HEADER = (
    "",
    "best accuracy",
    "at lr",
    "at damping",
    "within 1 point of its best",
    "within 1 point of the best of all",
    "diverged",
    "stopped by time",
)


@dataclass(frozen=True)
class Share:
    """How much of its range an optimizer can use.

    Attributes:
        optimizer: optimizer name.
        points: settings tried.
        best: best accuracy, a median over seeds.
        lr: learning rate of the best.
        damping: damping of the best, 0 where there is none.
        own: settings within one point of accuracy of its best.
        common: settings within one point of the best of all optimizers.
        diverged: runs that diverged.
        cut: runs stopped by the time limit.
        runs: runs in all.
    """

    optimizer: str
    points: int
    best: float
    lr: float
    damping: float
    own: int
    common: int
    diverged: int
    cut: int
    runs: int


def shares(entries: Sequence[Entry], part: str) -> list[Share]:
    """Return the shares of a part, ``"line"`` or ``"map"``, in the order of the entries.

    Raises:
        RecordError: there is no entry.
    """
    if not entries:
        raise RecordError("figure-8: there are no runs")
    overall = max(medians(entries).values())
    found = []
    for name in dict.fromkeys(entry.optimizer for entry in entries):
        own = [e for e in entries if e.optimizer == name and getattr(e, part)]
        if not own:
            continue
        values = medians(own)
        lr, damping = max(values, key=lambda key: values[key])
        best = values[lr, damping]
        found.append(
            Share(
                optimizer=name,
                points=len(values),
                best=best,
                lr=lr,
                damping=damping,
                own=within(list(values.values()), best),
                common=within(list(values.values()), overall),
                diverged=sum(entry.state == DIVERGED for entry in own),
                cut=sum(entry.state == CUT for entry in own),
                runs=len(own),
            )
        )
    return found


def percent(count: int, total: int) -> str:
    """Return a share in words, such as ``3 of 9 (33 %)``."""
    return f"{count} of {total} ({100 * count / total:.0f} %)"


def table(entries: Sequence[Entry], caption: str) -> Table:
    """Return the table: the learning rate alone, then learning rate and damping."""
    rows: list[Sequence[str]] = []
    for part, heading in (("line", "learning rate"), ("map", "learning rate and damping")):
        found = shares(entries, part)
        if found:
            rows += [(heading,), *(_row(share) for share in found)]
    return Table(HEADER, rows, caption)


def _row(share: Share) -> Sequence[str]:
    return (
        LABELS.get(share.optimizer, share.optimizer),
        f"{100 * share.best:.1f} %",
        f"{share.lr:g}",
        f"{share.damping:g}" if share.damping else "–",
        percent(share.own, share.points),
        percent(share.common, share.points),
        f"{share.diverged} of {share.runs}",
        f"{share.cut} of {share.runs}",
    )


def csv_of(entries: Sequence[Entry]) -> str:
    """Return one line a run."""
    return to_csv(COLUMNS, map(astuple, entries))


def read_entries(path: Path) -> list[Entry]:
    """Read what :func:`csv_of` wrote.

    Raises:
        RecordError: the file is missing or damaged.
    """
    return read_csv(path, COLUMNS, _entry)


def _entry(row: Cells) -> Entry:
    return Entry(
        optimizer=row["optimizer"],
        lr=float(row["lr"]),
        damping=float(row["damping"]),
        line=_truth(row["line"]),
        map=_truth(row["map"]),
        seed=int(row["seed"]),
        accuracy=_finite(row["accuracy"]),
        state=row["state"],
        steps=int(row["steps"]),
        seconds=float(row["seconds"]),
    )


def _truth(text: str) -> bool:
    return {"True": True, "False": False}[text]


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"not finite: {text}")
    return value
