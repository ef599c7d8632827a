"""Table 3: sizes of all data sets as loaded here, beside the paper's numbers.

The numbers come from the tensors that a run trains on. A data set that is not in the data folder is
listed as not present; nothing is downloaded for the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.utils import get_method

from experiments.base.errors import DataError
from experiments.data.splits import Splits
from experiments.figures.loss_curves import BLOCKS
from experiments.figures.request import Figure, Request, listed
from experiments.publish.names import dataset_name, published
from experiments.publish.tables import Table, csv_of, read_table
from experiments.run.config import load_config, resolve
from experiments.studies.execute import Say

NAME = "table-3"
PROFILES = ("embedded", "paper")
ABSENT = "not present"

MORE = {"cnf": ("eight_gaussians", "checkerboard")}
"""Data sets of a task that no figure shows."""

NOTE = (
    "Inputs of a time series count its time and its observation channels; steps are those of the "
    "longest series. The last column has the paper's numbers: inputs, classes, steps."
)
HEADER = ("Data set", "Training", "Validation", "Test", "Inputs", "Classes", "Steps", "Paper")


COLUMNS = {
    **dict.fromkeys(("dataset", "title", "task"), str),
    **dict.fromkeys(("train", "val", "test"), "Int64"),
    **{"inputs": str, "classes": "Int64", "steps": "Int64"},
    **{"paper_inputs": str, "paper_classes": "Int64", "paper_steps": "Int64"},
    "source": str,
}
"""``data.csv``, one row a data set: examples of each split; size of an input (one step of a time
series); steps of the longest series; the paper's numbers; origin of the data, or why there is none.
A number that does not apply is None."""

Row = dict[str, Any]


def reproduce(request: Request, say: Say) -> None:
    """Load every data set that is there and write the table's files; seeds have no effect.

    The profile ``embedded`` has all data sets, ``paper`` those of the paper.
    """
    rows = []
    for dataset, task in data_sets(request.profile):
        row = measure(dataset, task, request.data_dir, request.overrides)
        if row["train"] is None:
            say(f"{dataset}: {ABSENT} ({row['source']})")
        elif agrees(row) is False:
            say(f"{dataset}: not as in the paper: {row}")
        else:
            say(dataset)
        rows.append(row)
    present = listed([row["title"] for row in rows if row["train"] is not None])
    counts = {name: kind for name, kind in COLUMNS.items() if kind == "Int64"}
    request.publish(
        csv_of(pd.DataFrame(rows, columns=list(COLUMNS)).astype(counts)),
        profile=request.profile,
        caption=f"Sizes of the data as loaded. Data: {present}. {NOTE}",
        sources={row["dataset"]: row["source"] for row in rows},
    )
    redraw(request.folder)


def redraw(folder: Path) -> None:
    """Write the table again from ``data.csv``."""
    cells = read_table(folder / "data.csv", COLUMNS).astype(object).replace({"": None})
    table(cells.where(cells.notna(), None).to_dict("records")).write(folder)


def data_sets(profile: str) -> list[tuple[str, str]]:
    """Return name and task of the data sets of a profile, by task, each once."""
    embedded = profile == "embedded"
    found: dict[str, str] = {}
    for block in BLOCKS:
        names = block.datasets["paper"]
        if embedded:
            names = (*names, *block.datasets["embedded"], *MORE.get(block.task, ()))
        found |= dict.fromkeys(names, block.task)
    return list(found.items())


def measure(dataset: str, task: str, data_dir: Path, overrides: Sequence[str] = ()) -> Row:
    """Load a data set and return its row; ``source`` says why one cannot be loaded."""
    arguments = [f"task={task}", f"dataset={dataset}", *overrides]
    config = resolve(load_config(arguments))["dataset"]
    if "data_dir" in config and config["data_dir"] is not None:
        config["data_dir"] = str(data_dir)
    if "download" in config:
        config["download"] = False
    stated = published(dataset)
    row: Row = dict.fromkeys(COLUMNS)
    row |= {"dataset": dataset, "title": dataset_name(dataset), "task": task}
    row |= {f"paper_{name}": stated.get(name) for name in ("inputs", "classes", "steps")}
    try:
        load = get_method(config["_target_"])
        data: Splits = load(**{k: v for k, v in config.items() if k not in ("_target_", "task")})
        return {**row, **_numbers(data), "source": data.info.source}
    except DataError as error:
        source = " ".join(str(error).split()).replace(str(data_dir), "<data_dir>")
        return {**row, "source": source}


def _numbers(data: Splits) -> dict[str, Any]:
    """Return what a row says of loaded data."""
    shape, steps = data.info.input_shape, None
    if data.info.task == "time_series":
        steps = max(int(tensors[1].max()) for _, tensors in data.items())
        shape = shape[1:]
    inputs = listed(shape, " × ")
    return {**data.sizes(), "inputs": inputs, "classes": data.info.num_classes, "steps": steps}


def agrees(row: Row) -> bool | None:
    """Return whether loaded data has the paper's numbers; None if there is no data or number."""
    if row["train"] is None or row["paper_inputs"] is None:
        return None
    return all(row[name] == row[f"paper_{name}"] for name in ("inputs", "classes", "steps"))


def cells(row: Row) -> list[str]:
    """Return the cells of a row; the last one has the paper's numbers."""
    own = [ABSENT, *["–"] * 5]
    if row["train"] is not None:
        own = [f"{row[part]:,}".replace(",", " ") for part in ("train", "val", "test")]
        values = [row[name] for name in ("inputs", "classes", "steps")]
        own += ["–" if value is None else str(value) for value in values]
    stated = [row[f"paper_{name}"] for name in ("inputs", "classes", "steps")]
    paper = listed([value for value in stated if value], " / ") or "–"
    return [row["title"], *own, paper + (" (differs)" if agrees(row) is False else "")]


def table(rows: Sequence[Row]) -> Table:
    """Return the table."""
    return Table(
        HEADER, list(map(cells, rows)), NOTE, align="lrrrrrrl", dashes=("---", "--:"), tied=True
    )


FIGURES = (Figure(NAME, reproduce, redraw, PROFILES),)
