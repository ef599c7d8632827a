"""Table 3: sizes of all data sets, as loaded here, beside what the paper states.

One row a data set: examples of each split, size of an input, classes and steps, all read from the
tensors that a run trains on. Inputs of a time series count its time and its observation channels.
A data set that is not in the data folder is listed as not present, with the paper's numbers in
columns of their own; nothing is downloaded for the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.utils import get_method

from experiments.base.errors import DataError
from experiments.data.splits import Splits
from experiments.figures.loss_curves import BLOCKS
from experiments.figures.request import Figure, Request, listed
from experiments.publish.names import dataset_name, published
from experiments.publish.provenance import publish
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


@dataclass(frozen=True, kw_only=True)
class Row:
    """One data set; None where a number does not apply or the data is not present.

    Attributes:
        dataset: name in configurations.
        title: what the table calls it.
        task: task name.
        train: training examples.
        val: validation examples.
        test: test examples.
        inputs: size of an input; of one step for a time series.
        classes: classes.
        steps: steps of the longest series.
        paper_inputs: inputs that the paper states.
        paper_classes: classes that the paper states.
        paper_steps: steps that the paper states.
        source: where the numbers came from, or why there are none.
    """

    dataset: str
    title: str
    task: str
    train: int | None = None
    val: int | None = None
    test: int | None = None
    inputs: str | None = None
    classes: int | None = None
    steps: int | None = None
    paper_inputs: str | None
    paper_classes: int | None
    paper_steps: int | None
    source: str

    @property
    def present(self) -> bool:
        """Whether the data was loaded."""
        return self.train is not None

    @property
    def agrees(self) -> bool | None:
        """Whether the loaded data has the paper's numbers; None where one of them is missing."""
        if not self.present or self.paper_inputs is None:
            return None
        stated = (self.paper_inputs, self.paper_classes, self.paper_steps)
        return (self.inputs, self.classes, self.steps) == stated


COUNTS = dict.fromkeys(
    ("train", "val", "test", "classes", "steps", "paper_classes", "paper_steps"), "Int64"
)
COLUMNS = {field.name: COUNTS.get(field.name, str) for field in fields(Row)}
"""``data.csv``, one :class:`Row` a line."""


def reproduce(request: Request, say: Say) -> None:
    """Load every data set that is there and write the table's files.

    The profile ``embedded`` has all data sets, ``paper`` those of the paper. Seeds are not used:
    splits do not depend on a run's seed.
    """
    rows = []
    for dataset, task in data_sets(request.profile):
        row = measure(dataset, task, request.data_dir, request.overrides)
        if not row.present:
            say(f"{dataset}: {ABSENT} ({row.source})")
        elif row.agrees is False:
            say(f"{dataset}: not as in the paper: {row}")
        else:
            say(dataset)
        rows.append(row)
    present = listed([row.title for row in rows if row.present])
    facts = {
        "profile": request.profile,
        "caption": f"Sizes of the data as loaded. Data: {present}. {NOTE}",
        "sources": {row.dataset: row.source for row in rows},
    }
    data = csv_of(pd.DataFrame(map(asdict, rows)).astype(COUNTS))
    publish(request.folder, data, target=NAME, command=request.command, **facts)
    redraw(request.folder)


def redraw(folder: Path) -> None:
    """Write the table again from ``data.csv``."""
    cells = read_table(folder / "data.csv", COLUMNS).astype(object).replace({"": None})
    found = cells.where(cells.notna(), None).to_dict("records")
    table([Row(**row) for row in found]).write(folder)


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
    """Load a data set and return its row; one that cannot be loaded says why in ``source``."""
    arguments = [f"task={task}", f"dataset={dataset}", *overrides]
    config = resolve(load_config(arguments))["dataset"]
    if "data_dir" in config and config["data_dir"] is not None:
        config["data_dir"] = str(data_dir)
    if "download" in config:
        config["download"] = False
    stated = published(dataset)
    numbers: dict[str, Any] = {}
    try:
        load = get_method(config["_target_"])
        data: Splits = load(**{k: v for k, v in config.items() if k not in ("_target_", "task")})
        numbers, source = _numbers(data), data.info.source
    except DataError as error:
        source = " ".join(str(error).split()).replace(str(data_dir), "<data_dir>")
    return Row(
        dataset=dataset,
        title=dataset_name(dataset),
        task=task,
        source=source,
        paper_inputs=stated.get("inputs"),
        paper_classes=stated.get("classes"),
        paper_steps=stated.get("steps"),
        **numbers,
    )


def _numbers(data: Splits) -> dict[str, Any]:
    """Return what a row says of loaded data."""
    shape, steps = data.info.input_shape, None
    if data.info.task == "time_series":
        steps = max(int(tensors[1].max()) for _, tensors in data.items())
        shape = shape[1:]
    inputs = listed(shape, " × ")
    return {**data.sizes(), "inputs": inputs, "classes": data.info.num_classes, "steps": steps}


def cells(row: Row) -> list[str]:
    """Return the cells of a row; the last one has the paper's numbers and what differs."""
    if row.present:
        numbers = [f"{n:,}".replace(",", " ") for n in (row.train, row.val, row.test)]
        own = [*numbers, *(_cell(value) for value in (row.inputs, row.classes, row.steps))]
    else:
        own = [ABSENT, *["–"] * 5]
    stated = [value for value in (row.paper_inputs, row.paper_classes, row.paper_steps) if value]
    paper = listed(stated, " / ") or "–"
    return [row.title, *own, paper + (" (differs)" if row.agrees is False else "")]


def _cell(value: object) -> str:
    return "–" if value is None else str(value)


def table(rows: Sequence[Row]) -> Table:
    """Return the table."""
    lines = [cells(row) for row in rows]
    return Table(HEADER, lines, NOTE, align="lrrrrrrl", dashes=("---", "--:"), tied=True)


FIGURES = (Figure(NAME, reproduce, redraw, PROFILES),)
