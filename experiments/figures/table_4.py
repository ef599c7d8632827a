"""Table 4: test metric of every optimizer on the embedded data sets, with searched settings.

The runs are those of the protocol (``experiments/protocol/``): every optimizer's best setting of an
equal search, trained for the whole budget on fresh seeds. Where ``protocol/runs.csv`` is there, the
table is made from it alone; where it is missing, the protocol runs first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.base.errors import ConfigError, RecordError
from experiments.publish.names import dataset_name, optimizer_name
from experiments.publish.tables import Table, check_request, csv_text, write_table
from experiments.studies.comparison.drawing import RUNS, draw
from experiments.studies.comparison.fresh import Fresh, fresh_of, mean_and_deviation, settings_text
from experiments.studies.comparison.report import optimizers, where_and_how
from experiments.studies.comparison.rows import Row, read_rows
from experiments.studies.comparison.session import Request, compare
from experiments.studies.execute import Say

NAME = "table-4"
PROFILES = ("embedded",)
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


def make(rows: Sequence[Row], folder: Path, *, command: str) -> None:
    """Write the table's four files.

    Raises:
        RecordError: there are no fresh runs, or a file cannot be written.
    """
    found = fresh_of(rows)
    if not found:
        raise RecordError(f"{NAME}: the protocol has no runs on fresh seeds")
    runs = [row for row in rows if row.role == "fresh"]
    write_table(
        folder,
        as_table(rows),
        csv_text(COLUMNS, _data(found)),
        target=NAME,
        command=command,
        facts={
            "source": f"protocol/{RUNS}",
            "seeds": sorted({row.seed for row in runs}),
            "commits": sorted({str(row.commit) for row in runs}),
            "run_processors": sorted({row.processor for row in runs}),
            "runs": [
                {"dataset": row.dataset, "optimizer": row.optimizer, "seed": row.seed}
                | {"hash": row.hash, "state": row.state, "test": row.test}
                for row in runs
            ],
        },
    )


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
