"""Tables of what has no folder of its own: runs with published settings, and searches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.base.errors import RecordError
from experiments.figures.paper_runs import load
from experiments.publish.style import LOOKS


@dataclass(frozen=True)
class Listing:
    """A table of the page.

    Attributes:
        name: anchor on the page.
        title: heading.
        caption: what stands above it.
        header: names of the columns.
        rows: cells.
    """

    name: str
    title: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def listings(results: Path) -> list[Listing]:
    """Return the tables for which there is something in ``results``.

    Raises:
        RecordError: a file is damaged.
    """
    return [found for found in (paper_runs(results), searches(results)) if found.rows]


def paper_runs(results: Path) -> Listing:
    """List the runs in ``results/paper/``."""
    rows = []
    for run in load(results):
        entry = run.entry
        metric = str(entry["metric"])
        test = entry["results"].get(f"test/{metric}")
        seconds = (entry.get("seconds") or {}).get("train")
        rows.append(
            [
                str(entry["dataset"]),
                _label(entry["optimizer"]),
                str(entry["seed"]),
                str(entry["state"]),
                "–" if test is None else _metric(metric, float(test)),
                str(entry["steps"]),
                "–" if seconds is None else f"{seconds:.0f} s",
                str(entry.get("device")),
                str(entry.get("git_commit") or "–")[:8],
                str(entry["command"]),
            ]
        )
    return Listing(
        "paper-runs",
        "Runs with published settings",
        "Every finished run of experiment=paper/*: accuracy or negative log-likelihood (nats) of "
        "the test set, steps, seconds of the training clock.",
        (
            *("Data", "Optimizer", "Seed", "State", "Test", "Steps", "Training", "Device"),
            *("Commit", "Command"),
        ),
        rows,
    )


def searches(results: Path) -> Listing:
    """List what the searches in ``results/search/`` chose."""
    rows = []
    for path in sorted((results / "search").glob("*/*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            chosen = found["chosen"]
            params = ", ".join(f"{key} {value}" for key, value in chosen["params"].items())
            worst = chosen.get("worst") or chosen["score"]
            rows.append(
                [
                    found["dataset"],
                    _label(found["optimizer"]),
                    str(len(found["trials"])),
                    params,
                    f"{worst:.4g}",
                    str((found.get("git") or {}).get("commit") or "–")[:8],
                ]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{path} is damaged: {error!r}") from None
    return Listing(
        "searches",
        "Searches",
        "What the equal searches chose, with the score of the worst seed.",
        ("Data", "Optimizer", "Trials", "Chosen", "Score", "Commit"),
        rows,
    )


def _label(optimizer: str) -> str:
    return LOOKS[optimizer].label if optimizer in LOOKS else optimizer


def _metric(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.4f}"
