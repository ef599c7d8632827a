"""Table 4: test metric of every optimizer on the embedded data sets, with searched settings.

The runs are those of the protocol (``experiments/protocol/``): every optimizer's best setting of an
equal search, trained for the whole budget on fresh seeds. Where ``protocol/runs.csv`` is there, the
table is made from it alone; where it is missing, the protocol runs first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.base.errors import RecordError
from experiments.figures.request import Figure, Request
from experiments.publish.names import dataset_name, optimizer_name
from experiments.publish.provenance import publish
from experiments.publish.tables import Table, csv_of
from experiments.studies.comparison import session
from experiments.studies.comparison.drawing import RUNS, draw
from experiments.studies.comparison.fresh import Fresh, fresh_of, mean_and_deviation, settings_text
from experiments.studies.comparison.report import optimizers, where_and_how
from experiments.studies.comparison.rows import Row, read_rows
from experiments.studies.execute import Say

NAME = "table-4"


def reproduce(request: Request, say: Say) -> None:
    """Make the table from the protocol's runs; run the protocol where there are none.

    Seeds are not used: those of the table are the protocol's fresh ones, which its caption names.

    Raises:
        ConfigError: there are no targets.
        RecordError: the protocol's runs cannot be read, or a run failed twice.
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
        session.compare(comparison, say)
        draw(comparison.folder, comparison.command, say)
    rows = read_rows(path)
    found = fresh_of(rows)
    if not found:
        raise RecordError(f"{NAME}: the protocol has no runs on fresh seeds")
    runs = [row for row in rows if row.role == "fresh"]
    facts = {
        "caption": as_table(rows).caption,
        "source": f"protocol/{RUNS}",
        "seeds": sorted({row.seed for row in runs}),
        "commits": sorted({str(row.commit) for row in runs}),
        "run_processors": sorted({row.processor for row in runs}),
        "runs": [
            {"dataset": row.dataset, "optimizer": row.optimizer, "seed": row.seed}
            | {"hash": row.hash, "state": row.state, "test": row.test}
            for row in runs
        ],
    }
    data = csv_of(pd.DataFrame(_data(found)), digits=6)
    publish(request.folder, data, target=NAME, command=request.command, **facts)
    redraw(request.folder)


def redraw(folder: Path) -> None:
    """Write the table again from ``protocol/runs.csv`` beside its folder.

    Raises:
        RecordError: that file is missing or damaged.
    """
    as_table(read_rows(folder.parent / "protocol" / RUNS)).write(folder)


def as_table(rows: Sequence[Row]) -> Table:
    """Return the table: a row an optimizer, a column a data set, then the settings of each."""
    found, names = fresh_of(rows), optimizers(rows)
    header = ["", *(f"{dataset_name(d)}{_unit(own)}" for d, own in found.items())]
    lines = [
        [optimizer_name(name), *(_cell(own.get(name)) for own in found.values())] for name in names
    ]
    lines.append(["Best settings of the search"])
    for name in names:
        chosen = [_settings(own.get(name)) for own in found.values()]
        lines.append([optimizer_name(name), *chosen])
    seeds = sorted({row.seed for row in rows if row.role == "fresh"})
    budgets = {dataset_name(row.dataset): row.budget for row in rows}
    published = "JapaneseVowels: as published, Adam trains what is outside the ODE. "
    caption = (
        f"Test accuracy in per cent (nats per example for densities) after"
        f" {', '.join(f'{budget:g} s ({name})' for name, budget in budgets.items())} of training,"
        f" mean ± sample standard deviation over the {len(seeds)} fresh seeds"
        f" {', '.join(map(str, seeds))}. {where_and_how(rows)}; the best setting is the fastest to"
        f" the validation target. {published * ('japanese_vowels' in found)}"
        "(!) marks a setting on the border of its search space."
    )
    return Table(header, lines, caption)


def _unit(own: dict[str, Fresh]) -> str:
    metric = next(iter(own.values())).rows[0].metric
    return " (%)" if metric == "accuracy" else " (nats)"


def _cell(fresh: Fresh | None) -> str:
    return "–" if fresh is None else mean_and_deviation(fresh, short=True)


def _settings(fresh: Fresh | None) -> str:
    if fresh is None:
        return "–"
    return settings_text(fresh.rows[0]) + (" (!)" if fresh.rows[0].border else "")


def _data(found: dict[str, dict[str, Fresh]]) -> list[dict[str, Any]]:
    """Return the rows of ``data.csv``."""
    return [
        {
            "dataset": dataset,
            "optimizer": name,
            "metric": fresh.rows[0].metric,
            "mean": fresh.mean,
            "deviation": fresh.deviation,
            "seeds": len(fresh.rows),
            "diverged": len(fresh.rows) - len(fresh.tests),
            "settings": settings_text(fresh.rows[0]),
        }
        for dataset, own in found.items()
        for name, fresh in own.items()
    ]


FIGURES = (
    Figure(NAME, reproduce, redraw, takes_overrides=False, note="configs/protocol/ says what runs"),
)
