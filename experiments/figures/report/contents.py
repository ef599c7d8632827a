"""What lies in ``results/``: a section for each folder with a provenance, curves, and listings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.base.errors import RecordError
from experiments.figures.loss_curves import AXES
from experiments.figures.paper_runs import load
from experiments.figures.reproduce import order
from experiments.publish.names import optimizer_name
from experiments.publish.provenance import read_provenance
from experiments.publish.style import LOOKS
from experiments.publish.tables import Table, read_cells


@dataclass(frozen=True)
class Section:
    """A folder of results or a listing (``folder`` is None); ``name`` is its anchor on the page.

    ``facts`` of the provenance are pairs of a label and a text, ``table`` is Markdown.
    """

    name: str
    title: str
    caption: str
    table: str | None
    folder: Path | None = None
    facts: Sequence[tuple[str, str]] = ()
    pictures: Sequence[str] = ()

    @property
    def files(self) -> list[str]:
        """Provenance and numbers that lie in the folder."""
        names = ("provenance.json", "data.csv")
        return [name for name in names if self.folder and (self.folder / name).is_file()]

    @property
    def note(self) -> str:
        """The caption, if the table has no text that explains it."""
        lines = (self.table or "").split("\n")
        explained = any(line.strip() and not line.startswith("|") for line in lines)
        return "" if explained else self.caption


def sections(results: Path) -> list[Section]:
    """Return the sections in the order of the report: figures, tables, everything else."""
    if not results.is_dir():
        raise RecordError(f"there is no folder {results}")
    found = [_section(path.parent, results) for path in results.glob("*/provenance.json")]
    if not found:
        raise RecordError(
            f"there is nothing to report in {results}: no folder with a provenance.json; "
            "make a figure first, such as make reproduce-figure-1"
        )
    return sorted(found, key=lambda section: order(section.name))


def _section(folder: Path, results: Path) -> Section:
    origin = read_provenance(folder)
    table = folder / "table.md"
    pictures = sorted(folder.glob("*.png"), key=lambda path: (len(path.stem), path.stem))
    return Section(
        name=folder.name,
        title=title_of(folder.name),
        caption=str(origin["caption"]),
        table=table.read_text(encoding="utf-8") if table.is_file() else None,
        folder=folder,
        facts=tuple(_facts(origin)),
        pictures=tuple(path.relative_to(results).as_posix() for path in pictures),
    )


def title_of(name: str) -> str:
    """Return the title of a folder, such as "Figure 1, published settings"."""
    base = name.removesuffix("-paper")
    words = base.replace("-", " ")
    title = words[:1].upper() + words[1:]
    return f"{title}, published settings" if base != name else title


def _facts(origin: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("device", "processor"):
        # Some provenances tell it of every measurement instead of once.
        if found := origin.get(key) or " and ".join(sorted(set(_values(origin, key)))):
            yield key.capitalize(), str(found)
    if data := sorted(set(_values(origin, "dataset"))):
        yield "Data", ", ".join(data)
    if seeds := origin.get("seeds"):
        yield "Seeds", ", ".join(str(seed) for seed in seeds)
    # That of the drawing first, then those of the runs.
    found = [*_values(origin, "commit"), *_values(origin, "git_commit")]
    whole = [commit for commit in found if re.fullmatch("[0-9a-f]{40}", commit)]
    if commits := list(dict.fromkeys(short(commit) for commit in whole)):
        yield "Commit", ", ".join(commits[:4]) + (" and others" if len(commits) > 4 else "")
    if drawn := origin.get("drawn"):
        yield "Drawn", str(drawn).replace("T", " ").replace("+00:00", " UTC")
    if command := origin.get("command"):
        yield "Command", str(command)


def _values(node: Any, key: str) -> Iterator[str]:
    """Yield the texts under a key, at any depth."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name == key and isinstance(value, str):
                yield value
            else:
                yield from _values(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from _values(value, key)


def short(commit: object) -> str:
    """Return the first eight digits of a commit, a dash where there is none."""
    return str(commit or "–")[:8]


_AXES = dict(AXES.values())
_LABELS = {
    "train_loss": "Training loss",
    "val_loss": "Validation loss",
    "val_metric": "Validation metric (accuracy or NLL)",
    "val_accuracy": "Validation accuracy",
    "t1": "Integration time t1",
}
_COLORS = ("#1F78B4", "#E09F2B", "#8C1C4A", "#3B7D4F", "#6F4FA0", "#8A6D3B", "#4C4C4C", "#B5485F")


def chart(path: Path, points: int = 220) -> dict[str, Any] | None:
    """Return the interactive curves of a ``data.csv`` ready for JSON, or None if it has none.

    A table has curves if a column is an axis (steps, seconds, evaluations). Its other numbers are
    values; its words and its seed identify the run of a row; the column ``dataset`` is the panel.

    Returns:
        ``axes`` and ``values``: name and label of each; ``panels``: the runs of each data set, with
        ``name``, ``group``, ``color`` and one list of about ``points`` numbers a column.
    """
    cells = read_cells(path)
    axes = [name for name in _AXES if name in cells]
    if not axes or cells.empty:
        return None
    table = cells.apply(pd.to_numeric, errors="coerce")
    # A column of words has a cell that is neither empty nor a number.
    text = (table.isna() & ~cells.isin(["", "nan"])).any()
    words = [name for name in cells if text[name] and name not in axes]
    parts = [name for name in (*words, "seed") if name in cells]
    numbers = [name for name in cells if name not in (*words, *axes, "seed")]
    columns = [*axes, *numbers]
    groups: dict[str, None] = {}
    panels: dict[str, list[dict[str, Any]]] = {}
    for key, rows in cells.groupby(parts, sort=False) if parts else [((), cells)]:
        which = dict(zip(parts, key, strict=True))
        own = [which[name] for name in words if name != "dataset"]
        group = ", ".join(map(optimizer_name, own)) or "run"
        groups.setdefault(group)
        look = LOOKS.get(which.get("optimizer", ""))
        kept = table.loc[_kept(rows, numbers, points), columns]
        run: dict[str, Any] = {
            "name": group + (f", seed {which['seed']}" if "seed" in which else ""),
            "group": group,
            "color": look.color if look else _COLORS[list(groups).index(group) % len(_COLORS)],
            **{name: [_number(value) for value in kept[name]] for name in columns},
        }
        panels.setdefault(which.get("dataset", ""), []).append(run)
    every = [run for runs in panels.values() for run in runs]
    shown = {n for n in columns if any(value is not None for run in every for value in run[n])}
    return {
        "axes": [[name, _AXES[name]] for name in axes if name in shown],
        "values": [[n, _LABELS.get(n, n.replace("_", " "))] for n in numbers if n in shown],
        "panels": panels,
    }


def _number(value: float) -> float | None:
    """Return a number of five digits; None, which breaks a line, if it is not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _kept(rows: pd.DataFrame, columns: Sequence[str], points: int) -> list[Any]:
    """Thin a run: about ``points`` rows of each measured column stay."""
    if len(rows) <= points:
        return list(rows.index)
    wanted: set[Any] = set()
    for name in columns:
        measured = list(rows.index[rows[name] != ""])
        if measured:
            step = max(1.0, (len(measured) - 1) / (points - 1))
            chosen = (round(i * step) for i in range(points))
            wanted |= {measured[i] for i in chosen if i < len(measured)} | {measured[-1]}
    return sorted(wanted)


def listings(results: Path) -> list[Section]:
    """Return the tables of ``paper/`` and ``search/`` that have a row."""
    return [*_paper_runs(results), *_searches(results)]


def _listing(
    name: str, title: str, caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> list[Section]:
    table = Table(header, rows, caption, align="l" * len(header)).markdown()
    return [Section(name, title, caption, table)] if rows else []


def _paper_runs(results: Path) -> list[Section]:
    """List the runs in ``results/paper/``."""
    rows = []
    for run in load(results):
        entry = run.entry
        value = entry["results"].get(f"test/{entry['metric']}")
        accuracy = entry["metric"] == "accuracy"
        test = "–" if value is None else f"{100 * value:.2f} %" if accuracy else f"{value:.4f}"
        seconds = (entry.get("seconds") or {}).get("train")
        rows.append(
            [
                str(entry["dataset"]),
                optimizer_name(entry["optimizer"]),
                *(str(entry[key]) for key in ("seed", "state")),
                test,
                str(entry["steps"]),
                "–" if seconds is None else f"{seconds:.0f} s",
                str(entry.get("device")),
                short(entry.get("git_commit")),
                str(entry["command"]),
            ]
        )
    caption = (
        "Every finished run of experiment=paper/*: accuracy or negative log-likelihood (nats) of "
        "the test set, steps, seconds of the training clock."
    )
    header = ["Data", "Optimizer", "Seed", "State", "Test"]
    header += ["Steps", "Training", "Device", "Commit", "Command"]
    return _listing("paper-runs", "Runs with published settings", caption, header, rows)


def _searches(results: Path) -> list[Section]:
    """List what the searches in ``results/search/`` chose."""
    rows = []
    for path in sorted((results / "search").glob("*/*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            chosen = found["chosen"]
            rows.append(
                [
                    found["dataset"],
                    optimizer_name(found["optimizer"]),
                    str(len(found["trials"])),
                    ", ".join(f"{key} {value}" for key, value in chosen["params"].items()),
                    f"{chosen.get('worst') or chosen['score']:.4g}",
                    short((found.get("git") or {}).get("commit")),
                ]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{path} is damaged: {error!r}") from None
    caption = "What the equal searches chose, with the score of the worst seed."
    header = ["Data", "Optimizer", "Trials", "Chosen", "Score", "Commit"]
    return _listing("searches", "Searches", caption, header, rows)
