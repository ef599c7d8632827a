"""Table 4: test metric of every optimizer on the embedded data sets, with searched settings.

The runs are those of the protocol (``experiments/studies/comparison/``): every optimizer's best
setting of an equal search, trained for the whole budget on fresh seeds. Where ``protocol/runs.csv``
is there, the table is made from it alone; where it is missing, the protocol runs first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from experiments.base.errors import ConfigError, RecordError
from experiments.publish.names import dataset_name, optimizer_name
from experiments.publish.tables import Table, check_request, csv_of, write_table
from experiments.studies.comparison.planning import FRESH
from experiments.studies.comparison.report import RUNS, draw, where_and_how
from experiments.studies.comparison.rows import (
    fresh_of,
    mean_and_deviation,
    names_of,
    read_rows,
    settings_text,
)
from experiments.studies.comparison.session import Request, compare
from experiments.studies.execute import Say

NAME = "table-4"
PROFILES = ("embedded",)
UNITS = {"accuracy": "%", "nll": "nats"}
COLUMNS = ("dataset", "optimizer", "metric", "mean", "deviation", "seeds", "diverged", "settings")


def reproduce(
    *,
    profile: str,
    seeds: Sequence[int],
    overrides: Sequence[str],
    data_dir: Path,
    output_dir: Path,
    folder: Path,
    command: str,
    say: Say,
    jobs: int = 1,
) -> None:
    """Make the table from the protocol's runs; run the protocol where there are none.

    Args:
        profile: ``"embedded"``, the only one.
        seeds: not used: the seeds are the protocol's fresh ones, which the caption names.
        overrides: must be empty: what is run, ``configs/protocol/`` says.
        data_dir: where data sets lie.
        output_dir: where run records lie.
        folder: where the table goes; the protocol's results lie in ``protocol/`` beside it.
        command: the command that makes it.
        say: prints one line.
        jobs: runs at a time.

    Raises:
        ConfigError: another profile, overrides, or no targets.
        RecordError: the protocol's runs cannot be read, or a run failed twice.
    """
    check_request(NAME, profile, PROFILES, seeds)
    if overrides:
        raise ConfigError(f"{NAME} takes no overrides (configs/protocol/ has them): {overrides}")
    request = Request(
        data_dir=data_dir, output_dir=output_dir, results_dir=folder.parent, jobs=jobs
    )
    path = request.folder / RUNS
    if not path.exists():
        say(f"{path} is missing: running the protocol first")
        compare(request, say)
        draw(request.folder, request.command, say)
    make(read_rows(path), folder, command=command)


def make(rows: pd.DataFrame, folder: Path, *, command: str) -> None:
    """Write the table's four files.

    Raises:
        RecordError: there are no fresh runs, or a file cannot be written.
    """
    found = fresh_of(rows)
    if found.empty:
        raise RecordError(f"{NAME}: the protocol has no runs on fresh seeds")
    runs = rows[rows["role"] == FRESH]
    kept = runs[["dataset", "optimizer", "seed", "hash", "state", "test"]].astype(object)
    write_table(
        folder,
        as_table(rows),
        csv_of(_data(found), digits=6),
        target=NAME,
        command=command,
        facts={
            "source": f"protocol/{RUNS}",
            "seeds": sorted(runs["seed"].unique().tolist()),
            "commits": sorted(names_of(runs, "commit")),
            "run_processors": sorted(names_of(runs, "processor")),
            "runs": kept.where(runs["test"].notna(), None).to_dict("records"),
        },
    )


def as_table(rows: pd.DataFrame) -> Table:
    """Return the table: a row an optimizer, a column a data set, then the settings of each."""
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
    published = "JapaneseVowels: as published, Adam trains what is outside the ODE. "
    caption = (
        f"Test accuracy in per cent (nats per example for densities) after"
        f" {', '.join(f'{seconds:g} s ({dataset_name(d)})' for d, seconds in budgets.items())} of"
        " training,"
        f" mean ± sample standard deviation over the {len(seeds)} fresh seeds"
        f" {', '.join(map(str, seeds))}. {where_and_how(rows)}; the best setting is the fastest to"
        f" the validation target. {published * ('japanese_vowels' in datasets)}"
        "(!) marks a setting on the border of its search space."
    )
    return Table(header, lines, caption)


def _data(found: pd.DataFrame) -> pd.DataFrame:
    """Return what ``data.csv`` holds."""
    settings = found.apply(lambda fresh: settings_text(fresh).removesuffix(" (!)"), axis=1)
    return found.assign(settings=settings).reset_index()[list(COLUMNS)]
