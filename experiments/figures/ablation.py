"""The ablation of SNOpt's options: training time to a target that tuned SGD and Adam set.

Tuned Adam and SGD run with a larger budget and set the target. Then every variant runs until it
reaches the target or has used up its steps. ``configs/ablation.yaml`` lists the variants.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from experiments.base.errors import ConfigError, RecordError
from experiments.base.files import write_whole
from experiments.figures.request import Figure, Made, Request, facts_of, in_turn, listed, obtain
from experiments.publish.names import dataset_name, optimizer_name
from experiments.publish.provenance import read_provenance
from experiments.publish.style import LOOKS, WIDTH_IN, put_caption, save, styled, wrapped
from experiments.publish.tables import Table, csv_of, read_table
from experiments.run.config import CONFIGS
from experiments.run.records import Summary
from experiments.studies.execute import PlannedRun, Say, planned
from experiments.studies.goals import GREATER, best, target_of, time_to

NAME = "ablation"
REFERENCE = "adam"
COLUMNS = {
    "dataset": str,
    "variant": str,
    "seed": int,
    "target": float,
    "seconds": float,
    "best": float,
    "state": str,
    "trained": float,
    "steps": int,
}
"""``data.csv``, one row a run. ``target`` is a value of the validation metric, ``seconds`` the
training time to it (infinite if it was missed), ``trained`` the training time in all."""


@dataclass(frozen=True)
class Ablation:
    """The parts of ``configs/ablation.yaml``."""

    datasets: Mapping[str, Mapping[str, Any]]
    targets: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, path: Path = CONFIGS / "ablation.yaml") -> Ablation:
        """Read the description."""
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls(content["datasets"], content["targets"], content["variants"])
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is no description of an ablation: {error!r}") from error

    def runs(
        self,
        request: Request,
        dataset: str,
        optimizer: str,
        steps: int,
        stop_at: float | None = None,
        change: Mapping[str, Any] | None = None,
    ) -> list[PlannedRun]:
        """Return the runs of tuned settings with a change, one for each seed."""
        spec = self.datasets[dataset]
        overrides = [
            "trainer.epochs=null",
            f"trainer.max_steps={steps}",
            f"trainer.eval_every={spec['eval_every']}",
            f"trainer.stop_at={'null' if stop_at is None else repr(stop_at)}",
            "tracking=none",
        ]
        prefix = "optimizer." + (f"{spec['inside']}." if "inside" in spec else "")
        overrides += [f"++{prefix}{key}={_hydra(value)}" for key, value in (change or {}).items()]
        experiment = f"{spec['tuned'][optimizer]}/{dataset}-{optimizer}"
        return planned(experiment, dataset, optimizer, request.seeds, overrides, request.where)

    def target_runs(self, request: Request, dataset: str) -> dict[str, list[PlannedRun]]:
        """Return the runs that set the target, by optimizer."""
        steps = round(self.datasets[dataset]["steps"] * self.targets["more_steps"])
        names = self.targets["optimizers"]
        return {name: self.runs(request, dataset, name, steps) for name in names}

    def variant_runs(
        self, request: Request, dataset: str, stop_at: float
    ) -> dict[str, list[PlannedRun]]:
        """Return the runs of all variants of a data set, by variant."""
        steps = self.datasets[dataset]["steps"]
        return {
            name: self.runs(request, dataset, own["from"], steps, stop_at, own.get("change"))
            for name, own in self.variants.items()
            if dataset not in own.get("except", ())
        }


def _hydra(value: Any) -> str:
    """Return a value as Hydra's command line reads it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_hydra(item)}" for key, item in value.items()) + "}"
    return value if isinstance(value, str) else json.dumps(value)


def score(run: Summary, variant: str, target: float, metric: str) -> dict[str, Any]:
    """Return what a run says, by the names of :data:`COLUMNS`."""
    greater = GREATER[metric]
    last = max(run.metrics, key=lambda row: row["step"])
    return {
        "dataset": run.dataset,
        "variant": variant,
        "seed": run.seed,
        "target": target,
        "seconds": time_to(run.metrics, metric, target, greater=greater),
        "best": best(run.metrics, metric, greater=greater),
        "state": run.state,
        "trained": float(last["time/train_s"]),
        "steps": int(last["step"]),
    }


def reproduce(request: Request, say: Say) -> None:
    """Train what is missing, then write ``data.csv``, ``table.md``, ``figure.png``, provenance.

    The overrides are names of data sets, to leave the others out.
    """
    ablation = Ablation.load()
    unknown = [name for name in request.overrides if name not in ablation.datasets]
    if unknown:
        valid = ", ".join(ablation.datasets)
        raise ConfigError(f"{NAME} takes names of data sets, {valid}; got {unknown[0]!r}")
    rows: list[dict[str, Any]] = []
    used: list[Made[str]] = []
    for dataset in request.overrides or ablation.datasets:
        metric = ablation.datasets[dataset]["metric"]
        setters = ablation.target_runs(request, dataset)
        made = _obtain(request, setters, say)
        by_setter = {name: [one.run for one in made if one.variant == name] for name in setters}
        target, stop_at = target_of(by_setter, metric)
        say(f"{dataset}: target {metric} {target:g}")
        variants = ablation.variant_runs(request, dataset, stop_at)
        made += _obtain(request, variants, say)
        rows += [score(one.run, one.variant, target, metric) for one in made]
        used += made
    facts = facts_of(used)
    together = "" if request.jobs == 1 else f", {request.jobs} runs at a time"
    facts["caption"] = (
        f"{facts['device']}{together}. Seeds {listed(facts['seeds'])}: bars are medians, dots"
        " seeds, a cross a run that missed the target, the median of the best validation values of"
        " tuned Adam and SGD with half as many steps again. Dashed line: tuned Adam. + and −: one"
        " change to tuned SNOpt or snopt_plus, not tuned again."
    )
    request.publish(csv_of(pd.DataFrame(rows)), **facts)
    redraw(request.folder)


def _obtain(
    request: Request, variants: Mapping[str, Sequence[PlannedRun]], say: Say
) -> list[Made[str]]:
    """Train what is missing of one data set; return the runs by variant."""
    stops = "the ablation stops"
    made = obtain(request, in_turn(variants), say, jobs=request.jobs, consequence=stops)
    order = list(variants)
    return sorted(made, key=lambda one: order.index(one.variant))


def redraw(folder: Path) -> None:
    """Write ``table.md`` and ``figure.png`` again from ``data.csv`` and the caption."""
    entries = read_table(folder / "data.csv", COLUMNS)
    line = read_provenance(folder)["caption"]
    text = table(entries, line).markdown()
    write_whole(folder / "table.md", text.replace("|  |", "| |", 1))
    save(draw(entries, line), folder / "figure.png")


def table(entries: pd.DataFrame, caption: str = "") -> Table:
    """Return the table: medians, how many reached the target, ratio to Adam."""
    goals = entries.drop_duplicates("dataset").set_index("dataset")["target"]
    rows = [["target", *map(_goal, goals)]]
    for variant in entries["variant"].unique():
        cells = [_cell(entries[entries["dataset"] == name], variant) for name in goals.index]
        rows.append([label(variant), *cells])
    header = ["", *map(dataset_name, goals.index)]
    return Table(header, rows, caption, dashes=("---", "---"))


def label(variant: str) -> str:
    """Return what figure and table call a variant."""
    return f"{optimizer_name(variant)}, tuned" if variant in ("adam", "sgd") else variant


def _goal(value: float) -> str:
    return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.3f} nats"


def _cell(of_dataset: pd.DataFrame, variant: str) -> str:
    times = of_dataset.loc[of_dataset["variant"] == variant, "seconds"]
    if times.empty:
        return "–"
    count = f"{(times < math.inf).sum()} of {len(times)}"
    if math.isinf(times.median()):
        return f"missed ({count})"
    reference = of_dataset.loc[of_dataset["variant"] == REFERENCE, "seconds"].median()
    ratio = f", {times.median() / reference:.2f}×" if math.isfinite(reference) else ""
    return f"{times.median():.1f} s{ratio} ({count})"


@styled
def draw(entries: pd.DataFrame, caption: str = "") -> Picture:
    """Return the figure: one column a data set, one row a variant."""
    if entries.empty:
        raise RecordError(f"{NAME}: there are no runs")
    datasets, variants = (list(entries[name].unique()) for name in ("dataset", "variant"))
    lines = wrapped(caption)
    height = 1.0 + 0.21 * len(variants) + 0.14 * len(lines)
    picture = Picture(figsize=(WIDTH_IN, height))
    axes = picture.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
    for panel, dataset in zip(axes, datasets, strict=True):
        _panel(panel, entries[entries["dataset"] == dataset], variants)
        panel.set_title(dataset_name(dataset))
        panel.set_xlabel("Seconds to target")
    axes[0].set_yticks(range(len(variants)), [label(variant) for variant in variants])
    axes[0].set_ylim(len(variants) - 0.5, -0.5)
    put_caption(picture, lines, 0.008)
    picture.tight_layout(rect=(0.0, (0.05 + 0.14 * len(lines)) / height, 1.0, 1.0))
    return picture


def _panel(axes: Axes, entries: pd.DataFrame, variants: Sequence[str]) -> None:
    hit = entries[entries["seconds"] < math.inf]
    edge = 1.18 * (hit["seconds"].max() if len(hit) else 1.0)  # where a miss is drawn
    for entry in entries.itertuples():
        row = variants.index(entry.variant)
        if math.isfinite(entry.seconds):
            axes.plot(entry.seconds, row, "o", color="#444444", markersize=3.5, zorder=3)
        else:
            shift = 0.18 * (entry.seed % 3 - 1)
            axes.plot(edge, row + shift, "x", color="#8C1C4A", markersize=4, zorder=3)
    found = entries.groupby("variant", sort=False)["seconds"].median()
    for variant, time in found.items():
        if math.isfinite(time):
            face = LOOKS["snopt"].color if variant in ("SNOpt", "snopt_plus") else "#BBBBBB"
            axes.barh(variants.index(variant), time, 0.6, color=face, zorder=2)
    reference = found.get(REFERENCE, math.inf)
    if math.isfinite(reference):
        axes.axvline(reference, linewidth=1.0, zorder=1, **LOOKS[REFERENCE].line)
    axes.set_xlim(0.0, 1.08 * edge)
    axes.grid(visible=False, axis="y")


FIGURES = (Figure(NAME, reproduce, redraw),)
