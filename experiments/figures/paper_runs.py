"""Summaries of the runs with published settings: ``results/paper/``, small enough to be committed.

Runs of ``experiment=paper/*`` take hours, their records megabytes. Two files keep what figures need
of a run: ``<dataset>/<optimizer>-seed-<k>.json`` (final metrics, provenance, settings) and ``.csv``
(the thinned curve). The paper panels of figures 1 and 6 are drawn from these files alone, so runs
may come from several machines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.base.errors import ConfigError, RecordError
from experiments.base.files import write_whole
from experiments.figures.loss_curves import (
    FIGURE_1,
    FIGURE_6,
    OPTIMIZERS,
    POINTS,
    WINDOW,
    datasets_of,
    experiment_of,
    write,
)
from experiments.figures.request import Request
from experiments.publish.names import dataset_name
from experiments.publish.provenance import of_runs, run_entry
from experiments.publish.runs import csv_of_runs, read_runs, runs_table, thin
from experiments.run.config import load_config, places, resolve
from experiments.run.records import FINAL_STATES, Record, Summary, state_of, summarise
from experiments.studies.execute import PlannedRun, Say, planned
from experiments.studies.goals import GREATER, best
from experiments.tasks import METRICS

COMMAND = "python scripts/collect.py paper"

DATASETS = datasets_of(FIGURE_6, "paper")


class PaperRun(NamedTuple):
    """One summary: the thinned curve and the contents of the JSON file."""

    table: pd.DataFrame
    entry: dict[str, Any]


def find(output_dir: Path, datasets: Sequence[str], overrides: Sequence[str]) -> list[PlannedRun]:
    """Return the runs with published settings and these overrides that have a record."""
    for dataset in datasets:
        if dataset not in DATASETS:
            raise ConfigError(f"unknown data set {dataset!r}; valid: {', '.join(DATASETS)}")
    where = places(Path("data"), output_dir)
    found = []
    for dataset in datasets:
        for optimizer in OPTIMIZERS:
            name = experiment_of(dataset, optimizer, "paper")
            (first,) = planned(name, dataset, optimizer, [0], overrides, where)
            folders = first.folder.parent.glob("seed-*")
            seeds = sorted(int(folder.name.removeprefix("seed-")) for folder in folders)
            found += planned(name, dataset, optimizer, seeds, overrides, where)
    return found


def collect(
    output_dir: Path,
    results_dir: Path,
    say: Say,
    datasets: Sequence[str] = DATASETS,
    overrides: Sequence[str] = (),
) -> list[Path]:
    """Write the summary of every finished run into ``paper/`` below ``results_dir``.

    Returns:
        The JSON files.

    Raises:
        ConfigError: a data set or an override is unknown.
        RecordError: there is no finished run, or a record is damaged.
    """
    written = []
    for run in find(output_dir, datasets, overrides):
        state = state_of(run.folder)
        if state not in FINAL_STATES:
            say(f"{run.name} is {state}: left out")
            continue
        record = summarise(run.folder)
        folder = results_dir / "paper" / run.dataset
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{run.optimizer}-seed-{run.seed}.json"
        curve = thin(runs_table([record]), POINTS, WINDOW)
        write_whole(path.with_suffix(".csv"), csv_of_runs(curve))
        text = json.dumps(summary_of(record, run), indent=2, ensure_ascii=False)
        write_whole(path, text + "\n")
        say(f"{run.name}: {state}, {path}")
        written.append(path)
    if not written:
        raise RecordError(
            f"no finished run of experiment=paper/* in {output_dir}; one is made, for example, by "
            "python scripts/train.py experiment=paper/mnist-snopt seed=0"
        )
    return written


def summary_of(record: Summary, run: PlannedRun) -> dict[str, Any]:
    """Return the contents of a summary, ready for JSON."""
    metric = METRICS[record.task]
    evaluated = [row for row in record.metrics if f"val/{metric}" in row]
    value = best(evaluated, metric, greater=GREATER[metric]) if evaluated else None
    config = resolve(load_config(run.overrides))
    return {
        "task": record.task,
        "metric": metric,
        **run_entry(record, run.command),
        "versions": record.status.get("versions"),
        "starts": record.status.get("starts"),
        "steps": max((int(row["step"]) for row in record.metrics), default=0),
        "results": Record(record.folder).results(),
        "last": {key: evaluated[-1][key] for key in ("step", f"val/{metric}")} if evaluated else {},
        f"best_val_{metric}": value,
        "trainer": {key: config["trainer"][key] for key in ("batch_size", "epochs", "max_steps")},
        "model": config["model"],
        "optimizer_settings": config["optimizer"],
        "solver": config["solver"],
    }


def load(results_dir: Path) -> list[PaperRun]:
    """Read all summaries, in the order of the paper's data sets, the optimizers and the seeds."""
    runs = []
    for dataset in DATASETS:
        for path in sorted((results_dir / "paper" / dataset).glob("*-seed-*.json")):
            try:
                entry = json.loads(path.read_text(encoding="utf-8"))
                key = (entry["dataset"], entry["optimizer"], entry["seed"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise RecordError(f"{path} is damaged: {error!r}; collect it again") from None
            table = read_runs(path.with_suffix(".csv"))
            columns = ["dataset", "optimizer", "seed"]
            if table[columns].drop_duplicates().to_numpy().tolist() != [list(key)]:
                raise RecordError(f"{path.with_suffix('.csv')} is not the curve of {path.name}")
            runs.append(PaperRun(table, entry))

    def place(run: PaperRun) -> tuple[int, int, int]:
        dataset, optimizer, seed = (run.entry[key] for key in ("dataset", "optimizer", "seed"))
        return DATASETS.index(dataset), OPTIMIZERS.index(optimizer), seed

    return sorted(runs, key=place)


def draw(results_dir: Path, x: str = "time") -> list[Path]:
    """Draw the paper panels of figures 1 and 6 from the summaries; return their folders.

    A figure without a run of any of its data sets is left out.
    """
    runs = load(results_dir)
    if not runs:
        raise RecordError(f"there are no summaries in {results_dir / 'paper'}; collect them first")
    made = []
    for target in (FIGURE_1, FIGURE_6):
        shown = [run for run in runs if run.entry["dataset"] in datasets_of(target, "paper")]
        if not shown:
            continue
        entries = [
            {key: value for key, value in run.entry.items() if key not in _NOT_IN_FIGURES}
            for run in shown
        ]
        # Thinned curves are running means already.
        facts = {"command": COMMAND, **of_runs(entries), "budget": budget(shown), "smooth": True}
        request = Request(target, "paper", results_dir=results_dir, x=x)
        table = pd.concat([run.table for run in shown], ignore_index=True)
        write(request, table, facts)
        made.append(request.folder)
    return made


def budget(runs: Sequence[PaperRun]) -> str:
    """Return a sentence on the length of runs: as published, or which ones differ."""
    others: dict[str, None] = {}
    for run in runs:
        dataset, optimizer = run.entry["dataset"], run.entry["optimizer"]
        experiment = experiment_of(dataset, optimizer, "paper")
        published = resolve(load_config([f"experiment={experiment}"]))
        wanted, found = (c["trainer"]["epochs"] for c in (published, run.entry))
        if wanted != found:
            others[f"{dataset_name(dataset)} {found} of {wanted}"] = None
    return "Epochs as published" + (f", but {'; '.join(others)}." if others else ".")


_NOT_IN_FIGURES = ("trainer", "model", "optimizer_settings", "solver", "versions")
