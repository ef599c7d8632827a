"""Summaries of the runs with published settings: ``results/paper/``, small enough to be committed.

Runs of ``experiment=paper/*`` take hours, their records megabytes. What figures need of one is kept
in two files, ``<dataset>/<optimizer>-seed-<k>.json`` (final metrics, provenance, settings) and
``.csv`` (the thinned curve). Runs from several machines can be put together that way, and the paper
panels of figures 1 and 6 are drawn from these files alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.base.errors import ConfigError, RecordError
from experiments.base.files import write_whole
from experiments.figures import figure_1, figure_6
from experiments.figures.blocks import PROFILES
from experiments.figures.curves import Curve, csv_of, read_curves
from experiments.publish.provenance import describe, devices, run_entry
from experiments.run.config import load_config, places, resolve
from experiments.run.records import FINAL_STATES, Record, Summary, state_of, summarise
from experiments.studies.execute import PlannedRun, Say, planned

COMMAND = "python scripts/collect.py paper"

EXPERIMENTS = "paper"

DATASETS = tuple(panel.dataset for panel in PROFILES["paper"])

OPTIMIZERS = figure_6.OPTIMIZERS


@dataclass(frozen=True)
class PaperRun:
    """One summary.

    Attributes:
        curve: the thinned curve.
        entry: contents of the JSON file.
    """

    curve: Curve
    entry: dict[str, Any]


def find(output_dir: Path, datasets: Sequence[str], overrides: Sequence[str]) -> list[PlannedRun]:
    """Return the runs with published settings that have a record, whatever their seeds.

    Args:
        output_dir: where run records lie.
        datasets: which data sets.
        overrides: what was changed in the runs, as on the command line of ``scripts/train.py``.

    Raises:
        ConfigError: unknown data set or override.
    """
    for dataset in datasets:
        if dataset not in DATASETS:
            raise ConfigError(f"unknown data set {dataset!r}; valid: {', '.join(DATASETS)}")
    where = places(Path("data"), output_dir)
    found = []
    for dataset in datasets:
        for optimizer in OPTIMIZERS:
            (first,) = planned(
                f"{EXPERIMENTS}/{dataset}-{optimizer}", dataset, optimizer, [0], overrides, where
            )
            folders = first.folder.parent.glob("seed-*")
            seeds = sorted(int(folder.name.removeprefix("seed-")) for folder in folders)
            found += planned(
                f"{EXPERIMENTS}/{dataset}-{optimizer}", dataset, optimizer, seeds, overrides, where
            )
    return found


def collect(
    output_dir: Path,
    results_dir: Path,
    say: Say,
    datasets: Sequence[str] = DATASETS,
    overrides: Sequence[str] = (),
) -> list[Path]:
    """Write the summary of every finished run and return the JSON files.

    Args:
        output_dir: where run records lie.
        results_dir: the summaries go into ``paper/`` below it.
        say: prints one line.
        datasets: which data sets.
        overrides: what was changed in the runs.

    Raises:
        ConfigError: unknown data set or override.
        RecordError: there is no finished run, a record is damaged, or a file cannot be written.
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
        write_whole(path.with_suffix(".csv"), csv_of([figure_6.curve_of(record)]))
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
    metric = figure_6.METRICS[record.task]
    evaluated = [row for row in record.metrics if f"val/{metric}" in row]
    best = max if metric == "accuracy" else min
    value = best((row[f"val/{metric}"] for row in evaluated), default=None)
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
    """Read all summaries, in the order of the paper's data sets, the optimizers and the seeds.

    Raises:
        RecordError: a file is damaged or lacks its partner.
    """
    runs = []
    for dataset in DATASETS:
        for path in sorted((results_dir / "paper" / dataset).glob("*-seed-*.json")):
            try:
                entry = json.loads(path.read_text(encoding="utf-8"))
                key = (entry["dataset"], entry["optimizer"], entry["seed"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise RecordError(f"{path} is damaged: {error!r}; collect it again") from None
            curves = read_curves(path.with_suffix(".csv"))
            if [(c.dataset, c.optimizer, c.seed) for c in curves] != [key]:
                raise RecordError(f"{path.with_suffix('.csv')} is not the curve of {path.name}")
            runs.append(PaperRun(curves[0], entry))
    order = {name: place for place, name in enumerate(OPTIMIZERS)}
    place = {name: place for place, name in enumerate(DATASETS)}
    return sorted(
        runs, key=lambda run: (place[run.curve.dataset], order[run.curve.optimizer], run.curve.seed)
    )


def draw(results_dir: Path, x: str = "time") -> list[Path]:
    """Draw the paper panels of figures 1 and 6 from the summaries; return their folders.

    A figure without a run of any of its data sets is not drawn.

    Raises:
        RecordError: there is no summary, or one is damaged.
    """
    runs = load(results_dir)
    if not runs:
        raise RecordError(f"there are no summaries in {results_dir / 'paper'}; collect them first")
    made = []
    for figure in (figure_1, figure_6):
        datasets = {panel.dataset for panel in figure.PROFILES["paper"]}
        shown = [run for run in runs if run.curve.dataset in datasets]
        if not shown:
            continue
        entries = [
            {key: value for key, value in run.entry.items() if key not in _NOT_IN_FIGURES}
            for run in shown
        ]
        origin = {
            **describe(figure.NAME, COMMAND, entries),
            "profile": "paper",
            "budget": budget(shown),
        }
        folder = results_dir / f"{figure.NAME}-paper"
        curves = [run.curve for run in shown]
        if figure is figure_1:
            figure_1.write(curves, folder, origin, devices(entries), smooth=True)
        else:
            figure_6.write(curves, folder, origin, devices(entries), x=x)
        made.append(folder)
    return made


def budget(runs: Sequence[PaperRun]) -> str:
    """Return a sentence on the length of runs: as published, or which are shorter or longer."""
    titles = {panel.dataset: panel.title for panel in PROFILES["paper"]}
    others: dict[str, None] = {}
    for run in runs:
        dataset, optimizer = run.curve.dataset, run.curve.optimizer
        published = resolve(load_config([f"experiment={EXPERIMENTS}/{dataset}-{optimizer}"]))
        wanted, found = (c["trainer"]["epochs"] for c in (published, run.entry))
        if wanted != found:
            others[f"{titles[dataset]} {found} of {wanted}"] = None
    return "Epochs as published" + (f", but {'; '.join(others)}." if others else ".")


_NOT_IN_FIGURES = ("trainer", "model", "optimizer_settings", "solver", "versions")
