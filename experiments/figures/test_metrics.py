"""Table 4: test metric of every optimizer on the embedded data sets, with searched settings.

The runs are those of the protocol (``experiments/studies/comparison/``): every optimizer's best
setting of an equal search, trained for the whole budget on fresh seeds. The table comes from
``protocol/runs.csv`` alone; if that file is missing, the protocol runs first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from experiments.base.errors import RecordError
from experiments.figures.request import Figure, Request, listed
from experiments.publish.names import dataset_name, optimizer_name
from experiments.publish.tables import Table, csv_of
from experiments.studies.comparison import session
from experiments.studies.comparison.planning import FRESH
from experiments.studies.comparison.report import draw, where_and_how
from experiments.studies.comparison.rows import (
    RUNS,
    fresh_of,
    mean_and_deviation,
    names_of,
    read_rows,
    settings_text,
)
from experiments.studies.execute import Say

NAME = "table-4"
UNITS = {"accuracy": "%", "nll": "nats"}
COLUMNS = ("dataset", "optimizer", "metric", "mean", "deviation", "seeds", "diverged", "settings")


def reproduce(request: Request, say: Say) -> None:
    """Make the table from the protocol's runs; run the protocol if there are none.

    The request's seeds have no effect: the table has the protocol's fresh seeds.
    """
    comparison = session.Request(
        data_dir=request.data_dir,
        output_dir=request.output_dir,
        results_dir=request.results_dir,
        jobs=request.jobs,
    )
    path = comparison.folder / RUNS
    if not path.exists():
        say(f"{path} is missing: running the protocol first")
        comparison = session.compare(comparison, say)
        path = comparison.folder / RUNS
        draw(comparison.folder, comparison.command, say)
    rows = read_rows(path)
    found = fresh_of(rows)
    if found.empty:
        raise RecordError(f"{NAME}: the protocol has no runs on fresh seeds")
    runs = rows[rows["role"] == FRESH]
    kept = runs[["dataset", "optimizer", "seed", "hash", "state", "test"]].astype(object)
    facts = {
        "caption": as_table(rows).caption,
        "source": f"protocol/{RUNS}",
        "seeds": sorted(runs["seed"].unique().tolist()),
        "commits": sorted(names_of(runs, "commit")),
        "run_processors": sorted(names_of(runs, "processor")),
        "runs": kept.where(runs["test"].notna(), None).to_dict("records"),
    }
    settings = found.apply(lambda fresh: settings_text(fresh).removesuffix(" (!)"), axis=1)
    table = found.assign(settings=settings).reset_index()[list(COLUMNS)]
    request.publish(csv_of(table, digits=6), **facts)
    as_table(rows).write(request.folder)


def redraw(folder: Path) -> None:
    """Write the table again from ``protocol/runs.csv`` beside its folder."""
    as_table(read_rows(folder.parent / "protocol" / RUNS)).write(folder)


def as_table(rows: pd.DataFrame) -> Table:
    """Return the table: one row an optimizer, one column a data set, then the same of settings."""
    found, names = fresh_of(rows), names_of(rows, "optimizer")
    datasets = names_of(rows, "dataset")

    def cells(form: Callable[[pd.Series], str], name: str) -> list[str]:
        places = [(dataset, name) for dataset in datasets]
        own = [form(found.loc[place]) if place in found.index else "–" for place in places]
        return [optimizer_name(name), *own]

    units = found.groupby("dataset")["metric"].first().map(UNITS)
    header = ["", *(f"{dataset_name(dataset)} ({units[dataset]})" for dataset in datasets)]
    lines = [cells(lambda fresh: mean_and_deviation(fresh, short=True), name) for name in names]
    lines.append(["Best settings of the search"])
    lines += [cells(settings_text, name) for name in names]
    seeds = sorted(rows["seed"][rows["role"] == FRESH].unique())
    budgets = rows.groupby("dataset", sort=False)["budget"].first()
    lengths = [f"{seconds:g} s ({dataset_name(name)})" for name, seconds in budgets.items()]
    published = "JapaneseVowels: as published, Adam trains what is outside the ODE. "
    caption = (
        f"Test accuracy in per cent (nats per example for densities) after {listed(lengths)} of"
        f" training, mean ± sample standard deviation over the {len(seeds)} fresh seeds"
        f" {listed(seeds)}. {where_and_how(rows)}; the best setting is the fastest to the"
        f" validation target. {published * ('japanese_vowels' in datasets)}"
        "(!) marks a setting on the border of its search space."
    )
    return Table(header, lines, caption)


FIGURES = (
    Figure(NAME, reproduce, redraw, takes_overrides=False, note="configs/protocol/ says what runs"),
)
